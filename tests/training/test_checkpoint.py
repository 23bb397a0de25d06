"""Checkpoints are restored bit for bit or raise."""

import json
import os
import re
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import random_variables, residual_graph
from small_runs import contents

from qpsnn_jax.model.nodes import Quantizer
from qpsnn_jax.runs.directory import load_network, save_network
from qpsnn_jax.runtime.keys import key_to_data
from qpsnn_jax.training import checkpoint
from qpsnn_jax.training.optim import optimizer
from qpsnn_jax.training.state import init_state

GRAPH = residual_graph(Quantizer(2, granularity="channel"))
NOTES = {"epochs": [{"epoch": 1, "train_loss": 0.1}], "seconds": 1.5}


def state_of(graph=GRAPH, name="adam", *, ema=False, seed=0):
    variables = jax.tree.map(jnp.asarray, random_variables(graph, seed))
    return init_state(variables, optimizer(name, 0.1), jax.random.key(7), ema=ema)._replace(step=jnp.int32(12))


def same(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    tree, expected = (jax.tree.map(key_to_data, each) for each in (tree, expected))
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    checkpoint.save(directory, 12, GRAPH, state_of(), NOTES)
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_training_state_comes_back_bit_for_bit(tmp_path, name, ema):
    state = state_of(name=name, ema=ema)
    kernel = state.variables["params"]["conv1"]["kernel"]
    odd = kernel.at[0, 0, 0, :3].set(jnp.array([-0.0, 1e-45, 3e38]))
    state.variables["params"]["conv1"]["kernel"] = odd
    path = checkpoint.save(tmp_path / "new" / "folder", 12, GRAPH, state, NOTES)
    found = checkpoint.latest(tmp_path / "new" / "folder")
    assert found is not None
    assert (found.path, found.step, found.graph, found.notes) == (path, 12, GRAPH, NOTES)
    same(checkpoint.restore(found, state), state)
    same(checkpoint.restore(found, jax.eval_shape(lambda: state)), state)


def test_nothing_is_found_where_nothing_is(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "absent") is None


def test_the_last_two_are_kept(tmp_path):
    state = {"x": jnp.arange(3)}
    for step in (5, 9, 10, 100):
        checkpoint.save(tmp_path, step, GRAPH, {"x": state["x"] + step}, NOTES)
    assert {path.name for path in tmp_path.iterdir()} == {"step_10", "step_100"}
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 100
    same(checkpoint.restore(found, state), {"x": state["x"] + 100})


def test_what_a_killed_write_leaves_is_ignored_and_replaced(copy):
    left = copy / "step_13.tmp"
    (left / "arrays").mkdir(parents=True)
    (left / "meta.json").write_text("{")
    found = checkpoint.latest(copy)
    assert found is not None
    assert found.step == 12
    checkpoint.save(copy, 13, GRAPH, state_of(seed=1), NOTES)
    assert {path.name for path in copy.iterdir()} == {"step_12", "step_13"}
    found = checkpoint.latest(copy)
    assert found is not None
    same(checkpoint.restore(found, state_of()), state_of(seed=1))


def test_a_name_appears_only_when_the_checkpoint_is_whole(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, 1, GRAPH, {"x": jnp.arange(3)}, NOTES)
    assert checkpoint.latest(tmp_path) is None


def test_all_of_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    flushed, real = [], checkpoint.os.replace
    sync = os.fsync

    def synced(number):
        flushed.append(os.readlink(f"/proc/self/fd/{number}"))
        sync(number)

    def replaced(source, target):
        inside = {str(path) for path in (source, *source.rglob("*"))}
        assert inside <= set(flushed)
        assert f"{source}/meta.json" in inside
        real(source, target)
        flushed.clear()

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(checkpoint.os, "replace", replaced)
    checkpoint.save(tmp_path, 1, GRAPH, {"x": jnp.arange(3)}, NOTES)
    assert flushed == [str(tmp_path)]


def test_saving_a_step_again_replaces_it(copy):
    checkpoint.save(copy, 12, GRAPH, state_of(seed=2), {})
    found = checkpoint.latest(copy)
    assert found is not None
    assert found.notes == {}
    same(checkpoint.restore(found, state_of()), state_of(seed=2))


def largest(directory):
    return max(
        (p for p in (directory / "step_12" / "arrays").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )


def flip(path, places):
    data = bytearray(path.read_bytes())
    for place in places:
        data[place] ^= 0xFF
    path.write_bytes(bytes(data))


def assert_raises(directory, match, like=None):
    before = contents(directory)
    with pytest.raises(ValueError, match=match) as caught:
        found = checkpoint.latest(directory)
        assert found is not None
        checkpoint.restore(found, state_of() if like is None else like)
    assert "\n" not in str(caught.value)
    assert str(directory) in str(caught.value)
    assert contents(directory) == before


@pytest.mark.parametrize("place", [0.02, 0.25, 0.5, 0.75, 0.98])
def test_a_flipped_byte_in_the_arrays_is_found(copy, place):
    path = largest(copy)
    flip(path, [int(place * path.stat().st_size)])
    assert_raises(copy, "damaged")


@pytest.mark.parametrize("left", [0, 0.5, 0.99])
def test_truncated_arrays_are_found(copy, left):
    path = largest(copy)
    path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
    assert_raises(copy, "damaged")


def test_absent_arrays_are_found(copy):
    shutil.rmtree(copy / "step_12" / "arrays")
    assert_raises(copy, "damaged")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", "null", '{"step": 12, "graph": {"nodes": 3}, "notes": {}}', "\x00"]
)
def test_a_damaged_description_is_found(copy, text):
    (copy / "step_12" / "meta.json").write_text(text)
    assert_raises(copy, "meta.json does not describe a network")


def test_a_description_that_is_not_text_is_found(copy):
    (copy / "step_12" / "meta.json").write_bytes(b"\xff\xfe\x00")
    assert_raises(copy, "meta.json does not describe a network")


def test_a_missing_description_is_found(copy):
    (copy / "step_12" / "meta.json").unlink()
    assert_raises(copy, "is not a checkpoint: it has no meta.json")


def test_changed_checksums_are_found(copy):
    path = copy / "step_12" / "meta.json"
    meta = json.loads(path.read_text())
    meta["files"][next(iter(meta["files"]))] += 1
    path.write_text(json.dumps(meta))
    assert_raises(copy, "its meta.json does not describe a network .it does not match its checksum")
    del meta["crc32_meta"]
    path.write_text(json.dumps(meta | {"crc32_meta": checkpoint._checksum(meta)}))
    assert_raises(copy, "its files do not match their checksums")


def test_files_that_others_leave_in_a_checkpoint_do_no_harm(copy):
    for folder in (copy, copy / "step_12", *(p for p in (copy / "step_12").rglob("*") if p.is_dir())):
        (folder / ".DS_Store").write_bytes(b"icons")
    found = checkpoint.latest(copy)
    assert found is not None
    same(checkpoint.restore(found, state_of()), state_of())


@pytest.mark.parametrize("name", ["lr=[0.02]", "a\\b", "x*?", "[!a]/[0-9]"])
def test_a_path_that_reads_as_a_pattern_is_taken_as_it_is(tmp_path, name):
    """Beside a folder that matches the pattern in the name of the first."""
    states = [{"x": jnp.arange(3) + n} for n in range(2)]
    places = [tmp_path / "lr=0", tmp_path / name]
    for place, state in zip(places, states, strict=True):
        checkpoint.save(place, 1, GRAPH, state, NOTES)
    for place, state in zip(places, states, strict=True):
        found = checkpoint.latest(place)
        assert found is not None
        same(checkpoint.restore(found, state), state)


def test_a_path_that_is_a_link_is_taken_as_it_is(tmp_path):
    (tmp_path / "real[1]").mkdir()
    (tmp_path / "link").symlink_to("real[1]")
    checkpoint.save(tmp_path / "link", 1, GRAPH, {"x": jnp.arange(3)}, NOTES)
    found = checkpoint.latest(tmp_path / "real[1]")
    assert found is not None
    same(checkpoint.restore(found, {"x": jnp.zeros(3, jnp.int32)}), {"x": jnp.arange(3)})


def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_ones(tmp_path, capfd):
    """Arrays larger than a file may be, so that writing fails as on a full disk."""
    state = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(256, 256)), jnp.float32)}
    checkpoint.save(tmp_path, 1, GRAPH, state, NOTES)
    before, limit = contents(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            checkpoint.save(tmp_path, 2, GRAPH, state, NOTES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.filename == str(tmp_path / "step_2")
    assert contents(tmp_path) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_network_is_loaded_in_the_precision_in_which_it_was_saved(tmp_path, dtype):
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), random_variables(GRAPH))
    save_network(tmp_path, GRAPH, variables, {})
    same(load_network(tmp_path)[1], variables)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_typed_keys_and_empty_arrays_come_back(tmp_path, impl):
    keys = jax.random.split(jax.random.key(3, impl=impl), 2)
    state = {"keys": keys, "empty": jnp.zeros((0, 3), jnp.int8), "x": jnp.arange(3)}
    checkpoint.save(tmp_path, 1, GRAPH, state, NOTES)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    for like in (state, jax.eval_shape(lambda: state)):
        restored = checkpoint.restore(found, like)
        assert jax.random.key_impl(restored["keys"]) == impl
        assert (jax.random.key_data(restored.pop("keys")) == jax.random.key_data(keys)).all()
        same(restored, {"empty": state["empty"], "x": state["x"]})
    other = jax.random.split(jax.random.key(3, impl="rbg" if impl != "rbg" else "unsafe_rbg"), 2)
    with pytest.raises(ValueError, match="another network or optimizer"):
        checkpoint.restore(found, state | {"keys": other})


