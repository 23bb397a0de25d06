"""Augmentation of images and event frames, inside jit and on the host."""
