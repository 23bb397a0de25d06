"""The packed file: it is read back unchanged, has its stated size, and broken or hostile files raise."""

import dataclasses
import json
import os
import random
import re
import struct
import tracemalloc
import zlib
from itertools import pairwise

import numpy as np
import pytest
from exported import GRAPHS, folded_of, pixels_of
from hypothesis import given
from hypothesis import strategies as st
from small_runs import contents

from qpsnn_jax.export.integer_network import IntegerNetwork
from qpsnn_jax.export.packed.file import load_packed, payload_bytes, write_packed
from qpsnn_jax.export.packed.numbers import pack_codes, pack_ternary, unpack_codes, unpack_ternary
from qpsnn_jax.model.costs import cost
from qpsnn_jax.runs.cli.main import main

NOTES = {"accuracy": 0.5, "config": {"bits": 2}}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "network.qpsnn"
    write_packed(path, folded_of("dense"), NOTES)
    return path


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("bits", [8, 32])
def test_round_trip(name, bits, tmp_path):
    folded, path = folded_of(name, bits, bits), tmp_path / "a.qpsnn"
    written, read = write_packed(path, folded, NOTES), load_packed(path)
    assert (read.notes, read.header_bytes, read.payload_bytes) == (NOTES, written.header_bytes, written.payload_bytes)
    assert read.folded.image == folded.image
    for old, new in zip(folded.layers, read.folded.layers, strict=True):
        for field in dataclasses.fields(old):
            before, after = getattr(old, field.name), getattr(new, field.name)
            assert type(before) is type(after)
            np.testing.assert_array_equal(np.asarray(before, object), np.asarray(after, object), strict=False)
    pixels = pixels_of(GRAPHS[name], 2)
    np.testing.assert_array_equal(IntegerNetwork.of(read.folded)(pixels), IntegerNetwork.of(folded)(pixels))
    assert [p.name for p in tmp_path.iterdir()] == ["a.qpsnn"]


@pytest.mark.parametrize("name", GRAPHS)
def test_size_on_disk_is_the_reported_size_and_the_header(name, tmp_path):
    path, costs = tmp_path / "a.qpsnn", cost(GRAPHS[name])
    written = write_packed(path, folded_of(name), NOTES)
    assert path.stat().st_size == written.header_bytes + written.payload_bytes
    assert written.payload_bytes == payload_bytes(folded_of(name))
    # Eq. 16 has another 32 bits for a bias beside a batch-norm; every array is filled up to a whole byte.
    beside = sum(
        4 * n.features for n in GRAPHS[name].nodes if n.name in ("features.0.conv", "stem", "conv1") and n.bias
    )
    if name not in ("dense", "mixed"):
        assert 0 <= written.payload_bytes - (costs.size_bytes - beside) <= len(costs.nodes)
    with_8_bits = write_packed(path, folded_of(name, 8, 8), NOTES)
    quantized = written.folded.readout.kernel.dtype == np.uint8
    assert (
        (with_8_bits.payload_bytes == written.payload_bytes)
        if quantized
        else (with_8_bits.payload_bytes < written.payload_bytes)
    )


@given(st.integers(1, 8), st.data())
def test_codes_pack_low_bits_first(bits, data):
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=40))
    packed = pack_codes(np.asarray(codes, np.uint8), bits)
    assert packed == sum(code << (i * bits) for i, code in enumerate(codes)).to_bytes(
        -(-len(codes) * bits // 8), "little"
    )
    assert unpack_codes(packed, len(codes), bits).tolist() == codes


@given(st.lists(st.integers(0, 2), max_size=40))
def test_ternary_codes_pack_five_in_a_byte(codes):
    packed = pack_ternary(np.asarray(codes, np.uint8))
    fives = [codes[i : i + 5] for i in range(0, len(codes), 5)]
    assert list(packed) == [sum(code * 3**place for place, code in enumerate(five)) for five in fives]
    assert unpack_ternary(packed, len(codes)).tolist() == codes
    for damaged in (packed[:-1] if codes else b"\x01", packed + b"\xf3"):
        with pytest.raises(ValueError, match="bytes do not hold"):
            unpack_ternary(damaged, len(codes))


def test_what_begins_otherwise_is_no_packed_file(tmp_path):
    path = tmp_path / "a.qpsnn"
    for data in (b"", b"QPSNN", bytes(100), b"PK\x03\x04" + bytes(100)):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is not a packed network"):
            load_packed(path)
    write_packed(path, folded_of("dense"), NOTES)
    data = bytearray(path.read_bytes())
    data[8] = 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match="has version 4 of the packed format; this program reads 1 to 3"):
        load_packed(path)
    with pytest.raises(ValueError, match="plain values for JSON"):
        write_packed(path, folded_of("dense"), {"accuracy": float("nan")})
    with pytest.raises(OSError, match="absent"):
        load_packed(tmp_path / "absent")