def test_some_arrays_are_read_by_name(saved):
    found, state = checkpoint.latest(saved), state_of()
    assert found is not None
    assert found.arrays["variables/params/conv1/kernel"] == "float32[3, 3, 6, 8]"
    kernel = state.variables["params"]["conv1"]["kernel"]
    wanted = {"variables": {"params": {"conv1": {"kernel": kernel}}}, "step": jnp.int32(0)}
    found_arrays = checkpoint.restore(found, wanted, partial=True)
    same(found_arrays, wanted | {"step": jnp.int32(12)})
    with pytest.raises(ValueError, match="another network"):
        checkpoint.restore(found, wanted)
    with pytest.raises(ValueError, match="another network"):
        checkpoint.restore(found, {"variables": {"params": {"conv1": {"kernel": kernel[0]}}}}, partial=True)
    with pytest.raises(ValueError, match="another network"):
        checkpoint.restore(found, {"absent": kernel}, partial=True)


def test_a_checkpoint_of_another_network_or_optimizer_raises(copy):
    variables = random_variables(GRAPH)
    variables["params"]["conv1"]["kernel"] = variables["params"]["conv1"]["kernel"][..., :-1]
    wider = init_state(variables, optimizer("adam", 0.1), jax.random.key_data(jax.random.key(0)))
    assert_raises(copy, "another network or optimizer", wider)
    assert_raises(copy, "another network or optimizer", state_of(name="sgd"))
    assert_raises(copy, "another network or optimizer", state_of(ema=True))


