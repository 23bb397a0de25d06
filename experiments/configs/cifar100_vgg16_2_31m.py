r"""Table 1: VGG-16 on CIFAR-100, 2.31M parameters, T = 4.

Command: qpsnn run experiments/configs/cifar100_vgg16_2_31m.py --data.data_dir DIR \
    --out runs/cifar100_vgg16_2_31m [--network.bits 8|4|2]
Hardware and time expected: one data-centre GPU, hours (an estimate).
Paper (best test epoch): 66.69 % at 8 bits (2.48 MB), 66.21 % at 4 bits (1.35 MB), 65.69 % at 2 bits (0.79 MB).
Ours: not yet run.
"""

from setups import cifar

config = cifar("cifar100", "vgg16", 4, {"early": 0.45, "late": 0.7})
