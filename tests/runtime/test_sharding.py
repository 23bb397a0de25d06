"""Several devices compute what one computes, and exchange no activations; eight CPU devices in another process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qpsnn_jax.runs import loop

HERE = Path(__file__).parents[1]


def test_eight_devices_do_what_one_does(tmp_path):
    """One test, because the process with eight devices runs only once."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE)])
    command = [sys.executable, str(HERE / "on_eight_devices.py"), str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["steps"]["devices"] == 8
    assert found["steps"]["apart"] < 1e-5  # batch statistics included
    assert found["steps"]["moved"] == []
    assert found["steps"]["reductions"] > 0
    assert found["steps"]["scores"] == 0
    assert found["sums"] == {name: {"apart": 0, "held": 2, "moved": []} for name in ("bfloat16", "int8")}
    # Sharded weights are gathered where they are used; apart from that only sums are communicated.
    assert found["cuts"]["apart"] < 1e-5
    assert max(found["cuts"]["held"]) < 0.13
    assert found["cuts"]["kinds"] == ["all-gather"]
    assert found["cuts"]["sent"] == found["cuts"]["weights"]
    assert found["cuts"]["strange"] == []
    # A checkpoint of eight devices goes on with one and with two.
    assert found["fits"]["apart"] < 1e-5
    assert found["fits"]["accuracy"] == 0
    assert found["explicit"] < 1e-5
    # As a TPU gets it: gradients and the sums of batch norm and metrics; weights are gathered where they are sharded.
    counted = found["layouts"]
    (number, sent), weights = counted["data"]["all-reduce"], counted["weights"]
    assert counted["data"].keys() == {"all-reduce"}
    assert weights < sent < weights + 2000
    assert counted["fsdp"]["all-reduce"] == [number, sent]
    assert counted["fsdp"]["all-gather"][0] == found["cuts"]["weights"]
    assert counted["data×model"].keys() == {"all-reduce", "all-gather"}


def test_devices_that_cannot_share_a_batch_raise(monkeypatch):
    class Mesh:
        size = 3

    monkeypatch.setattr(loop, "data_mesh", Mesh)
    with pytest.raises(ValueError, match="batch_size 32 must be a multiple of the 3 devices that share it"):
        loop.batch_mesh(32)
