r"""Table 1: ResNet20 on CIFAR-10, 3.87M parameters, T = 2.

Command: qpsnn run experiments/configs/cifar10_resnet20_3_87m.py --data.data_dir DIR \
    --out runs/cifar10_resnet20_3_87m [--network.bits 8|4|2]
Hardware and time expected: one data-centre GPU, hours (an estimate).
Paper (best test epoch): 94.56 % at 8 bits (3.92 MB), 94.65 % at 4 bits (1.98 MB), 94.44 % at 2 bits (1.02 MB).
Ours: not yet run.
"""

from setups import cifar

config = cifar("cifar10", "resnet20", 2, {"stem": 0.1, "outputs": 0.35, "first": 0.35, "middle": 0.75})
