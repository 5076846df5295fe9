"""From a picture to a model's input: reading, resizing, cropping, normalising; the class names.

A :class:`Recipe` is data (two sizes, a filter, mean and std) and a function of a PIL image. Its
values equal those of torchvision's ``ImageClassification`` preset on RGB PIL images, bit for bit;
PIL's resampling is antialiased, so resizing a tensor instead would give other numbers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Literal, cast

import torch
from PIL import Image, ImageOps
from torch import Tensor

Interpolation = Literal["bicubic", "bilinear"]
Triple = tuple[float, float, float]

#: Mean and standard deviation of ImageNet's training pictures, RGB in [0, 1].
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
#: Both mean and std of models trained on inputs in [-1, 1] (Lite, AdvProp).
HALF: Triple = (0.5, 0.5, 0.5)

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# PIL's modes for one channel of 16 bits; "I" (int32) is what it makes of a 16-bit PGM.
_WIDE_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})


class ImageError(ValueError):
    """A picture cannot be read, or cannot be made into a model's input."""


@dataclass(frozen=True)
class Recipe:
    """The pre-processing that a set of weights was evaluated with.

    ``crop``: side of the square input, pixels. ``resize``: length of the picture's shorter side
    before the centre crop, pixels. ``interpolation``: PIL's filter. ``mean``, ``std``: per RGB
    channel, of values in [0, 1].
    """

    crop: int
    resize: int
    interpolation: Interpolation = "bicubic"
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.crop < 1 or self.resize < 1:
            raise ValueError(f"crop and resize must be >= 1, got {self.crop} and {self.resize}")
        if self.interpolation not in _FILTERS:
            raise ValueError(f"interpolation {self.interpolation!r}: expected one of {[*_FILTERS]}")

    def __call__(self, image: Image.Image) -> Tensor:
        """``image`` -> ``[3, crop, crop]`` float32, normalised, in channels-last strides.

        Any PIL mode (see :func:`to_rgb`). A picture smaller than the crop after resizing is
        padded with black. EXIF orientation is not looked at: :func:`load_image` has applied it.
        Raises :class:`ImageError` where the resized picture would exceed PIL's own limit against
        decompression bombs, as a line of pixels does.
        """
        return self._normalised(_centre_crop(self._resized(to_rgb(image)), self.crop))

    def whole(self, image: Image.Image) -> Tensor:
        """``image`` -> ``[3, H, W]`` likewise, resized and not cropped: its shorter side is
        ``resize`` pixels.
        """
        return self._normalised(self._resized(to_rgb(image)))

    def _normalised(self, image: Image.Image) -> Tensor:
        flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        pixels = flat.view(image.height, image.width, 3).permute(2, 0, 1).float().div_(255)
        mean = torch.tensor(self.mean).view(3, 1, 1)
        return pixels.sub_(mean).div_(torch.tensor(self.std).view(3, 1, 1))

    def _resized(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if min(width, height) == 0:
            raise ImageError(f"the picture is empty: {width} x {height} pixels")
        longer = int(self.resize * max(width, height) / min(width, height))
        size = (self.resize, longer) if width <= height else (longer, self.resize)
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and self.resize * longer > 2 * limit:
            raise ImageError(
                f"a picture of {width} x {height} pixels would be {size[0]} x {size[1]} after "
                f"resizing, over PIL's limit of {2 * limit} pixels: cut it to shape first"
            )
        if size == image.size:
            return image
        return image.resize(size, _FILTERS[self.interpolation])


def to_rgb(image: Image.Image) -> Image.Image:
    """``image`` in mode RGB, 8 bits a channel.

    Alpha is dropped, not blended. One channel of 16 bits is scaled by 1/257 (PIL's own conversion
    clips at 255: nearly all white). Floating-point pictures have no known range: ImageError.
    """
    if image.mode == "RGB":
        return image
    if image.mode in _WIDE_MODES:
        wide = image.convert("I")
        low, high = cast(tuple[int, int], wide.getextrema())
        if low < 0 or high > 65535:
            raise ImageError(
                f"a picture of mode {image.mode} has values from {low} to {high}: expected 16 bits"
            )
        image = wide.point(lambda value: value * (1 / 257) + 0.5).convert("L")
    elif image.mode == "F":
        raise ImageError("a picture of mode F (float) has no known range: convert it to 8 bits")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, PIL warns
    return image.convert("RGB")


def _centre_crop(image: Image.Image, size: int) -> Image.Image:
    def start(length: int) -> int:
        return round((length - size) / 2) if length >= size else -((size - length) // 2)

    left, top = start(image.width), start(image.height)
    return image.crop((left, top, left + size, top + size))  # PIL fills with black outside


def load_image(path: str | os.PathLike[str]) -> Image.Image:
    """The picture in a file, mode RGB, turned upright as its EXIF orientation says.

    torchvision leaves that orientation to the caller. Of an animation: the first frame. Raises
    :class:`ImageError`, naming path and reason, for a file that is missing, not a picture,
    damaged, truncated, or over PIL's limit against decompression bombs.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(ImageOps.exif_transpose(image))
    # Besides OSError, PIL's decoders raise SyntaxError, EOFError, struct.error, zlib.error and
    # more on damaged files, and DecompressionBombError is a plain Exception.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ImageError(f"cannot read the picture {os.fspath(path)!r}: {reason}") from error


@lru_cache(maxsize=1)
def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet-1k's 1000 classes, by class index (as torchvision words them)."""
    file = resources.files("effnet_fast").joinpath("data/imagenet_classes.txt")
    return tuple(file.read_text(encoding="utf-8").splitlines())
