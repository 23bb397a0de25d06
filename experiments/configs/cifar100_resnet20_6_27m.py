r"""Table 1: ResNet20 on CIFAR-100, 6.27M parameters, T = 2.

Command: qpsnn run experiments/configs/cifar100_resnet20_6_27m.py --data.data_dir DIR \
    --out runs/cifar100_resnet20_6_27m [--network.bits 8|4|2]
Hardware and time expected: one data-centre GPU, hours (an estimate).
Paper (best test epoch): 75.29 % at 8 bits (6.45 MB), 75.77 % at 4 bits (3.35 MB), 75.13 % at 2 bits (1.79 MB).
Ours: not yet run.
"""

from setups import cifar

config = cifar("cifar100", "resnet20", 2, {"stem": 0.1, "outputs": 0.3, "first": 0.3, "middle": 0.6})
