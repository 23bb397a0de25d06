r"""Table 1: VGG-16 on CIFAR-10, 1.42M parameters, T = 4.

Command: qpsnn run experiments/configs/cifar10_vgg16_1_42m.py --data.data_dir DIR \
    --out runs/cifar10_vgg16_1_42m [--network.bits 8|4|2]
Hardware and time expected: one data-centre GPU, hours (an estimate).
Paper (best test epoch): 91.3 % at 8 bits (1.45 MB), 91.19 % at 4 bits (0.74 MB), 90.59 % at 2 bits (0.39 MB).
Ours: not yet run.
"""

from setups import cifar

config = cifar("cifar10", "vgg16", 4, {"early": 0.49, "late": 0.8})
