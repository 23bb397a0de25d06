"""The directory of a run of a pretrained network, so that its name stands wherever a run does."""

import shutil
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from qpsnn_jax.export import unfolding
from qpsnn_jax.export.packed.file import load_packed
from qpsnn_jax.export.pretrained import FOLDER, Card, cards, names, packed_path, pretrained
from qpsnn_jax.runs.config import Config
from qpsnn_jax.runs.directory import load_network, parse_config, read_stage, save_network, with_circumstances
from qpsnn_jax.runs.records import StageResult, write_checked, write_result
from qpsnn_jax.runs.report import aligned
from qpsnn_jax.runs.statistics import packed_statistics
from qpsnn_jax.runtime.files import user_cache
from qpsnn_jax.runtime.lock import directory_lock
from qpsnn_jax.runtime.processes import fail_together, on_process_zero
from qpsnn_jax.runtime.settings import from_dict


def find(path: Path) -> Path:
    """``path``, or, if nothing is there and it is the name of a pretrained network, the directory of a run of it.

    The run is written to the user's cache when it is first asked for. It has the stage ``finetuned``.

    Raises:
        ValueError: there is no home directory for the cache.
    """
    name = str(path)
    if path.exists() or name not in names():
        return path
    try:
        place = user_cache() / "pretrained" / f"{_checksum(name):08x}" / name
    except RuntimeError as error:
        raise ValueError(f"{name} is unpacked into the user's cache, and {error}; set XDG_CACHE_HOME.") from None
    if not (place / "finetuned" / "final").exists():
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            made = Path(folder) / name
            write_run(name, made, ("finetuned",))
            try:
                made.rename(place)
            except OSError:
                if not place.exists():  # else another process was faster
                    raise
    return place


def start_from(name: str, directory: Path) -> None:
    """Write the directory of a new run whose pruned network is a pretrained one, unless this run is there already.

    It is written beside, and renamed when it is whole, so that a program that is killed leaves nothing that is half a
    run. Several processes of one run call this together.

    Raises:
        ValueError: there is no such network, the directory holds something else, or another program does the same at
            this moment.
        OSError: the directory cannot be written.
    """
    if not _occupied(directory):
        _start(name, directory.absolute())
    _check_begun(name, directory)


def _start(name: str, directory: Path) -> None:
    unfinished = directory.with_name(f".{directory.name}.unfinished")
    with directory_lock(unfinished):
        made = unfinished / "run"
        if not _occupied(directory):
            on_process_zero(lambda: shutil.rmtree(made, ignore_errors=True))
            write_run(name, made, ("quantized", "pruned"))
            on_process_zero(lambda: made.rename(directory))
        on_process_zero(lambda: shutil.rmtree(unfinished, ignore_errors=True))


@fail_together
def _occupied(directory: Path) -> bool:
    return directory.exists() and (not directory.is_dir() or any(directory.iterdir()))


@fail_together
def _check_begun(name: str, directory: Path) -> None:
    """Check that the run in a directory is the one that began with this network.

    A run with the same settings that trained its own network has another graph: that of this one was unfolded.
    """
    if not (directory / "config.json").is_file():
        raise ValueError(f"{directory} exists and is not the directory of a run; choose another --out.")
    config = from_dict(Config, load_packed(packed_path(name)).notes["config"])
    same = with_circumstances(parse_config(directory), config) == config
    begun = same and read_stage(directory, "pruned") is not None
    if not begun or load_network(directory / "pruned")[0] != pretrained(name)[0]:
        raise ValueError(f"{directory} holds another run; choose another --out.")


def write_run(name: str, directory: Path, stages: Sequence[str]) -> None:
    """Write the directory of a run whose ``stages`` are complete and hold a pretrained network.

    Args:
        name: of the network.
        directory: a new one.
        stages: of :data:`~qpsnn_jax.runs.directory.STAGES`.

    Raises:
        ValueError: there is no such network.
        OSError: the directory exists, or cannot be written.
    """
    packed, card = load_packed(packed_path(name)), cards()[name]
    graph, variables = pretrained(name)
    on_process_zero(lambda: directory.mkdir(parents=True))
    statistics = {name: list(values) for name, values in packed_statistics(packed)._asdict().items()}
    origin = {key: packed.notes[key] for key in ("config", "versions")}
    write_checked(directory / "config.json", origin)
    for stage in stages:
        notes = {"class_names": list(packed.class_names)}
        save_network(directory / stage / "final", graph, variables, {**notes, **statistics})
        result = StageResult(**{**card.result, "name": stage})
        write_result(directory / stage / "stage.json", result, epochs=[], keep={}, **notes)


def cards_table() -> str:
    """All pretrained networks as a Markdown table."""
    rows = [("name", "data", "accuracy", "file", "SOPs", "energy", "seeds")]
    rows += [
        (
            card.name,
            card.data,
            f"{100 * card.accuracy:.2f} %",
            f"{packed_path(card.name).stat().st_size:,} bytes",
            f"{card.result['sops_total'] / 1e6:.3f} M",
            f"{1000 * card.result['energy_mj']:.3f} µJ",
            str(len(card.seeds)),
        )
        for card in cards().values()
    ]
    return aligned(rows)


def card_text(card: Card) -> str:
    """A card as lines of text."""
    seeds = ", ".join(f"{100 * accuracy:.2f} % (seed {seed})" for seed, accuracy in card.seeds.items())
    result = card.result
    lines = {
        "data": card.data,
        "accuracy": f"{100 * card.accuracy:.2f} % of {card.test_images:,} test images, integer network, last epoch",
        "seeds": f"{seeds}; this one is seed {card.seed}",
        "file": f"{packed_path(card.name).stat().st_size:,} bytes",
        "weights": f"{result['params']:,} parameters, {100 * result['connection_ratio']:.1f} % of the connections left",
        "operations": f"{result['sops_total'] / 1e6:.3f} million SOPs, {1000 * result['energy_mj']:.3f} µJ an image",
        "made by": card.command,
        "commit": card.commit,
    }
    return "\n".join([card.name, *(f"  {name:11} {text}" for name, text in lines.items())])


def _checksum(name: str) -> int:
    """Of all that the run of a network is made from: its files, and the code that unfolds it and writes the run."""
    total = 0
    for source in (unfolding.__file__, __file__):
        total = zlib.crc32(Path(source).read_bytes(), total)
    for suffix in ("qpsnn", "npz", "json"):
        total = zlib.crc32((FOLDER / f"{name}.{suffix}").read_bytes(), total)
    return total
