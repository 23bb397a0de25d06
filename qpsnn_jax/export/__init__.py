"""The compressed network leaves JAX: folded, as integers, as a small file, as C.

Only :mod:`~qpsnn_jax.export.folding` and :mod:`~qpsnn_jax.export.agreement` use JAX. What a device needs
(:mod:`~qpsnn_jax.export.folded`, :mod:`~qpsnn_jax.export.integer_network`) is NumPy alone.
"""
