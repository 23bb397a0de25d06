"""Functions of arrays: no Flax, no Optax, no files."""
