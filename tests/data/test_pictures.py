"""The reader of pictures: they are upright, at 8 bits; anything else is one sentence."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from qpsnn_jax.data.pictures import FORMATS, decode_picture, find_pictures, middle_square, read_picture, read_square

GREY = np.arange(6 * 5, dtype=np.uint8).reshape(6, 5) * 8
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], -1)


def png(*chunks):
    """A PNG file from its chunks, with valid checksums."""
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def grey_png(samples, bits, extra=()):
    """Grey samples of 8 or 16 bits, written chunk by chunk."""
    h, w = samples.shape
    header = struct.pack(">IIBBBBB", w, h, bits, 0, 0, 0, 0)
    rows = samples.astype(f">u{bits // 8}")
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return png((b"IHDR", header), *extra, (b"IDAT", data), (b"IEND", b""))


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content[0].save(path, **content[1])
        return path

    return write


def error_of(path, channels=1, size=None):
    with pytest.raises(ValueError) as caught:
        read_picture(path, channels, size)
    message = str(caught.value)
    assert message.startswith(f"{path} ")
    assert message.endswith(".")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", ["png", "bmp", "gif", "webp"])
def test_pixels_come_out_as_they_went_in(file, kind):
    lossless = {"lossless": True} if kind == "webp" else {}
    np.testing.assert_array_equal(read_picture(file(f"a.{kind}", (Image.fromarray(GREY), lossless)), 1)[..., 0], GREY)
    colour = file(f"b.{kind}", (Image.fromarray(COLOUR), lossless))
    if kind != "gif":
        np.testing.assert_array_equal(read_picture(str(colour), 3), COLOUR)
    assert decode_picture(colour.read_bytes(), 3).mode == "RGB"
    assert read_picture(colour, 1, (6, 5)).shape == (6, 5, 1)


def test_jpeg_and_grey_in_colour(file):
    path = file("a.jpg", (Image.fromarray(GREY), {"quality": 100}))
    assert np.abs(read_picture(path, 3).astype(int) - GREY[..., None]).max() < 4


def test_of_16_bits_the_upper_8_are_kept(file):
    samples = GREY.astype(np.uint16) * 257
    np.testing.assert_array_equal(read_picture(file("a.png", grey_png(samples, 16)), 1)[..., 0], GREY)
    assert read_picture(file("b.png", grey_png(np.asarray([[255, 256, 65535]]), 16)), 1).ravel().tolist() == [0, 1, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(file, orientation):
    """The stored picture is turned so that the tag turns it back."""
    stored = {
        1: GREY,
        2: GREY[:, ::-1],
        3: GREY[::-1, ::-1],
        4: GREY[::-1],
        5: GREY.T,
        6: GREY[::-1].T[::-1, ::-1],
        7: GREY[::-1, ::-1].T,
        8: GREY[:, ::-1].T[::-1, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = file("a.png", (Image.fromarray(np.ascontiguousarray(stored)), {"exif": exif}))
    np.testing.assert_array_equal(read_picture(path, 1, (6, 5))[..., 0], GREY)
    assert "has 6 rows and 5 columns, and must have 5 and 6" in error_of(path, size=(5, 6))


def test_a_damaged_exif_block_says_nothing(file):
    path = file("a.png", grey_png(GREY, 8, [(b"eXIf", b"MM\0*" + b"\xff" * 9)]))
    np.testing.assert_array_equal(read_picture(path, 1)[..., 0], GREY)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "16 bits", "tRNS"])
def test_transparent_pixels_raise_and_an_opaque_alpha_is_not(file, mode):
    alpha = np.full_like(GREY, 255)
    if mode in ("LA", "RGBA"):
        layers = (GREY, alpha) if mode == "LA" else (*COLOUR.transpose(2, 0, 1), alpha)
        whole = np.stack(layers, -1)
        holed = whole.copy()
        holed[2, 3, -1] = 254
        opaque, transparent = (file(f"{x}.png", (Image.fromarray(y), {})) for x, y in (("a", whole), ("b", holed)))
    elif mode == "P":
        palette = Image.fromarray(COLOUR).quantize(8)
        opaque = file("a.png", (palette, {}))
        transparent = file("b.png", (palette, {"transparency": palette.getpixel((0, 0))}))
    else:
        bits = 16 if mode == "16 bits" else 8
        samples = GREY.astype(int) * (257 if bits == 16 else 1)
        chunks = [[(b"tRNS", struct.pack(">H", level))] for level in (3, samples[1, 1])]
        opaque, transparent = (file(f"{i}.png", grey_png(samples, bits, chunk)) for i, chunk in enumerate(chunks))
    assert read_picture(opaque, 1).shape == (6, 5, 1)
    assert "has transparent pixels; put it on a background first" in error_of(transparent)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"


@pytest.mark.parametrize("content", [b"", b"abc", POSTSCRIPT, b"II*\0" + bytes(60), b"DDS " + bytes(20)])
def test_other_formats_raise_whatever_the_name_says(file, content, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)  # no reader may start a program
    assert f"is not a picture in one of the formats {', '.join(FORMATS)}" in error_of(file("digit.png", content))


def test_damage_is_named(file):
    whole = grey_png(GREY, 8)
    decoded = len(whole) - 12 - 4 - 4  # before the chunk of the end and two checksums
    for cut in range(10, decoded - 2):
        error_of(file("cut.png", whole[:cut]))
    control = [(b"acTL", struct.pack(">II", 2, 0))]
    assert "is " in error_of(file("apng.png", grey_png(GREY, 8, control)[:-12] + png((b"fdAT", bytes(8)))[8:]))


def test_animations_raise(file):
    frames = [Image.fromarray(GREY + i) for i in range(3)]
    path = file("a.gif", (frames[0], {"save_all": True, "append_images": frames[1:]}))
    assert "is an animation; save one of its pictures as a file" in error_of(path)


def test_sizes_are_looked_at_before_anything_is_decoded(file, monkeypatch):
    def declared(side):
        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        return file("large.png", png((b"IHDR", header), (b"IDAT", b"never read"), (b"IEND", b"")))

    monkeypatch.setattr(Image.Image, "load", None)
    assert "has 10000 rows and 10000 columns, and must have 6 and 5" in error_of(declared(10_000), size=(6, 5))
    assert "has 100,000,000 pixels, and at most 67,108,864 are read" in error_of(declared(10_000))
    assert "has more than 67,108,864 pixels" in error_of(declared(20_000))


def test_pointers_and_missing_files(file, tmp_path):
    pointer = file("a.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    assert "is a Git LFS pointer in place of the file" in error_of(pointer)
    with pytest.raises(FileNotFoundError, match=r"b\.png"):
        read_picture(tmp_path / "b.png", 1)


def test_pictures_of_a_folder_are_regular_files_by_their_suffix(tmp_path):
    for name in ("b.PNG", "a.jpeg", ".c.png", "d.tiff", "e.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "f.png").mkdir()
    assert [path.name for path in find_pictures(tmp_path)] == ["a.jpeg", "b.PNG"]


def test_a_square_is_the_middle_one_resized_with_the_weights_of_a_triangle(file):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 21, 3), dtype=np.uint8)
    centres, ratio = (np.arange(8) + 0.5) * 12 / 8, 12 / 8
    weights = np.maximum(0, 1 - np.abs(np.arange(12) + 0.5 - centres[:, None]) / ratio)
    weights /= weights.sum(1, keepdims=True)
    expected = np.einsum("ay,bx,yxc->abc", weights, weights, pixels[:, 4:16].astype(float))
    found = read_square(file("a.png", (Image.fromarray(pixels), {})), 3, 8)
    np.testing.assert_allclose(found.astype(float), expected, atol=1)
    tall = np.ascontiguousarray(pixels.swapaxes(0, 1))
    turned = middle_square(Image.fromarray(tall), 8).swapaxes(0, 1)
    np.testing.assert_allclose(turned.astype(float), expected, atol=1)
    assert middle_square(Image.fromarray(GREY), 3).shape == (3, 3, 1)
