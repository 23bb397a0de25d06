"""What an integer network makes of test images."""

import numpy as np

from qpsnn_jax import IntegerNetwork
from qpsnn_jax.data import Arrays
from qpsnn_jax.export.folded import Folded


def classified_right(folded: Folded, test: Arrays) -> np.ndarray:
    """Whether the integers of a folded network classify each image correctly, bool ``b``."""
    return IntegerNetwork.of(folded)(test.images).argmax(1) == test.labels
