"""The compressed network leaves JAX: folded, as integers, as a small file, as C, ONNX or NIR.

What a device needs is NumPy alone (:mod:`~qpsnn_jax.export.folded`, :mod:`~qpsnn_jax.export.integer_network`,
:mod:`~qpsnn_jax.export.packed`, :mod:`~qpsnn_jax.export.c.source`). JAX is used to fold a trained network, to
compare it with what left, and for StableHLO; NIR holds folded float32 weights.
"""

# The exports that start from codes, scales and biases; the others take the float network as it is.
FOLDED = ("packed", "c", "onnx")
FORMATS = (*FOLDED, "nir", "stablehlo")
