"""The command ``qpsnn``, also as ``python -m qpsnn_jax``."""

import sys

from qpsnn_jax.runs.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
