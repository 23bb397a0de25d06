"""What tests/contracts/test_numerics.py runs in a process of its own: eight CPU devices, and then 64 bits."""

import json
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxprs import inner_jaxprs

from contracts.table import SPIKES, TABLE, Contract
from qpsnn_jax.kernels import dispatch
from qpsnn_jax.kernels.convolution import conv_spikes
from qpsnn_jax.model.layers import LIFLayer
from qpsnn_jax.model.nodes import LIF
from qpsnn_jax.model.nodes.base import Context, Value
from qpsnn_jax.numerics.neurons import lif
from qpsnn_jax.pruning.scores import svs_scores

# A processor that would take its own algorithms for wide layers, which do not know these meshes.
dispatch.cpu_flags = lambda: frozenset({"amx_int8", "amx_bf16"})


def on_mesh(contract: Contract, mesh: jax.sharding.Mesh) -> None:
    """Trace it and its gradient for an input that is sharded along its first axis of even size."""
    if not contract.explicit:
        return
    x = jnp.asarray(contract.batch[0])
    axis = next((i for i, n in enumerate(x.shape) if n % 2 == 0), x.ndim)
    x = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*(None for _ in range(axis)), *["data"][: x.ndim - axis])))

    def scalar(x: jax.Array) -> jax.Array:
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(contract.function(x)))

    jax.jit(lambda x: (contract.function(x), jax.grad(scalar)(x) if contract.grad else ())).trace(x)


def in_64_bits(contract: Contract) -> None:
    """Trace a function in its dtypes and in float64, of which no value may be rounded on the way."""
    for dtype in (*contract.floats, *([jnp.float64] if contract.floats else [])):
        traced = jax.make_jaxpr(contract.function)(jax.ShapeDtypeStruct(contract.batch[0].shape, dtype))
        floats = {aval.dtype for aval in traced.out_avals if jnp.issubdtype(aval.dtype, jnp.floating)}
        allowed = (
            {jnp.dtype(contract.out or dtype), jnp.dtype(dtype)}
            if dtype == jnp.float64
            else {jnp.dtype(contract.out or dtype)}
        )
        assert floats <= allowed, f"{dtype.__name__} gives {floats}"
        if dtype == jnp.float64 and jnp.dtype(dtype) in floats and not contract.narrows:
            assert not (found := sorted(set(narrowed(traced.jaxpr)))), f"float64 is rounded to {found}"


def narrowed(jaxpr: jax.extend.core.Jaxpr) -> Iterator[str]:
    """The dtypes to which a program rounds numbers of float64."""
    for equation in jaxpr.eqns:
        dtypes = [[v.aval.dtype for v in side] for side in (equation.invars, equation.outvars)]
        if equation.primitive.name == "convert_element_type" and dtypes[0] == [jnp.float64]:
            yield from (each.name for each in dtypes[1] if jnp.issubdtype(each, jnp.floating) and each != jnp.float64)
        for inner in inner_jaxprs(equation):
            yield from narrowed(inner)


def failures(check: Callable[[Contract], None]) -> dict[str, str]:
    """The errors by name."""
    found = {}
    for contract in TABLE:
        try:
            check(contract)
        except Exception as error:
            found[contract.name] = f"{type(error).__name__}: {error}"[:300]
    return found


def apart(devices: int = 8) -> dict[str, list[float]]:
    """Differences of values on an explicit mesh and under shard_map from those on one device, relative."""
    draw, data, whole = np.random.default_rng(0), PartitionSpec("data"), PartitionSpec()
    explicit, manual = (
        jax.make_mesh((devices,), ("data",), axis_types=(kind,)) for kind in (AxisType.Explicit, AxisType.Auto)
    )
    currents = draw.normal(0.5, 1, (16, 4, 3, 5, 6)).astype(np.float32)
    spikes = (draw.random((16, 6, 6, 64)) < 0.3).astype(np.float32)
    integers = (2 * draw.integers(0, 4, (3, 3, 64, 64)) - 3).astype(np.float32)
    cotangent = draw.normal(size=64).astype(np.float32)
    many = np.concatenate([SPIKES[0]] * devices)

    def conv(spikes: jax.Array, integers: jax.Array) -> jax.Array:
        return conv_spikes(spikes, integers, bits=2, padding=(1, 1))

    def by_kernel(spikes: jax.Array, integers: jax.Array) -> jax.Array:
        return jax.grad(lambda k: jnp.sum(conv(spikes, k) @ cotangent))(integers)

    def spikes_of(currents: jax.Array) -> jax.Array:
        return lif(currents)[1]

    layers = [LIF("lif", "x"), LIF("lif", "x", tau=tuple(np.linspace(0.1, 0.6, 6)), threshold=0.7)]
    context = Context((Value(currents.shape[2:], True, False),), currents.shape[1], False, "auto")

    def by_currents(currents: jax.Array) -> jax.Array:
        run = lambda x: sum(jnp.sum(layer.run({}, [x], context).output * x) for layer in layers)  # noqa: E731
        return jax.grad(run)(currents)

    exact = partial(svs_scores, threshold="exact")
    cases = {
        "lif": (spikes_of, spikes_of, (currents,), data),
        "layers by currents": (by_currents, by_currents, (currents,), data),
        "svs_scores": (exact, lambda x: jax.lax.pmean(exact(x), "data"), (many,), whole),
        "conv_spikes": (conv, conv, (spikes, integers), data),
        "conv_spikes by kernel": (by_kernel, by_kernel, (spikes, integers), whole),
    }
    # Neurons whose channels are sharded, by currents and a learned τ.
    wide, layer = draw.normal(0.5, 1, (4, 3, devices)).astype(np.float32), LIFLayer(tau="learned")
    variables, weights = {"params": {"tau_logit": jnp.zeros(1)}}, draw.normal(size=wide.shape).astype(np.float32)
    by_channel = jax.jit(jax.grad(lambda v, x, y: jnp.sum(layer.apply(v, x) * y), (0, 1)))
    wanted = by_channel(variables, wide, weights)
    with jax.set_mesh(explicit):
        channels = NamedSharding(explicit, PartitionSpec(None, None, "data"))
        got = by_channel(variables, *jax.device_put((wide, weights), channels))
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    found = {"neurons by channel": [float(np.abs(np.asarray(a) - b).max() / np.abs(b).max()) for a, b in pairs]}
    for name, (function, local, arrays, out) in cases.items():
        specs = (data, whole)[: len(arrays)]
        wanted = jax.jit(function)(*arrays)
        placed = [jax.device_put(x, NamedSharding(explicit, spec)) for x, spec in zip(arrays, specs, strict=True)]
        with jax.set_mesh(explicit):
            results = [jax.jit(function)(*placed)]
        results.append(jax.jit(jax.shard_map(local, mesh=manual, in_specs=specs, out_specs=out))(*arrays))
        scale = np.abs(wanted).max()
        found[name] = [float(np.abs(np.asarray(each) - wanted).max() / scale) for each in results]
    return found


if __name__ == "__main__":
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        explicit = failures(partial(on_mesh, mesh=mesh))
    values = apart()
    jax.config.update("jax_enable_x64", True)
    print(json.dumps({"explicit": explicit, "apart": values, "x64": failures(in_64_bits)}))
