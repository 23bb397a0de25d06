"""Networks, each a function that returns a :class:`qpsnn_jax.Graph`."""

from qpsnn_jax.model.zoo.resnet20 import resnet20
from qpsnn_jax.model.zoo.separable import ds_cnn, mobilenet
from qpsnn_jax.model.zoo.sew_resnet18 import sew_resnet18
from qpsnn_jax.model.zoo.spikingformer import spikingformer
from qpsnn_jax.model.zoo.vgg import vgg16, vggsnn

__all__ = ["ds_cnn", "mobilenet", "resnet20", "sew_resnet18", "spikingformer", "vgg16", "vggsnn"]
