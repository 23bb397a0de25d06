"""Kernels in C++ that XLA calls on a CPU, compiled at first use; each also exists in plain JAX."""
