"""Exports of a compressed network: folded, as integers, as a packed file, as C, ONNX, NIR or StableHLO.

The parts for a device use only NumPy (:mod:`~qpsnn_jax.export.folded`, :mod:`~qpsnn_jax.export.integer_network`,
:mod:`~qpsnn_jax.export.packed`, :mod:`~qpsnn_jax.export.c.source`). JAX is used to fold a trained network, to
compare it with its exports, and for StableHLO; NIR holds folded float32 weights.
"""

# The exports that start from codes, scales and biases; the others start from the float network.
FOLDED = ("packed", "c", "onnx")
FORMATS = (*FOLDED, "nir", "stablehlo")
