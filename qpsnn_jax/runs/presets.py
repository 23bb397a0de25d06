"""Runs that have a name."""

from qpsnn_jax.runs.config import Config

PRESETS: dict[str, Config] = {
    "digits": Config(
        data="digits",
        width=0.125,
        timesteps=2,
        ste="plain",
        degrees=10.0,
        scale=0.1,
        translate=0.08,
        epochs=45,
        batch_size=48,
        optimizer="adam",
        learning_rate=0.015,
        warmup_epochs=1.0,
        ratios={"stem": 0.1, "outputs": 0.3, "first": 0.3, "middle": 0.5},
        label_smoothing=0.1,
        average=0.97,
        finetune_epochs=35,
        finetune_optimizer="adam",
        finetune_learning_rate=0.0075,
        checkpoint_epochs=25,
    ),
}
