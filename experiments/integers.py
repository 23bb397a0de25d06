"""What an integer network makes of test images."""

import numpy as np

from qpsnn_jax import IntegerNetwork
from qpsnn_jax.data import Arrays
from qpsnn_jax.export.folded import Folded

_BATCH = 250


def classified_right(folded: Folded, test: Arrays) -> np.ndarray:
    """Whether the integers of a folded network classify each image correctly, bool ``b``."""
    network, starts = IntegerNetwork.of(folded), range(0, len(test.labels), _BATCH)
    found = [network(test.images[i : i + _BATCH]).argmax(1) for i in starts]
    return np.concatenate(found) == test.labels
