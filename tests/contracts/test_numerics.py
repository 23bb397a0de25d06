"""What every numeric function promises: the same under jax.jit, vmap, grad and dtype, and compiled once."""

import gc
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qpsnn_jax
from contracts.table import BF16, F32, TABLE, Contract, total

over = pytest.mark.parametrize
STUB = Path(qpsnn_jax.__file__).with_suffix(".pyi")


def assert_trees_close(got, want, tolerance: float) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert signature(got) == signature(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def signature(tree) -> list:
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


def test_every_public_function_has_a_contract():
    rooms = r"(?:numerics\.\w+|kernels\.\w+|pruning\.(?:scores|rank))"
    public = set(re.findall(rf"from \.{rooms} import ([a-z]\w*) as", STUB.read_text()))
    found = Counter(contract.name.split("-")[0] for contract in TABLE)
    assert {"lif", "quantize", "svs_scores", "fire_step", "conv_spikes"} <= public <= found.keys()


@over("contract", TABLE, ids=str)
def test_jit_equals_eager_which_compiles_once(contract: Contract, compilations):
    x = jnp.asarray(contract.batch[0])
    eager, abstract = contract.function(x), jax.eval_shape(contract.function, x)
    assert_trees_close(jax.jit(contract.function)(x), eager, contract.tolerance)
    assert signature(eager) == signature(abstract)
    gc.collect()
    held = len(jax.live_arrays())
    with compilations() as counted:
        for _ in range(2):
            contract.function(x)
    assert counted() == 0
    gc.collect()
    assert len(jax.live_arrays()) == held


@over("contract", TABLE, ids=str)
def test_vmap_equals_a_loop_and_dtypes_are_kept(contract: Contract):
    function, batch = jax.jit(contract.function), contract.batch
    others = contract.floats[1:]  # the first is float32

    @jax.jit
    def results(batch, others):
        return jax.vmap(function)(batch), [function(x) for x in others]

    assert contract.floats[:1] in [(), (F32,)]
    loop = [function(x) for x in batch]
    batched, by_dtype = results(batch, [batch[0].astype(dtype) for dtype in others])
    assert_trees_close(batched, jax.tree.map(lambda *leaves: np.stack(leaves), *loop), contract.tolerance)
    for dtype, output in zip(contract.floats, [loop[0], *by_dtype], strict=False):  # some promise none
        outputs = jax.tree.leaves(output)
        kept = [leaf.dtype for leaf in outputs if jnp.issubdtype(leaf.dtype, jnp.floating)]
        assert kept == [contract.out or dtype] * len(kept), dtype
        assert all(np.isfinite(np.float32(leaf)).all() for leaf in outputs), dtype
        assert all(leaf.dtype == jnp.int32 for leaf in outputs if jnp.issubdtype(leaf.dtype, jnp.integer)), dtype


@over("contract", [c for c in TABLE if c.grad], ids=str)
def test_derivatives(contract: Contract):
    """Finite and shaped; of the value beside a gradient too, also in a loop; and in forward mode, or that raises."""
    (x, tangent), f = contract.batch[:2], total(contract)
    if contract.forward:  # JAX has its derivatives; those that follow need trace it only once.
        f = jax.jit(f)

    def beside(x):
        return jax.value_and_grad(f)(x)[0]

    def derivatives(x):
        yield jax.grad(f)(x)
        yield jax.grad(lambda x: jnp.vdot(jax.grad(f)(x), tangent))(x)
        if contract.forward:
            yield jax.jvp(f, (x,), (tangent,))[1]
        else:  # it has a rule of its own
            yield jax.grad(beside)(x)
            yield jax.grad(lambda x: jax.lax.map(beside, x[None])[0])(x)

    gradient, second, *others = jax.device_get(jax.jit(lambda x: list(derivatives(x)))(x))
    assert (gradient.shape, gradient.dtype) == (second.shape, second.dtype) == (x.shape, x.dtype)
    assert np.isfinite([gradient, second]).all()
    assert np.any(gradient)
    if contract.forward:
        np.testing.assert_allclose(others, [np.vdot(gradient, tangent)], rtol=1e-4, atol=1e-4)
    else:
        for again in others:
            np.testing.assert_allclose(again, gradient, rtol=1e-5, atol=1e-5)
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jit(lambda x: jax.jvp(contract.function, (x,), (tangent,))).lower(x)


@over("contract", [c for c in TABLE if c.grad and BF16 in c.floats], ids=str)
def test_gradient_keeps_bfloat16(contract: Contract):
    x = jax.ShapeDtypeStruct(contract.batch[0].shape, BF16)
    assert jax.eval_shape(jax.grad(lambda x: total(contract)(x).astype(jnp.float32)), x).dtype == BF16


@pytest.fixture(scope="module")
def elsewhere() -> dict:
    """What fails on an explicit mesh, under shard_map and in 64 bits, each of which takes a process of its own."""
    script = Path(__file__).with_name("elsewhere.py")
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    env["PYTHONPATH"] = os.pathsep.join(str(folder) for folder in script.parents[1:3][::-1])
    run = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_the_table_on_an_explicit_mesh(elsewhere):
    assert elsewhere["explicit"] == {}


def test_the_table_in_64_bits(elsewhere):
    assert elsewhere["x64"] == {}


def test_values_on_meshes_are_those_of_one_device(elsewhere):
    names = {"lif", "layers by currents", "svs_scores", "conv_spikes", "conv_spikes by kernel", "neurons by channel"}
    assert elsewhere["apart"].keys() == names
    for name, differences in elsewhere["apart"].items():
        assert len(differences) == 2, name
        assert max(differences) < 1e-5, name
