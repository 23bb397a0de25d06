r"""ResNet20 on CIFAR-10 in a packed file of at most 98,496 bytes, the size of MLPerf Tiny's reference network; T = 2.

Wide, quantized with 8 bits in the first and last layer, pruned under a budget of bytes, recalibrated, and fine-tuned.
It has what led on held-out images (experiments/worth.md): `edges` and the budget, and no teacher, which did not.
The budget counts Eq. 16; the file adds a header and less than 5 kB, so that 93 kB of it are about 98 kB of file.

The network `cifar10-98kb` of the package was trained by another recipe, that of experiments/claims.md.

Command: qpsnn run experiments/configs/cifar10_98kb.py --data.data_dir DIR --out runs/cifar10_98kb
    qpsnn export runs/cifar10_98kb --format packed --out cifar10_98kb.qpsnn
Hardware and time expected: hours on 2 CPU cores (an estimate).
Ours: not yet run.
"""

from dataclasses import replace

from qpsnn_jax import Config, Training
from qpsnn_jax.data.settings import DataSettings
from qpsnn_jax.model.settings import NetworkSettings
from qpsnn_jax.pruning.settings import Pruning
from qpsnn_jax.runs.settings import RunSettings

train = Training(
    epochs=60,
    batch_size=128,
    optimizer="adam",
    learning_rate=0.01,
    warmup_epochs=1.0,
    label_smoothing=0.1,
    ema_decay=0.995,
    recalibrate_images=2560,
)
config = Config(
    network=NetworkSettings("resnet20", width=0.25, ste="plain", edge_bits=8),
    data=DataSettings("cifar10", crop_padding=4, flip=True),
    train=train,
    prune=Pruning(budget="93kB", floor=0.2, recalibrate="always"),
    finetune=replace(train, epochs=40, learning_rate=0.005),
    run=RunSettings(checkpoint_epochs=1),
)
