"""Neurons in integers: leaks, resets and rates by hand, exact where the numbers are, and what no shift expresses."""

from fractions import Fraction

import numpy as np
import pytest
from membranes import membranes_of

from qpsnn_jax.export.folded import Folded
from qpsnn_jax.export.folded_layers import Image, Neurons, Rates
from qpsnn_jax.export.integer_network import IntegerNetwork, currents
from qpsnn_jax.export.integer_neurons import Cell, Leak
from qpsnn_jax.export.onnx import onnx_model
from qpsnn_jax.export.packed.file import load_packed, write_packed
from qpsnn_jax.export.summary import summary
from qpsnn_jax.export.unfolding import unfold


def neurons(channels=1, timesteps=7, weights=1, frames=False, **options):
    """Neurons on one pixel, whose currents are its grey level times the weights."""
    kernel = np.broadcast_to(np.int8(weights), (1, 1, 1, channels)).copy()
    one, bias = np.ones(channels, np.float32), options.pop("bias", np.zeros(channels, np.float32))
    layer = Neurons("lif", "image", kernel, 8, (1, 1), (0, 0), one, bias, **options)
    return Folded(Image("image", (1, 1, 1), (0.0,), frames), (layer, Rates("rates", "lif")), timesteps)


# θ = 100 and a current of 60. Membranes of the soft reset at ½: 60, 90, 105 - 100, 62, 91, 105 - 100, 62.
BY_HAND = [
    (1.0, "hard", False, [0, 1, 0, 1, 0, 1, 0]),
    (1.0, "soft", False, [0, 1, 0, 1, 1, 0, 1]),
    (1.0, "soft", True, [0, 1, 0, 1, 0, 1, 1]),
    (1.0, "delayed", False, [0, 1, 0, 1, 1, 0, 1]),
    (0.5, "hard", False, [0, 0, 1, 0, 0, 1, 0]),
    (0.5, "soft", False, [0, 0, 1, 0, 0, 1, 0]),
    (0.5, "delayed", False, [0, 0, 1, 0, 0, 0, 1]),
    (0.75, "hard", False, [0, 1, 0, 1, 0, 1, 0]),
    (0.75, "soft", False, [0, 1, 0, 1, 0, 1, 0]),
    (0.25, "hard", False, [0, 0, 0, 0, 0, 0, 0]),
    (0.0, "soft", False, [0, 0, 0, 0, 0, 0, 0]),
]


@pytest.mark.parametrize(("tau", "reset", "strict", "spikes"), BY_HAND)
def test_leaks_and_resets_by_hand(tau, reset, strict, spikes):
    network = IntegerNetwork.of(neurons(tau=tau, reset=reset, strict=strict, threshold=100.0))
    logits, maps = network(np.full((1, 1, 1, 1), 60, np.uint8), ["lif"])
    assert maps["lif"].ravel().tolist() == spikes
    assert logits.tolist() == [[sum(spikes)]]
    assert network.readout.unit == 1 / 7


@pytest.mark.parametrize("reset", ["hard", "soft", "delayed"])
@pytest.mark.parametrize("strict", [False, True])
def test_spikes_are_those_of_rational_numbers(reset, strict):
    """Weights, biases and θ of few bits: with k (T - 1) fractional bits nothing is rounded, so nothing differs."""
    draw, taus = np.random.default_rng(3), (1.0, 0.5, 0.75, 0.25, 0.0, 0.875)
    tau = np.float32(np.tile(taus, 4))
    weights, threshold = draw.integers(-3, 9, len(tau)), np.float32(draw.integers(1, 900, len(tau)))
    bias = np.float32(draw.integers(-50, 100, len(tau)))
    folded = neurons(
        len(tau), 5, weights, frames=True, tau=tau, threshold=threshold, reset=reset, strict=strict, bias=bias
    )
    pixels = draw.integers(0, 256, (20, 5, 1, 1, 1), np.uint8)
    network = IntegerNetwork.of(folded)
    found = network(pixels, ["lif"])[1]["lif"][:, :, 0, 0]
    assert 0.1 < found.mean() < 0.9
    for c, leak in enumerate(tau):
        expected = [
            rational(
                Fraction(float(leak)), int(threshold[c]), reset, strict, [int(weights[c] * x + bias[c]) for x in each]
            )
            for each in pixels.reshape(20, 5).astype(int)
        ]
        np.testing.assert_array_equal(found[:, :, c], expected)


