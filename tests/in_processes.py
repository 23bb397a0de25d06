"""What each process of runtime/test_processes.py runs: the command line, and then a feed of files."""

import json

import numpy as np

from qpsnn_jax.data.dataset import Files
from qpsnn_jax.data.feed import feed
from qpsnn_jax.runs import plots
from qpsnn_jax.runs.cli.main import main
from qpsnn_jax.runtime.sharding import data_mesh


class Numbers:
    """Examples that are their own number."""

    def __len__(self):
        return 23

    def __getitem__(self, index):
        return int(index)


def pictured(number, rng):
    del rng
    return {"image": np.full((2, 2, 1), number, np.uint8), "label": np.int32(number)}


def fed() -> dict:
    """The rows of every batch that lie with this process, by their place in it, and the state after the second."""
    batches = feed(Files(Numbers(), (2, 2, 1), pictured, pictured), 4, 0, mesh=data_mesh())
    rows, state = [], {}
    for number in range(5):
        labels = next(batches).labels
        shards = sorted(labels.addressable_shards, key=lambda shard: shard.index[0].start)
        rows.append({shard.index[0].start: np.asarray(shard.data).tolist() for shard in shards})
        if number == 1:
            state = batches.get_state()
    batches.set_state(state)
    again = [np.asarray(shard.data).tolist() for shard in next(batches).labels.addressable_shards]
    batches.close()
    return {"rows": rows, "state": state, "resumes": again == list(rows[2].values())}


def work(arguments: list[str]) -> int:
    plots.draw_all = lambda *_: []  # nobody looks at them
    status = main(arguments)
    if status == 0:
        print(json.dumps(fed()))
    return status
