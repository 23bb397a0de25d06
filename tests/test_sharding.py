"""Several devices give what one gives, and send no activations about; eight CPU devices in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qpsnn_jax import train
from qpsnn_jax.config import Config

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE)])
    command = [sys.executable, str(HERE / "on_eight_devices.py"), str(tmp_path_factory.mktemp("eight"))]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_a_step_on_eight_devices_equals_that_on_one(eight):
    assert eight["steps"]["devices"] == 8
    assert eight["steps"]["apart"] < 1e-5  # batch statistics included
    assert eight["steps"]["loss"] < 1e-5


def test_devices_exchange_reductions_only(eight):
    assert eight["steps"]["moved"] == []
    assert eight["steps"]["reductions"] > 0


def test_scores_are_the_same_on_any_number_of_devices(eight):
    assert eight["steps"]["scores"] == 0


@pytest.mark.parametrize("devices", ["1", "2", "8"])
def test_a_checkpoint_of_eight_devices_goes_on_with_any_number(eight, devices):
    assert eight["fits"][devices]["apart"] < 1e-5
    assert eight["fits"][devices]["accuracy"] == 0


def test_devices_that_cannot_share_a_batch_are_refused(monkeypatch):
    class Mesh:
        size = 3

    monkeypatch.setattr(train, "data_mesh", Mesh)
    with pytest.raises(ValueError, match="batch_size 32 must be a multiple of the 3 devices that share it"):
        train.mesh_of(Config(data="digits", batch_size=32))
