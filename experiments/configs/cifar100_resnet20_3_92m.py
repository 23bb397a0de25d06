r"""Table 1: ResNet20 on CIFAR-100, 3.92M parameters, T = 2.

Command: qpsnn run experiments/configs/cifar100_resnet20_3_92m.py --data.data_dir DIR \
    --out runs/cifar100_resnet20_3_92m [--network.bits 8|4|2]
Hardware and time expected: one data-centre GPU, hours (an estimate).
Paper (best test epoch): 74.78 % at 8 bits (4.1 MB), 74.73 % at 4 bits (2.17 MB), 73.89 % at 2 bits (1.2 MB).
Ours: not yet run.
"""

from setups import cifar

config = cifar("cifar100", "resnet20", 2, {"stem": 0.1, "outputs": 0.35, "first": 0.35, "middle": 0.75})
