"""Data sets as arrays or files, and augmentation inside jit.

``load("digits")`` needs no files; ``load("cifar10", data_dir=…)`` reads a folder that TensorFlow Datasets prepared.
Every loader returns a :class:`DataSet` of uint8 images; normalization (:mod:`qpsnn_jax.numerics.normalization`) and
augmentation (:mod:`qpsnn_jax.data.augment`) run inside the training step.
"""

import lazy_loader

# Each name of __init__.pyi is imported when it is first used, so that the command line starts at once.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
