"""Optimizers, pure training steps, checkpoints."""
