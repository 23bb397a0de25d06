"""The C program: no fault under strict compilers and sanitizers, logits equal to the integer network's, bit for bit."""

import math
import re
import subprocess

import compilers
import numpy as np
import pytest
from compilers import STRICT, compiler, emulated_arm, run
from exported import GRAPHS, folded_of, pixels_of
from pages import blocks
from small_networks import random_variables

from qpsnn_jax.data import load
from qpsnn_jax.export.c.layout import lay_out
from qpsnn_jax.export.c.source import c_source, write_c
from qpsnn_jax.export.folded import Folded
from qpsnn_jax.export.folded_layers import Image, Neurons, Rates, Readout, Sum, sources
from qpsnn_jax.export.folding import fold
from qpsnn_jax.export.integer_network import IntegerNetwork
from qpsnn_jax.model.zoo import resnet20
from qpsnn_jax.numerics.early_exit import early_exit
from qpsnn_jax.runs.cli.main import main
from qpsnn_jax.runs.directory import load_network

SANITIZERS = ["-Og", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
NATIVE = ["-O3", "-march=native"]


def agrees(command, name, folder, bits=32, **options):
    pixels = pixels_of(GRAPHS[name], 4 if command[1:] == SANITIZERS else 6)
    compilers.agrees(command, IntegerNetwork.of(folded_of(name, bits, bits)), pixels, folder, **options)


# Portable programs have words of 32 bits: 8 or 16 lanes of up to 8 bits.
@pytest.mark.parametrize(
    ("name", "portable"),
    [*((name, False) for name in GRAPHS), ("resnet20 pruned", True), ("sew_resnet18", True), ("mixed", True)],
)
def test_same_logits_under_sanitizers(name, portable, tmp_path):
    agrees([*compiler("gcc"), *SANITIZERS], name, tmp_path, portable=portable)


@pytest.mark.parametrize("name", GRAPHS)
def test_same_logits_from_clang(name, tmp_path):
    agrees([*compiler("clang"), "-O2"], name, tmp_path)


@pytest.mark.parametrize("name", ["resnet20", "sew_resnet18"])
@pytest.mark.parametrize("make", ["gcc", "clang"])
def test_same_logits_optimized_for_this_processor(name, make, tmp_path):
    agrees([*compiler(make), *NATIVE], name, tmp_path)


@pytest.mark.parametrize("name", ["resnet20", "vggsnn", "sew_resnet18"])
@pytest.mark.parametrize("portable", [False, True])
def test_same_logits_on_32_bits(name, portable, tmp_path):
    agrees([*compiler("32-bit"), "-O2"], name, tmp_path, portable=portable)


@pytest.mark.parametrize("portable", [False, True])
def test_same_logits_on_arm(portable, tmp_path):
    command, emulator = emulated_arm()
    agrees([*command, "-O2"], "resnet20", tmp_path, portable=portable, emulator=emulator)


@pytest.mark.parametrize("name", ["dense", "vggsnn"])
def test_same_logits_with_8_bits_at_both_ends(name, tmp_path):
    agrees([*compiler("gcc"), *SANITIZERS], name, tmp_path, bits=8)


# 256ths that exceed 32 bits: shifted by F, or already their sum.
@pytest.mark.parametrize("shape", [(32, 32, 3), (1, 260, 256)])
def test_same_logits_with_many_weights_in_the_first_layer(shape, tmp_path):
    weights = np.random.default_rng(0).laplace(size=(*shape, 12)) / 255 / np.prod(shape) ** 0.5
    network = IntegerNetwork.of(_on_pixels(weights.astype(np.float32), Image("image", shape, (0.0,) * shape[2]), 8))
    pixels = np.random.default_rng(1).integers(0, 256, (4, *shape), np.uint8)
    pixels[0], pixels[1] = 255, np.maximum(pixels[1], 200)
    parts = np.einsum("bhwi,hwio->bo", pixels.astype(np.int64), network.neurons["lif"].fine)
    assert (parts << network.neurons["lif"].shift).max() >= 2**31
    compilers.agrees([*compiler("gcc"), *SANITIZERS], network, pixels, tmp_path)


def test_weights_on_pixels_without_effect_do_not_overflow(tmp_path):
    weights = np.random.default_rng(0).normal(size=(3, 3, 3, 32)).astype(np.float32)
    weights[..., 1:] *= 1e-12
    network = IntegerNetwork.of(_on_pixels(weights, Image("image", (16, 16, 3), (0.0,) * 3), 2))
    assert network.neurons["lif"].live.tolist() == [True] + 31 * [False]
    pixels = np.random.default_rng(1).integers(0, 256, (4, 16, 16, 3), np.uint8)
    compilers.agrees([*compiler("gcc"), *SANITIZERS], network, pixels, tmp_path)


def _on_pixels(weights, image, timesteps):
    """Neurons on pixels with weights in float32, and a readout of their spikes."""
    outputs, draw = weights.shape[3], np.random.default_rng(3)
    bias = draw.normal(size=outputs).astype(np.float32)
    lif = Neurons("lif", "image", weights, 32, (1, 1), (0, 0), np.ones(outputs, np.float32), bias)
    size = (image.shape[0] - weights.shape[0] + 1, image.shape[1] - weights.shape[1] + 1, outputs, 5)
    codes = draw.integers(0, 256, size, np.uint8)
    readout = Readout("fc", "lif", (1, 1), (1, 1), codes, 1.0, np.zeros(5, np.float32), 8)
    return Folded(image, (lif, readout), timesteps)


def test_the_source_and_its_header_are_written_both_or_not_at_all(tmp_path):
    network = IntegerNetwork.of(folded_of("dense"))
    (tmp_path / "a.c").mkdir()
    with pytest.raises(IsADirectoryError):
        write_c(tmp_path / "a.c", network)
    assert [path.name for path in tmp_path.iterdir()] == ["a.c"]
    text = write_c(str(tmp_path / "b.c"), network)
    assert ((tmp_path / "b.c").read_text(), (tmp_path / "b.h").read_text()) == (text.source, text.header)


def test_wide_layers_take_16_lanes():
    assert {name: lay_out(folded_of(name), 64).words.lanes for name in ("dense", "sew_resnet18")} == {
        "dense": 8,
        "sew_resnet18": 16,
    }


def test_a_trained_network_from_the_command_line_to_its_program(small_run, tmp_path, capsys):
    command = ["export", str(small_run), "--format", "c", "--out", str(tmp_path / "net.c")]
    assert main(command) == 0
    working = int(re.search(r": ([\d,]+) bytes of working memory", capsys.readouterr().out)[1].replace(",", ""))
    assert working < 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.c", "net.h"]
    data = load("digits")
    network = IntegerNetwork.of(fold(*load_network(small_run), data.mean, data.std))
    text = c_source(network, "net")
    assert (tmp_path / "net.c").read_text() == text.source
    assert text.working_bytes == working
    assert main(command) == 2
    assert "net.c exists; choose another --out." in capsys.readouterr().err
    for out, message in (
        ("other", "must be named NAME.c"),
        ("my-net.c", "must be a C identifier (letters, digits and _), got 'my-net'"),
    ):
        assert main([*command[:-1], str(tmp_path / out)]) == 2
        assert message in capsys.readouterr().err
    ran = run([*compiler("gcc"), "-O2"], text, data.test.images, tmp_path)
    np.testing.assert_array_equal(ran.logits, network(data.test.images))


def test_the_programs_on_the_pages_run(small_run, tmp_path):
    assert main(["export", str(small_run), "--format", "c", "--out", str(tmp_path / "digits.c")]) == 0
    data = load("digits", test_examples=4)
    network = IntegerNetwork.of(fold(*load_network(small_run), data.mean, data.std))
    image = data.test.images[3:]
    subprocess.run([*compiler("gcc"), *STRICT, "-c", "digits.c"], cwd=tmp_path, check=True)
    pages = ("notebooks/c.md", "notebooks/streaming.md")
    examples = [block.text for page in pages for block in blocks(page) if block.language == "c"]
    black, expected = np.zeros_like(image), int(network(image).argmax())
    steps = int(early_exit(network.by_step(black), network.margin(0.9)).steps[0])
    for example, output in zip(
        examples,
        (
            rf"class {network(black).argmax()}, in \d+ bytes of memory\n",
            rf"class \d after {steps} of 2 steps\n",
            rf"class {expected}\nclass \d\n",
        ),
        strict=True,
    ):
        (tmp_path / "main.c").write_text(example)
        command = [*compiler("gcc"), *STRICT, "digits.o", "main.c", "-o", "digits"]
        subprocess.run(command, cwd=tmp_path, check=True)
        ran = subprocess.run([tmp_path / "digits"], input=4 * image.tobytes(), check=True, capture_output=True)
        assert re.fullmatch(output, ran.stdout.decode())


@pytest.mark.parametrize("name", GRAPHS)
def test_needs_nothing(name):
    network = IntegerNetwork.of(folded_of(name))
    text = c_source(network)
    assert re.findall(r"#include (.*)", text.source) == ['"qpsnn.h"']
    assert re.findall(r"#include (.*)", text.header) == ["<stdint.h>"]
    assert not re.search(r"\b(float|double|malloc|free|memcpy)\b", text.source)
    assert "popcountll" not in c_source(network, portable=True).source
    declared = sum(
        int(count) * {"uint8_t": 1, "uint16_t": 2, "int32_t": 4, "uint64_t": 8}[kind]
        for kind, count in re.findall(r"^static (\w+) \w+\[(\d+)\];", text.source, re.MULTILINE)
    )
    assert declared == text.working_bytes
    constants = re.findall(r"^static const (\w+) \w+\[(\d+)\] = ", text.source, re.MULTILINE)
    sizes = {"int8_t": 1, "uint8_t": 1, "int16_t": 2, "weight": 2, "int32_t": 4, "uint64_t": 8}
    named = sum(int(count) * sizes[kind] for kind, count in constants)
    assert named == text.constant_bytes
    (held,) = re.findall(r"int32_t steps, logits\[qpsnn_classes\], membranes\[(\d+)\];", text.header)
    neurons = sum(math.prod(network.folded.maps[layer.name].shape) for layer in network.folded.neurons)
    assert int(held) == neurons
    assert text.state_bytes == 4 * (1 + network.folded.classes + neurons)


@pytest.mark.parametrize("name", GRAPHS)
def test_maps_that_are_needed_at_once_do_not_overlap(name):
    folded = folded_of(name)
    layout = lay_out(folded, 64)
    spans = {}
    for layer in folded.layers[:-1]:
        h, w, c = folded.maps[layer.name].shape
        lanes, planes = layout.words.lanes, folded.maps[layer.name].largest.bit_length()
        size = folded.timesteps * h * w * planes * -(-c // lanes) * lanes // 8
        spans[layer.name] = (layout.places[layer.name], layout.places[layer.name] + size)
    last = {source: i for i, layer in enumerate(folded.layers) for source in sources(layer)}
    for i, layer in enumerate(folded.layers[:-1]):
        for other in folded.layers[:i]:
            if last.get(other.name, -1) >= i:
                (a, b), (c, d) = spans[layer.name], spans[other.name]
                assert b <= c or d <= a
    assert max(end for _, end in spans.values()) == layout.arena
    whole = sum(end - start for start, end in spans.values())
    assert layout.arena < whole or sum(isinstance(layer, Neurons) for layer in folded.layers) < 4


def test_the_papers_network_fits_a_microcontroller():
    """The ResNet20 of 6.22M parameters needs less than 256 KiB of working memory."""
    graph = resnet20(bits=2, timesteps=2, ratios={"stem": 0.1, "outputs": 0.3, "first": 0.3, "middle": 0.6})
    network = IntegerNetwork.of(fold(graph, random_variables(graph), (0.5,) * 3, (0.25,) * 3))
    text = c_source(network)
    assert text.working_bytes < 70_000
    assert text.constant_bytes < 1_700_000


def test_without_a_leak_a_stream_saturates_and_rates_are_of_every_value(tmp_path):
    one, bias = np.ones((1, 1, 1, 2), np.int8), np.float32([-0.9 * 2**29, 1])
    each = {"scale": np.ones(2, np.float32), "bias": bias, "tau": 1.0, "reset": "soft"}
    lif = Neurons("lif", "image", one, 8, (1, 1), (0, 0), threshold=100.0, **each)
    # Sums of up to 3 spikes of two positions.
    layers = (lif, Sum("two", "lif", "lif"), Sum("three", "two", "lif"), Rates("rates", "three"))
    network = IntegerNetwork.of(Folded(Image("image", (2, 1, 1), (0.0,)), layers, 2))
    text = c_source(network, "net")
    (tmp_path / "net.c").write_text(text.source)
    (tmp_path / "net.h").write_text(text.header)
    (tmp_path / "main.c").write_text(
        """#include <stdio.h>
        #include "net.h"
        int main(void) {
          static net_state state;
          const uint8_t pixels[2] = {120, 60};
          for (int t = 0; t < 11; t++) net_step(&state, pixels);
          for (int i = 0; i < 4; i++) printf("%ld %ld ", (long)state.membranes[i], (long)state.logits[i]);
        }"""
    )
    command = [*compiler("gcc"), *STRICT, *SANITIZERS, "net.c", "main.c", "-o", "net"]
    subprocess.run(command, cwd=tmp_path, check=True)
    said = subprocess.run([tmp_path / "net"], check=True, capture_output=True, text=True).stdout.split()
    scale, pixels = 2 ** int(network.neurons["lif"].shift[1]), np.uint8([120, 60]).reshape(1, 2, 1, 1)
    # 11 · 121 less 11 times 100; 11 · 61 less 6 times.
    assert [int(number) for number in said[::2]] == [-(2**30), 231 * scale, -(2**30), 71 * scale]
    # The last of the steps is the first of two, with new logits.
    assert [int(number) for number in said[1::2]] == [0, 3, 0, 0]
    np.testing.assert_array_equal(network(pixels), [[0, 6, 0, 3]])
