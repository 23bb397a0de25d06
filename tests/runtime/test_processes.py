"""Two real processes, joined by jax.distributed, share one run, with the result of a single process."""

import json
import os
import shlex
import signal
import socket
import time
from pathlib import Path

import in_processes
import jax
import numpy as np
import pytest
from forked import Forked
from small_runs import records

from qpsnn_jax.runs.directory import STAGES, load_network
from qpsnn_jax.runs.records import read_notes
from qpsnn_jax.runtime import processes

SMALL = shlex.split(
    "digits --network.name small_runs:single --data.train_examples 192 --data.test_examples 60 "
    "--train.batch_size 32 --finetune.batch_size 32 --train.epochs 2 --finetune.epochs 1 "
    "--prune.ratios middle=0.55 --prune.score_batches 1 --prune.score_batch_size 64 --prune.sparsity 0.5 "
    "--run.checkpoint_steps 4"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def started(directory: Path, *options: str, count: int = 1, devices: int = 1, odd: tuple[str, ...] = ()) -> list:
    """A run in ``count`` processes with ``devices`` CPU devices each; the last has the ``odd`` options too."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    command = ["run", *SMALL, "--out", str(directory), *options]
    joining = ["--processes", str(count), "--coordinator", f"localhost:{free_port()}"] if count > 1 else []
    own = [[*joining, "--process-id", str(i)] if joining else [] for i in range(count)]
    own[-1] += odd
    return [Forked([*command, *place], in_processes.work, {"XLA_FLAGS": flags}) for place in own]


def ended(running: list[Forked], *status: int) -> list[tuple[str, str]]:
    """Standard output and error of each process, once all have ended with the status."""
    return [process.ended(*status) for process in running]


def losses(directory: Path, stage: str) -> list[float]:
    return [json.loads(line)["loss"] for line in (directory / stage / "metrics.jsonl").read_text().splitlines()]


def shown(directory: Path) -> list[dict]:
    return records(json.loads((directory / "report.json").read_text()))


def test_two_processes_stopped_and_resumed_do_what_one_does(tmp_path):
    """Process 0 is killed, then the other gets SIGTERM; they go on with sharded weights, like one alone."""
    two, one = tmp_path / "two", tmp_path / "one"
    reference, pair = started(one, devices=2), started(two, count=2)
    pair[0].wait_until((two / "quantized" / "step_4").exists)  # of twelve
    pair[0].send(signal.SIGKILL)
    killed = time.monotonic()
    for _, complaint in ended(pair, -signal.SIGKILL, -signal.SIGABRT, 1):
        last = complaint.splitlines()[-1]
        assert last.startswith("qpsnn: error: a process of this run died. Start all of them again with the same")
        assert "Traceback" not in complaint
    assert time.monotonic() - killed < 60

    pair = started(two, count=2)
    pair[0].wait_until((two / "quantized" / "step_8").exists)
    pair[1].send(signal.SIGTERM)
    for _, complaint in ended(pair, 128 + signal.SIGTERM):
        last = complaint.splitlines()[-1]
        assert last == "qpsnn: stopped; the same command resumes a run from its last checkpoint."
    stopped = len(losses(two, "quantized"))
    assert (two / "quantized" / f"step_{stopped}" / "meta.json").exists()
    assert not (two / "quantized" / "stage.json").exists()

    (said, progress), (other, silence) = ended(started(two, "--run.fsdp", "true", count=2), 0)
    (alone, _) = ended(reference, 0)[0]
    assert "finetuned: epoch 1/1" in progress
    assert "epoch" not in silence
    assert "report.md" in said
    assert "report.md" not in other

    for stage in STAGES:
        (graph, found), (expected_graph, expected) = load_network(two / stage), load_network(one / stage)
        assert graph == expected_graph
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), found, expected)
    for stage in ("quantized", "finetuned"):
        np.testing.assert_allclose(losses(two, stage), losses(one, stage), rtol=0, atol=1e-5)
    kept = [read_notes(place / "pruned" / "stage.json", "keep") for place in (two, one)]
    assert kept[0] == kept[1]
    for found, expected in zip(shown(two), shown(one), strict=True):
        assert found["accuracy_last"] == expected["accuracy_last"]
        assert found["sops_total"] == pytest.approx(expected["sops_total"], rel=1e-5)

    # Each process reads its own part of a batch, and the same part when it goes on.
    first, second, both = (json.loads(text.splitlines()[-1]) for text in (said, other, alone))
    assert first["state"] == second["state"] == both["state"]
    assert first["resumes"]
    assert second["resumes"]
    for mine, yours, whole in zip(first["rows"], second["rows"], both["rows"], strict=True):
        assert [list(rows) for rows in (mine, yours, whole)] == [["0"], ["2"], ["0", "2"]]
        assert len({*mine["0"], *yours["2"]}) == len({*whole["0"], *whole["2"]}) == 4
    assert len({x for rows in (*first["rows"], *second["rows"]) for part in rows.values() for x in part}) == 20


def test_processes_that_do_not_run_the_same_all_end(tmp_path):
    pair = started(tmp_path / "run", count=2, odd=("--run.seed", "1"))
    (first, second) = (complaint.splitlines()[-1] for _, complaint in ended(pair, 2))
    assert first == "qpsnn: error: another process failed; see its error."
    assert second.startswith(f"qpsnn: error: {tmp_path / 'run'} holds another run (run.seed is 0 there and 1 here)")


def test_a_process_alone_waits_for_nobody(tmp_path):
    done = []
    processes.barrier("nobody comes")
    processes.on_process_zero(lambda: done.append(1))
    processes.write_on_process_zero(tmp_path / "file", b"whole")
    assert done == [1]
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert processes.is_process_zero()
    answers = iter([False, True])
    question = processes.any_process(lambda: next(answers))
    assert [question(), question()] == [False, True]


ADDRESS = "coordinator must be HOST:PORT with a port of 1 to 65535, the same for all processes"


def test_a_port_that_is_taken_raises():
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        message = f"process 0 cannot listen at port {port} .Address already in use.; choose another"
        with pytest.raises(ValueError, match=message):
            processes.initialize(2, 0, f"localhost:{port}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, "host:1"), "process-id must be at least 0 and below processes, got 0 of 0."),
        ((2, 2, "host:1"), "process-id must be at least 0 and below processes, got 2 of 2."),
        ((2, -1, "host:1"), "process-id must be at least 0 and below processes, got -1 of 2."),
        ((2, 1, "host"), f"{ADDRESS}, got 'host'."),
        ((2, 1, "host:port"), f"{ADDRESS}, got 'host:port'."),
        ((2, 1, "localhost:99999"), f"{ADDRESS}, got 'localhost:99999'."),
        ((2, 0, "localhost:0"), f"{ADDRESS}, got 'localhost:0'."),
        ((2, 1, "no.host.invalid:80"), "coordinator 'no.host.invalid:80' names a host that cannot be resolved."),
    ],
)
def test_what_cannot_be_joined_raises(arguments, message):
    with pytest.raises(ValueError) as caught:
        processes.initialize(*arguments)
    assert str(caught.value) == message
