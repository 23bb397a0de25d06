r"""Table 1: ResNet20 on CIFAR-10, 6.22M parameters, T = 2.

Command: qpsnn run experiments/configs/cifar10_resnet20_6_22m.py --data.data_dir DIR \
    --out runs/cifar10_resnet20_6_22m [--network.bits 8|4|2]
Hardware and time expected: one data-centre GPU, hours (an estimate).
Paper (best test epoch): 95.12 % at 8 bits (6.27 MB), 95.41 % at 4 bits (3.16 MB), 95.06 % at 2 bits (1.61 MB).
Ours: not yet run.
"""

from setups import cifar

config = cifar("cifar10", "resnet20", 2, {"stem": 0.1, "outputs": 0.3, "first": 0.3, "middle": 0.6})
