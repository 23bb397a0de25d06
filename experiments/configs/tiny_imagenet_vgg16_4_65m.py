r"""Table 1: VGG-16 on TinyImageNet, 4.65M parameters, T = 4.

Command: qpsnn run experiments/configs/tiny_imagenet_vgg16_4_65m.py --data.data_dir DIR \
    --out runs/tiny_imagenet_vgg16_4_65m [--network.bits 8|4|2]
Hardware and time expected: one data-centre GPU, about a day (an estimate).
Paper (best test epoch): 53.32 % at 8 bits (5.9 MB), 53.11 % at 4 bits (3.78 MB), 53.07 % at 2 bits (2.72 MB).
Ours: not yet run.
"""

from setups import tiny_imagenet

config = tiny_imagenet("vgg16", {"early": 0.45, "late": 0.51})
