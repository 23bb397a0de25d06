r"""Table 1: VGG-16 on CIFAR-10, 4.25M parameters, T = 4.

Command: qpsnn run experiments/configs/cifar10_vgg16_4_25m.py --data.data_dir DIR \
    --out runs/cifar10_vgg16_4_25m [--network.bits 8|4|2]
Hardware and time expected: one data-centre GPU, hours (an estimate).
Paper (best test epoch): 91.98 % at 8 bits (4.28 MB), 91.9 % at 4 bits (2.16 MB), 91.61 % at 2 bits (1.1 MB).
Ours: not yet run.
"""

from setups import cifar

config = cifar("cifar10", "vgg16", 4, {"early": 0.45, "late": 0.51})
