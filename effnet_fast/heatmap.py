"""A map of places drawn over a picture in colours."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor, nn

#: Colours of the heat map from 0 to 1, RGB; between them they change linearly.
_COLOURS = ((0.10, 0.10, 0.45), (0.05, 0.55, 0.75), (0.35, 0.80, 0.35), (0.95, 0.85, 0.15),
            (0.85, 0.10, 0.05))  # fmt: skip


def normalised(heat: Tensor, size: tuple[int, int]) -> Tensor:
    """One map [h, w] at ``size`` (height, width): bicubic, what is below 0 cut off, at most 1.

    A map without a positive value gives zeros.
    """
    enlarged = nn.functional.interpolate(
        heat[None, None].float().cpu().clamp(min=0), size=size, mode="bicubic", align_corners=False
    )[0, 0].clamp(min=0)  # bicubic overshoots
    peak = enlarged.max()
    return enlarged / peak if peak > 0 else enlarged


def overlay(picture: Image.Image, heat: Tensor) -> Image.Image:
    """``picture`` in RGB with the map ``heat`` [h, w] stretched over all of it.

    Where the map is highest its colour covers six tenths, where it is 0 or less two tenths of the
    picture.
    """
    picture = picture.convert("RGB")
    level = normalised(heat, (picture.height, picture.width))
    steps = torch.tensor(_COLOURS)
    place = level * (len(steps) - 1)
    low = place.long().clamp(max=len(steps) - 2)
    colour = torch.lerp(steps[low], steps[low + 1], (place - low)[..., None])
    share = 0.2 + 0.4 * level[..., None]
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    pixels = flat.view(picture.height, picture.width, 3).float() / 255
    mixed = torch.lerp(pixels, colour, share).mul(255).round().to(torch.uint8)
    return Image.frombytes("RGB", picture.size, mixed.numpy().tobytes())
