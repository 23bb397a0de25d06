"""Networks, each a function that returns a :class:`qpsnn_jax.Graph`."""

from qpsnn_jax.zoo.resnet20 import resnet20
from qpsnn_jax.zoo.vgg16 import vgg16

__all__ = ["NETWORKS", "resnet20", "vgg16"]

NETWORKS = {"resnet20": resnet20, "vgg16": vgg16}