def test_networks_are_found_in_every_place(tmp_path):
    variables = jax.tree.map(jnp.asarray, random_variables(GRAPH))
    run, stage = tmp_path / "run", tmp_path / "run" / "pruned"
    save_network(stage / "final", GRAPH, variables, {})
    (stage / "stage.json").write_text("{}")
    for place in (run, stage, stage / "final", stage / "final" / "step_0"):
        graph, loaded = load_network(place)
        assert graph == GRAPH
        same(loaded, variables)


def test_the_last_complete_stage_of_a_run_is_taken(tmp_path):
    seeds = {"quantized": 0, "pruned": 1, "finetuned": 2}
    for name, seed in seeds.items():
        save_network(tmp_path / name / "final", GRAPH, jax.tree.map(jnp.asarray, random_variables(GRAPH, seed)), {})
    for name, seed in list(seeds.items())[:2]:
        (tmp_path / name / "stage.json").write_text("{}")
        same(load_network(tmp_path)[1], jax.tree.map(jnp.asarray, random_variables(GRAPH, seed)))


def test_a_place_without_a_network_raises(saved, tmp_path):
    for place in (tmp_path, tmp_path / "absent", saved):  # a training state is not a network
        with pytest.raises(ValueError, match=re.escape(f"{place} does not hold a complete network")):
            load_network(place)