def assert_raises(path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(ValueError, match=str(path)) as caught:
        load_packed(path)
    assert "\n" not in str(caught.value)


def test_thousands_of_damaged_files_raise(network, tmp_path):
    draw, whole, path = random.Random(0), network.read_bytes(), tmp_path / "fuzzed.qpsnn"
    for _ in range(600):
        data = bytearray(whole)
        place = draw.randrange(len(data))
        data[place] ^= 1 << draw.randrange(8)
        assert_raises(path, bytes(data))
        assert_raises(path, whole[: draw.randrange(len(whole))])
        assert_raises(path, whole + draw.randbytes(draw.randrange(1, 50)))
        start = draw.randrange(len(data))
        assert_raises(path, whole[:start] + draw.randbytes(draw.randrange(2, 40)) + whole[start:])


def complaint(path) -> str:
    try:
        IntegerNetwork.of(load_packed(path).folded)
    except ValueError as error:
        return str(error)
    return ""


def sealed(document: object, payload: bytes) -> bytes:
    """A file whose lengths and checksum are right, as a hostile writer would make it."""
    header = json.dumps(document).encode() if not isinstance(document, bytes) else document
    start = struct.pack("<8sIIQ", b"QPSNN\r\n\x1a", 1, len(header), len(payload))
    return start + struct.pack("<I", zlib.crc32(start + header + payload)) + header + payload


def parts(data: bytes) -> tuple[dict, bytes]:
    length = struct.unpack_from("<I", data, 12)[0]
    return json.loads(data[28 : 28 + length]), data[28 + length :]


STRANGE = (
    None,
    True,
    -1,
    0,
    1,
    3,
    2**31,
    10**30,
    0.5,
    1e308,
    "",
    "image",
    "fc",
    "x" * 999,
    "\x1b[2J",
    [],
    [[]],
    {},
    [0, 1],
)


def places(value: object, path: tuple = ()):
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def changed(document, path, value):
    if not path:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[path[0]] = changed(copy[path[0]], path[1:], value)
    return copy


def test_thousands_of_hostile_descriptions_do_no_harm(network, tmp_path):
    document, payload = parts(network.read_bytes())
    path, accepted, tried = tmp_path / "hostile.qpsnn", 0, 0
    for number, place in enumerate(places(document | {"notes": {}})):
        for value in STRANGE[number % 2 :: 2]:
            tried += 1
            path.write_bytes(sealed(changed(document, place, value), payload))
            message = complaint(path)
            accepted += not message
            assert "\n" not in message
            assert len(message) < 500
    assert tried > 1000
    # A renamed layer, another threshold or another note is a valid network too; most changes are not.
    assert accepted < tried / 5


def test_hostile_numbers_and_sizes_take_no_memory(network, tmp_path):
    (document, payload), path, draw = parts(network.read_bytes()), tmp_path / "hostile.qpsnn", random.Random(1)
    sizes = [place for place in places(document["layers"]) if place and place[-1] != "name"]
    tracemalloc.start()
    for _ in range(80):
        start = draw.randrange(len(payload))
        path.write_bytes(sealed(document, payload[:start] + draw.randbytes(len(payload) - start)))
        assert "\n" not in complaint(path)
        changed_size = changed(document, ("layers", *draw.choice(sizes)), draw.choice((2**15, 2**20, 2**31, 10**30)))
        path.write_bytes(sealed(changed_size, payload))
        assert "\n" not in complaint(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**21


def test_hostile_lengths_and_texts_raise(network, tmp_path):
    document, payload = parts(network.read_bytes())
    path = tmp_path / "hostile.qpsnn"
    for text in (b"", b"[" * 100_000, b"1" * 10_000, b'{"timesteps": NaN}', b"\xff\xfe", b"null", b'"\\ud800"'):
        assert_raises(path, sealed(text, payload))
    start = struct.pack("<8sIIQI", b"QPSNN\r\n\x1a", 1, 2**32 - 1, 2**63, 0)
    tracemalloc.start()
    assert_raises(path, start + bytes(1000))
    huge = changed(document, ("layers", 1, "kernel", "shape"), [2**20, 2**20, 2**20, 2**20])
    assert_raises(path, sealed(huge, payload))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**23
    # The bits that fill up the last byte of an array are zeros.
    for data in (b"\xff", b"", b"\x01\x01"):
        with pytest.raises(ValueError, match="do not hold 3 codes of 2 bits"):
            unpack_codes(data, 3, 2)


def test_a_small_file_asks_for_no_large_maps(network, tmp_path):
    document, payload = parts(network.read_bytes())
    path = tmp_path / "hostile.qpsnn"
    for size, words in ((23_000, "can lie in a padding of"), (10**9, "its padding must be an integer from 0 to")):
        path.write_bytes(sealed(changed(document, ("layers", 0, "padding"), [size, size]), payload))
        assert words in complaint(path)
    first = document["layers"][0]
    many = [{"kind": "sum", "name": f"s{i}", "first": first["name"], "second": first["name"]} for i in range(9000)]
    layers = [first, *many, *document["layers"][1:]]
    path.write_bytes(sealed({**document, "timesteps": 1024, "layers": layers}, payload))
    assert "values is too large" in complaint(path)


def test_small_files_of_large_maps_take_no_memory(network, tmp_path):
    (document, payload), path = parts(network.read_bytes()), tmp_path / "hostile.qpsnn"
    first, second, *others = document["layers"]
    names = [first["name"], *(f"c{i}" for i in range(28))]
    joined = [{"kind": "concatenation", "name": b, "sources": [a, a]} for a, b in pairwise(names)]
    runs = [[0, second["kernel"]["shape"][3]]]
    second = {**second, "residual": {"source": names[-1], "stride": 2, "channels": runs}}
    pool = {"kind": "max_pool", "name": "padded", "source": first["name"]}
    pool |= {"window": [2**15, 2**15], "strides": [2**15, 2**15], "padding": [2**15 - 1, 2**15 - 1]}
    spread = {**first, "dilation": [2**15, 2**15], "padding": [2**15, 2**15]}
    tracemalloc.start()
    for layers, words in (
        ([first, *joined, second, *others], "channels, which are too many"),
        ([first, pool, *document["layers"][1:]], "layer 'padded': its padding of .* is too large"),
        ([spread, *document["layers"][1:]], f"layer '{first['name']}': its padding of .* is too large"),
    ):
        path.write_bytes(sealed({**document, "layers": layers}, payload))
        assert re.search(words, complaint(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**21


def test_numbers_are_read_after_their_length_is_compared(network, tmp_path):
    (document, payload), path = parts(network.read_bytes()), tmp_path / "hostile.qpsnn"
    data, length = bytearray(sealed(document, payload)), 2**36
    struct.pack_into("<Q", data, 16, length)
    path.write_bytes(data)
    os.truncate(path, len(data) - len(payload) + length)
    tracemalloc.start()
    assert "another number of bytes" in complaint(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**21


@pytest.mark.parametrize("depth", [50, 500, 900, 990, 5000])
def test_deeply_nested_notes_raise_a_sentence_or_are_shown(network, tmp_path, depth, capsys):
    document, payload = parts(network.read_bytes())
    nested = json.dumps({**document, "notes": 0})[:-2]
    nested += '{"accuracy": 0.5, "stage": ' + "[" * depth + "]" * depth + "}}"
    path = tmp_path / "nested.qpsnn"
    path.write_bytes(sealed(nested.encode(), payload))
    assert main(["info", str(path)]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_what_could_not_be_read_is_not_written(tmp_path):
    folded = folded_of("dense")
    image = dataclasses.replace(folded.image, name="i" * 300)
    layers = tuple(
        dataclasses.replace(layer, source=image.name) if getattr(layer, "source", "") == folded.image.name else layer
        for layer in folded.layers
    )
    with pytest.raises(ValueError, match="cannot be packed: a name must be a printable text of at most 256 characters"):
        write_packed(tmp_path / "a.qpsnn", dataclasses.replace(folded, image=image, layers=layers), {})
    assert not list(tmp_path.iterdir())


def test_pointers_pipes_and_folders_are_named(tmp_path):
    pointer = tmp_path / "a.qpsnn"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match=r"a\.qpsnn is a Git LFS pointer in place of the file; fetch"):
        load_packed(str(pointer))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is not a regular file"):
        load_packed(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError):
        load_packed(tmp_path)


def test_export_and_info_of_a_run(small_run, tmp_path, capsys):
    file = tmp_path / "out" / "small.qpsnn"
    before = contents(small_run)
    command = ["export", str(small_run), "--format", "packed", "--out", str(file)]
    assert main(command) == 0
    packed = load_packed(file)
    assert f"{packed.payload_bytes:,} bytes of weights and {packed.header_bytes:,} of header" in capsys.readouterr().out
    assert packed.notes["stage"] == "finetuned"
    assert packed.notes["config"]["data"]["name"] == "digits"
    assert "data_dir" not in packed.notes["config"]["data"]
    assert main(["info", str(file)]) == 0
    text = capsys.readouterr().out
    assert "lif2" in text
    assert "at 2 bits" in text
    assert f"accuracy {100 * packed.notes['accuracy']:.2f} %" in text
    assert main(command) == 2
    assert "exists; choose another --out." in capsys.readouterr().err
    assert main([*command[:-1], str(tmp_path / "8.qpsnn"), "--stem-bits", "7"]) == 2
    assert "'7' is not one of '8', '32'" in capsys.readouterr().err
    assert not (tmp_path / "8.qpsnn").exists()
    file.write_bytes(file.read_bytes()[:-1])
    assert main(["info", str(file)]) == 2
    assert "is damaged" in capsys.readouterr().err
    assert contents(small_run) == before
