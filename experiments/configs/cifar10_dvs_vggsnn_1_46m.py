r"""Table 1: VGGSNN on CIFAR10-DVS, 1.46M parameters, T = 10.

Command: qpsnn run experiments/configs/cifar10_dvs_vggsnn_1_46m.py --data.data_dir DIR \
    --out runs/cifar10_dvs_vggsnn_1_46m [--network.bits 8|4|2]
Hardware and time expected: one data-centre GPU, hours (an estimate).
Paper (best test epoch): 82.1 % at 8 bits (1.61 MB), 81.8 % at 4 bits (0.9 MB), 81.3 % at 2 bits (0.55 MB).
Ours: not yet run.
"""

from setups import dvs

config = dvs({"early": 0.5, "late": 0.7})
