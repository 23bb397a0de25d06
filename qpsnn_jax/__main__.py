"""``python -m qpsnn_jax`` is ``qpsnn``."""

import sys

from qpsnn_jax.cli import main

sys.exit(main())
