"""Data sets as arrays, and augmentation inside jit."""
