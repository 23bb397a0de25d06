r"""Table 1: VGGSNN on CIFAR10-DVS, 0.9M parameters, T = 10.

Command: qpsnn run experiments/configs/cifar10_dvs_vggsnn_0_9m.py --data.data_dir DIR \
    --out runs/cifar10_dvs_vggsnn_0_9m [--network.bits 8|4|2]
Hardware and time expected: one data-centre GPU, hours (an estimate).
Paper (best test epoch): 81.5 % at 8 bits (1.05 MB), 80.9 % at 4 bits (0.62 MB), 80.5 % at 2 bits (0.41 MB).
Ours: not yet run.
"""

from setups import dvs

config = dvs({"early": 0.5, "late": 0.8})
