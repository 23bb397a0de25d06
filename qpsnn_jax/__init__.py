"""Compressing spiking neural networks in JAX: QP-SNN (ICLR 2025) as pure functions and networks as data."""

import lazy_loader

# The public names are listed once, in __init__.pyi; each is imported when it is first used, so that the command line
# starts at once.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
