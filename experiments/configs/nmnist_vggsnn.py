"""A narrow 2-bit VGGSNN on the N-MNIST recordings that are at hand: the event pipeline on a laptop's CPU.

Command: qpsnn run experiments/configs/nmnist_vggsnn.py --data_dir NMNIST_DIR --out runs/nmnist_vggsnn
Hardware and time: 2 CPU cores, 4 minutes for 500 + 100 recordings.
Ours, last / best epoch: quantized 96.00 / 96.00 %, fine-tuned 93.00 / 94.00 % at 42.2 % of the weights (seed 0).
"""

from qpsnn_jax import Config

config = Config(
    network="vggsnn",
    width=0.125,
    bits=2,
    timesteps=5,
    ste="plain",
    data="nmnist",
    roll=2,
    epochs=30,
    batch_size=25,
    optimizer="adam",
    learning_rate=0.005,
    warmup_epochs=1.0,
    ratios={"early": 0.3, "late": 0.4},
    score_batch_size=100,
    finetune_epochs=15,
    finetune_learning_rate=0.003,
    checkpoint_epochs=5,
)
