"""Compressing spiking neural networks in JAX: QP-SNN (ICLR 2025) as pure functions and networks as data."""