@pytest.mark.parametrize("reset", ["hard", "soft", "delayed"])
def test_membranes_stay_within_the_bound(reset):
    """At rest, then as high as a current is and as low as it is, at once or for a while."""
    tau = np.float32([1.0, 0.5, 0.75, 0.25, 0.0, 0.875] * 2)
    bias = np.float32([-200.0] * 6 + [0.0] * 6)
    folded = neurons(12, 6, frames=True, tau=tau, reset=reset, threshold=55.0, bias=bias)
    (layer, _), constants = folded.layers, IntegerNetwork.of(folded).neurons["lif"]
    frames = np.stack(np.meshgrid(*[np.array([0, 200, 255], np.uint8)] * 6), -1).reshape(-1, 6, 1, 1, 1)
    membranes = membranes_of(layer, constants, currents(layer, constants, {"image": frames}), 6)
    reached = membranes.min((0, 1, 2, 3)), membranes.max((0, 1, 2, 3))
    assert (constants.low <= reached[0]).all()
    assert (reached[1] <= constants.high).all()
    # No bound is four times what is reached.
    assert (constants.low[:6] >= 4 * reached[0][:6]).all()
    assert (constants.high[6:] <= 4 * reached[1][6:]).all()


def rational(tau, theta, reset, strict, currents):
    left, late, spikes = Fraction(0), 0, []
    for current in currents:
        membrane = tau * left + current - late
        spikes.append(int(membrane > theta if strict else membrane >= theta))
        left = 0 if spikes[-1] and reset == "hard" else membrane - theta * spikes[-1] * (reset == "soft")
        late = theta * spikes[-1] * (reset == "delayed")
    return spikes


def test_without_a_leak_a_stream_saturates():
    cell = Cell(Leak.of(1.0), "soft")
    membrane = np.zeros(2, np.int32)
    for _ in range(5):
        membrane, fired = cell.step(membrane, np.int32([2**29, -(2**29)]), np.int32(100), np.int32(100))
    assert membrane.dtype == np.int32
    assert membrane.tolist() == [2**30 - 100, -(2**30)]
    assert fired.tolist() == [True, False]
    for bias, allowed in ((0.9, True), (1.1, False)):
        folded = neurons(timesteps=4, tau=1.0, threshold=1e5, bias=np.float32([-bias * 2**28]))
        if allowed:
            IntegerNetwork.of(folded)
        else:
            with pytest.raises(ValueError, match="layer 'lif': a membrane could reach .* which exceeds 31 bits"):
                IntegerNetwork.of(folded)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 0.9}, "layer 'lif': a decay factor τ of 0.9 is not exact in integers; .* the nearest is 0.875"),
        ({"tau": np.float32([0.5, 2])}, "layer 'lif': a decay factor τ of 2 is not exact"),
        ({"tau": np.float32([0.5])}, "layer 'lif': tau must be 2 finite float32 numbers"),
        ({"threshold": np.float64([1, 1])}, "layer 'lif': threshold must be 2 finite float32 numbers"),
        ({"threshold": np.float32([1, -1])}, "layer 'lif': the threshold must be positive"),
        ({"reset": "late"}, "layer 'lif': its reset must be hard, soft or delayed, got 'late'"),
    ],
)
def test_what_integers_do_not_express_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        neurons(2, **options)


OTHERS = {
    "soft": {"reset": "soft"},
    "channels": {"tau": np.float32([0.5, 0.75, 1]), "threshold": np.float32([50, 80, 110]), "reset": "delayed"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_with_other_neurons_have_version_3(name, tmp_path):
    folded = neurons(3, weights=[1, 2, 3], **OTHERS[name])
    packed = write_packed(tmp_path / "a.qpsnn", folded, {})
    data = (tmp_path / "a.qpsnn").read_bytes()
    assert data[8] == 3
    # The kernel, scales and biases, and θ and τ where they are arrays.
    assert packed.payload_bytes == 3 + 4 * 3 * (4 if name == "channels" else 2)
    for version in (1, 2):
        (tmp_path / "b.qpsnn").write_bytes(data[:8] + bytes([version]) + data[9:])
        with pytest.raises(ValueError, match="its version does not fit its layers"):
            load_packed(tmp_path / "b.qpsnn")
    read = load_packed(tmp_path / "a.qpsnn")
    pixels = np.arange(0, 256, 5, np.uint8).reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(IntegerNetwork.of(read.folded)(pixels), IntegerNetwork.of(folded)(pixels))
    said = {"soft": "neurons, 1×1×1×3 at 8 bits, soft reset,", "channels": "τ from 0.5 to 1, delayed reset,"}
    assert said[name] in summary(read)
    assert "rates of lif" in summary(read)


@pytest.mark.parametrize("name", OTHERS)
def test_onnx_and_unfolded_networks_have_the_same_rates(name):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (the extra onnx)")
    folded = neurons(3, weights=[1, 2, 3], **OTHERS[name])
    pixels = np.arange(0, 256, 5, np.uint8).reshape(-1, 1, 1, 1)
    expected = IntegerNetwork.of(folded)(pixels) / folded.timesteps
    session = runtime.InferenceSession(onnx_model(folded).SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"pixels": pixels})[0], expected, atol=1e-6)
    graph, _ = unfold(folded, (1.0,))
    lif = graph.by_name["lif"]
    assert (lif.reset, np.asarray(lif.tau).tolist()) == (
        folded.layers[0].reset,
        np.asarray(folded.layers[0].tau).tolist(),
    )
    assert graph.values["rates"].shape == (3,)
