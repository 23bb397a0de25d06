"""Exact convolutions and their gradients, one algorithm a file; dispatch.py chooses."""
