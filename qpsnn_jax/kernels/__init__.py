"""Exact convolutions and their gradients, one file for each algorithm; dispatch.py selects."""
