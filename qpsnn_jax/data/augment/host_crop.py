"""Decoding and cropping on the host with Pillow: transforms for :func:`~qpsnn_jax.data.stream.stream`.

ImageNet's pictures differ in shape until they are cropped, so this part cannot run inside jit. Both crops are small
frozen records, which are pickled to worker processes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qpsnn_jax.data.pictures import decode_picture
from qpsnn_jax.runtime.checks import integer

_TRIES = 10  # boxes drawn for each image before the fallback, as is customary


@dataclass(frozen=True)
class TrainCrop:
    """Random-resized crop, mirrored with probability one half.

    Attributes:
        size: side of the result in pixels.
        scale: smallest and largest area of the box, as a fraction of the image's area.
        ratio: smallest and largest width over height.
        flip: whether to mirror.

    Raises:
        ValueError: ``size`` is below 1, or a range is not increasing or out of bounds.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def __post_init__(self):
        integer("size", self.size, 1)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be two shares of the area with 0 < first <= second <= 1, got {self.scale!r}.")
        if not (0 < self.ratio[0] <= self.ratio[1] and math.isfinite(self.ratio[1])):
            raise ValueError(f"ratio must be two finite numbers with 0 < first <= second, got {self.ratio!r}.")

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Crop one example, whose ``image`` holds encoded bytes or uint8 ``h w 3``; its ``label`` becomes int32."""
        image = open_image(example["image"])
        box = draw_box(rng, image.height, image.width, self.scale, self.ratio)
        pixels = _resize(image, box, self.size, self.size)
        if self.flip and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        return _example(pixels, example)


@dataclass(frozen=True)
class CenterCrop:
    """The central square after the shorter side is resized; for evaluation.

    Attributes:
        size: side of the result in pixels.
        resize: length of the shorter side before the crop; ImageNet uses 256 for a size of 224.

    Raises:
        ValueError: a size below 1, or a shorter side below the size.
    """

    size: int = 224
    resize: int = 256

    def __post_init__(self):
        integer("size", self.size, 1)
        integer("resize", self.resize, self.size)

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """Crop one example, as :class:`TrainCrop` does, without randomness."""
        image = open_image(example["image"])
        shorter = min(image.height, image.width)
        height, width = (side * self.resize // shorter for side in (image.height, image.width))
        pixels = _resize(image, (0, 0, image.height, image.width), height, width)
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return _example(pixels[top : top + self.size, left : left + self.size], example)


def open_image(image: Any) -> Any:
    """Open encoded bytes or wrap uint8 ``h w 3``, as a Pillow image in RGB.

    Raises:
        ValueError: the bytes are not a readable image.
    """
    from PIL import Image

    return Image.fromarray(image) if isinstance(image, np.ndarray) else decode_picture(image, 3)


def draw_box(
    rng: np.random.Generator, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Draw top, left, height and width of a box: the first of ten draws that fits, else the largest in the middle."""
    for _ in range(_TRIES):
        area = rng.uniform(*scale) * height * width
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 1 <= h <= height and 1 <= w <= width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    aspect = max(ratio[0], min(ratio[1], width / height))
    h, w = min(height, round(width / aspect)), min(width, round(height * aspect))
    return (height - h) // 2, (width - w) // 2, h, w


def _resize(image: Any, box: tuple[int, int, int, int], height: int, width: int) -> np.ndarray:
    from PIL import Image

    top, left, h, w = box
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h)))


def _example(pixels: np.ndarray, example: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {"image": np.ascontiguousarray(pixels), "label": np.asarray(example["label"], np.int32)}
