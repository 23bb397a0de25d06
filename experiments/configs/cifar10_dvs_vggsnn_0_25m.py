r"""Table 1: VGGSNN on CIFAR10-DVS, 0.25M parameters, T = 10.

Command: qpsnn run experiments/configs/cifar10_dvs_vggsnn_0_25m.py --data.data_dir DIR \
    --out runs/cifar10_dvs_vggsnn_0_25m [--network.bits 8|4|2]
Hardware and time expected: one data-centre GPU, hours (an estimate).
Paper (best test epoch): 75.9 % at 8 bits (0.4 MB), 75.4 % at 4 bits (0.29 MB), 74.9 % at 2 bits (0.24 MB).
Ours: not yet run.
"""

from setups import dvs

config = dvs({"early": 0.82, "late": 0.93})
