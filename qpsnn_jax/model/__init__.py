"""Networks as data, their execution and their costs."""

import lazy_loader

# Rooms that are imported when they are first used, so that the command line starts at once.
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules={"nodes", "zoo"})
