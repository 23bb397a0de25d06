r"""Table 1: VGG-16 on TinyImageNet, 3.43M parameters, T = 4.

Command: qpsnn run experiments/configs/tiny_imagenet_vgg16_3_43m.py --data.data_dir DIR \
    --out runs/tiny_imagenet_vgg16_3_43m [--network.bits 8|4|2]
Hardware and time expected: one data-centre GPU, about a day (an estimate).
Paper (best test epoch): 51.99 % at 8 bits (4.67 MB), 51.78 % at 4 bits (3.17 MB), 51.67 % at 2 bits (2.41 MB).
Ours: not yet run.
"""

from setups import tiny_imagenet

config = tiny_imagenet("vgg16", {"early": 0.45, "late": 0.62})
