"""A narrow (width 1/8) 2-bit ResNet20 on part of CIFAR-10: all stages on real images on a laptop's CPU.

Command: qpsnn run experiments/configs/cifar10_narrow.py --data_dir TFDS_DIR --out runs/cifar10_narrow
Hardware and time: 2 CPU cores, 6 minutes.
Ours, last / best epoch: quantized 35.50 / 35.50 %, fine-tuned 39.10 / 39.10 % at 45.4 % of the weights (seed 0).
"""

from qpsnn_jax import Config

config = Config(
    network="resnet20",
    width=0.125,
    bits=2,
    timesteps=2,
    ste="plain",
    data="cifar10",
    train_examples=3000,
    test_examples=1000,
    crop_padding=4,
    flip=True,
    epochs=12,
    batch_size=64,
    optimizer="adam",
    learning_rate=0.01,
    warmup_epochs=1.0,
    ratios={"stem": 0.1, "outputs": 0.3, "first": 0.3, "middle": 0.5},
    finetune_epochs=6,
    finetune_learning_rate=0.005,
    checkpoint_epochs=1,
)
