r"""ResNet20 or VGG-16 on CIFAR-10 at the sizes of the paper's Table 1, trained in slices on one accelerator.

The data lie on the device, an epoch is one program, a slice is one epoch. After every slice the state is saved, so that
the command can stop after some minutes and go on when it is given again. Phases: T = 1, then T = 2, quantized with
learned γ; pruned under the budget of bytes; batch-norm recalibrated; fine-tuned at T = 1, then T = 2, with the unpruned
network as teacher. Arithmetic is bfloat16 on float32 weights. No choice uses the test images; they are read once, with
the weights of the last epoch.

Command: python -m experiments.cifar10_fast --size 1.61 --minutes 8 --out runs/fast_1_61 --data-dir DIR
    python -m experiments.cifar10_fast --size 1.02 --minutes 8 --out runs/fast_1_02 --data-dir DIR
    python -m experiments.cifar10_fast --network vgg16 --size 1.10 --timesteps 4 --minutes 8 --out runs/fast_vgg \
        --data-dir DIR
    python -m experiments.cifar10_fast --count
Paper (Table 1, best epoch): 95.06 % at 1.61 MB, 94.44 % at 1.02 MB. Aim: more, at the last epoch, in 25 minutes of an
    H200.
Ours: not yet run.
"""
