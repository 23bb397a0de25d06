"""Arguments that are a path, or the name of a pretrained network."""

from pathlib import Path
from typing import Any

import click


class _Network(click.Path):
    """The directory of a run, of a stage or of an imported network; a pretrained name becomes that of its run."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path: Any = super().convert(value, param, ctx)
        if Path(path).exists():
            return path
        from qpsnn_jax.runs.pretrained import find

        return find(path)


class _Packed(click.Path):
    """A packed file; a pretrained name becomes that of its file."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path: Any = super().convert(value, param, ctx)
        from qpsnn_jax.export.pretrained import names, packed_path

        return path if Path(path).exists() or value not in names() else packed_path(value)


NETWORK = _Network(path_type=Path)
PACKED = _Packed(path_type=Path)
