"""Pictures from files and bytes, in a few formats. Sizes are checked before decoding; damage raises one sentence."""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from qpsnn_jax.runtime.files import open_regular, reason_of, unreadable

# Pillow knows more formats, some of which start other programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
# Pillow's own limit for decoding without a warning; the largest picture of ImageNet has 61 million.
MOST_PIXELS = 2**26

_MODES = {1: "L", 3: "RGB"}
# EXIF's orientations, and the operation that turns each upright.
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def read_picture(path: str | PathLike[str], channels: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode a picture file.

    Args:
        path: the file.
        channels: 1 for grey, 3 for RGB; pictures are converted.
        size: height and width that it must have, None for any.

    Returns:
        Pixels, uint8 ``h w c``.

    Raises:
        ValueError: the picture is in none of :data:`FORMATS`, is damaged, is an animation, has transparent pixels, or
            has another size.
        OSError: the file is missing or cannot be read.
    """
    with open_regular(path) as file:
        picture = _opened(file, path, channels, size)
    return np.asarray(picture).reshape(picture.height, picture.width, channels)


def decode_picture(data: bytes, channels: int, size: tuple[int, int] | None = None) -> Any:
    """A Pillow image in grey or RGB from encoded bytes; see :func:`read_picture`.

    Raises:
        ValueError: as :func:`read_picture`.
    """
    return _opened(io.BytesIO(data), None, channels, size)


def middle_square(picture: Any, side: int) -> np.ndarray:
    """The middle square of a picture, resized to ``side`` by ``side`` pixels (bilinear, smoothed where it shrinks).

    Args:
        picture: from :func:`decode_picture`.
        side: height and width of the result.

    Returns:
        Pixels, uint8 ``side side c``.
    """
    from PIL import Image

    shorter = min(picture.size)
    left, top = ((length - shorter) // 2 for length in picture.size)
    square = picture.crop((left, top, left + shorter, top + shorter))
    return np.asarray(square.resize((side, side), Image.Resampling.BILINEAR)).reshape(side, side, -1)


def read_square(path: str | PathLike[str], channels: int, side: int) -> np.ndarray:
    """:func:`middle_square` of a picture file; see :func:`read_picture`."""
    with open_regular(path) as file:
        return middle_square(_opened(file, path, channels, None), side)


def find_pictures(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """The picture files of a folder, sorted: regular files with one of the suffixes that are not hidden."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith("."))
    return sorted(path for path in found if path.is_file())


def _opened(file: BinaryIO, path: str | PathLike[str] | None, channels: int, size: tuple[int, int] | None) -> Any:
    """The picture with EXIF's orientation applied, 8 bits a sample (the upper 8 of 16).

    Grey from colours is ITU-R 601's luma, as Pillow computes it.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with without_warnings(), Image.open(file, formats=FORMATS) as picture:
            _check_size(picture.size, size, turned=True)  # before anything is decoded
            if picture.format != "MPO" and getattr(picture, "is_animated", False):
                raise _UnsuitableError("is an animation; save one of its pictures as a file")
            upright = _upright(picture)
            _check_size(upright.size, size, turned=False)
            return _converted(upright, channels)
    except _UnsuitableError as error:
        raise _error(path, str(error)) from None
    except Image.DecompressionBombError:
        raise _error(path, f"has more than {MOST_PIXELS:,} pixels, the largest size that is read") from None
    except UnidentifiedImageError:
        raise _error(path, f"is not a picture in one of the formats {', '.join(FORMATS)}") from None
    except Exception as error:  # decoders raise many types for damaged bytes, for example SyntaxError and struct.error
        raise _error(path, f"is a damaged picture ({reason_of(error)})") from None


class _UnsuitableError(ValueError):
    """A picture that is intact but cannot be used."""


def _check_size(found: tuple[int, int], size: tuple[int, int] | None, *, turned: bool) -> None:
    """Check a picture's width and height; with ``turned``, rows and columns may still be exchanged."""
    width, height = found
    if size is not None and (height, width) != size and not (turned and (width, height) == size):
        wanted = f"must have {size[0]} and {size[1]}; bring it to that size"
        raise _UnsuitableError(f"has {height} rows and {width} columns, and {wanted}")
    if width * height > MOST_PIXELS:
        raise _UnsuitableError(f"has {width * height:,} pixels, and at most {MOST_PIXELS:,} are read")


def _upright(picture: Any) -> Any:
    from PIL import Image

    picture.load()
    try:
        orientation = picture.getexif().get(_ORIENTATION)
    except Exception:  # the EXIF block is damaged, the picture need not be
        orientation = None
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return picture if turn is None else picture.transpose(Image.Transpose[turn])


def _converted(picture: Any, channels: int) -> Any:
    from PIL import Image

    if picture.mode.startswith("I"):
        samples = np.asarray(picture).astype(np.int64)
        transparent = (samples == picture.info.get("transparency")).any()
        picture = Image.fromarray((samples >> 8).clip(0, 255).astype(np.uint8))
    elif transparent := picture.has_transparency_data:
        picture = picture.convert("RGBA")
        transparent = picture.getchannel("A").getextrema()[0] < 255
    if transparent:
        raise _UnsuitableError("has transparent pixels; put it on a background first")
    return picture.convert(_MODES[channels])


def _error(path: str | PathLike[str] | None, reason: str) -> ValueError:
    return ValueError(f"an image {reason}.") if path is None else unreadable(fspath(path), reason)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence Pillow's warnings, in the main thread only, because warning filters are global to the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
