r"""Table 1: VGG-16 on CIFAR-100, 1.68M parameters, T = 4.

Command: qpsnn run experiments/configs/cifar100_vgg16_1_68m.py --data.data_dir DIR \
    --out runs/cifar100_vgg16_1_68m [--network.bits 8|4|2]
Hardware and time expected: one data-centre GPU, hours (an estimate).
Paper (best test epoch): 64.7 % at 8 bits (1.85 MB), 64.22 % at 4 bits (1.04 MB), 63.08 % at 2 bits (0.63 MB).
Ours: not yet run.
"""

from setups import cifar

config = cifar("cifar100", "vgg16", 4, {"early": 0.45, "late": 0.78})
