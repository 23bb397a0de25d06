"""Arguments that are a path, or the name of a pretrained network."""

from pathlib import Path
from typing import Any

import click


class _Network(click.Path):
    """The directory of a run, of a stage or of an imported network; a pretrained name becomes that of its run."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path: Any = super().convert(value, param, ctx)
        if Path(path).is_file():
            raise ValueError(f"{path} is a file; give the directory of a run (qpsnn info and infer take packed files).")
        if Path(path).exists():
            return path
        from qpsnn_jax.export.pretrained import closest, names
        from qpsnn_jax.runs.pretrained import find

        if str(path) not in names() and (close := closest(str(path))):
            raise ValueError(f"{path} does not exist; did you mean the pretrained network {close}?")
        return find(path)


class _Packed(click.Path):
    """A packed file; a pretrained name becomes that of its file."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path: Any = super().convert(value, param, ctx)
        from qpsnn_jax.export.pretrained import names, packed_path

        if Path(path).is_dir():
            raise ValueError(f"{path} is a directory; write its packed file first, by qpsnn export.")
        known = value in names() or Path(path).suffix != ".qpsnn"
        return packed_path(value) if known and not Path(path).exists() else path


NETWORK = _Network(path_type=Path)
PACKED = _Packed(path_type=Path)
