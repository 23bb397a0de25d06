r"""Table 1: SEW-ResNet18 on ImageNet, unpruned: no ratios are published, T = 4.

Command: qpsnn run experiments/configs/imagenet_sew_resnet18.py --data.data_dir DIR \
    --out runs/imagenet_sew_resnet18 [--network.bits 8|4|2]
Hardware and time expected: eight data-centre GPUs of one machine, days (an estimate).
Paper (best test epoch): 61.36 % at 8 bits (13.28 MB), 58.06 % at 4 bits (7.71 MB).
Ours: not yet run.
"""

from setups import imagenet

config = imagenet("sew_resnet18", 8, {})
