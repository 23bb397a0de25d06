"""Scoring channels and removing them."""

import lazy_loader

# Each name of __init__.pyi is imported when it is first used, so that the command line starts at once.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
