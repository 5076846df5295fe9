"""Argument checks of the public ops and models: what was wrong, what was expected, what to do."""

from __future__ import annotations

import torch
from torch import Tensor

from effnet_fast.ops.shapes import output_size

ACTIVATIONS = ("identity", "relu", "relu6", "silu")
PADDINGS = ("symmetric", "same")

#: What ``padding=`` of an op accepts: see :func:`resolve_padding`.
PaddingArgument = int | str | tuple[int, ...] | list[int] | None


def check_activation(name: str) -> str:
    """``name`` if it is a known activation, else a ValueError that lists them."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
    return name


def check_map(x: Tensor, channels: int | None, what: str) -> None:
    """``x`` is a floating-point ``[N, channels, H, W]`` with at least one pixel."""
    if x.dim() != 4:
        raise ValueError(f"{what} must be [N, C, H, W] (4 dimensions), got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(
            f"{what} must be floating point, got {x.dtype}; scale images to float first"
        )
    if channels is not None and x.shape[1] != channels:
        raise ValueError(
            f"{what} must have {channels} channels in dimension 1 ([N, {channels}, H, W]), "
            f"got shape {tuple(x.shape)}"
        )
    if x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(f"{what} must be at least 1x1 pixels, got shape {tuple(x.shape)}")


def check_match(x: Tensor, weight: Tensor, what: str) -> None:
    """``x`` is on the device and of the type of the weights that it meets."""
    if x.device != weight.device:
        raise ValueError(
            f"{what} is on {x.device} and the weights are on {weight.device}; move one of them"
        )
    if x.dtype != weight.dtype:
        raise TypeError(
            f"{what} is {x.dtype} and the weights are {weight.dtype}; convert one of them, "
            "or run under torch.autocast"
        )


def check_vector(v: Tensor | None, size: int, x: Tensor, what: str) -> None:
    """``v`` is None or a floating-point ``[size]`` on ``x``'s device."""
    if v is None:
        return
    if tuple(v.shape) != (size,) or not v.is_floating_point():
        raise ValueError(
            f"{what} must be floating point of shape ({size},), got {v.dtype} {tuple(v.shape)}"
        )
    if v.device != x.device:
        raise ValueError(f"{what} is on {v.device} and the input is on {x.device}; move one")


def check_batch_statistics(count: int, what: str) -> None:
    """Batch statistics need more than one value per channel (none at all is an empty batch)."""
    if count == 1:
        raise ValueError(
            f"{what}: training-mode batch norm needs more than 1 value per channel, got 1 "
            "(batch 1 on a 1x1 map); use a larger batch or image, or eval mode"
        )


def resolve_padding(
    padding: PaddingArgument, size: torch.Size, kernel: int, stride: int
) -> tuple[int, int, int, int]:
    """Padding in any accepted form -> (top, bottom, left, right) for an input of ``size`` (NCHW).

    None or "symmetric": ``(kernel - 1) // 2`` on all sides, torch's habit. "same": TensorFlow's
    SAME, output ``ceil(size / stride)``, the odd pixel after. An int, a (vertical, horizontal)
    pair, or four ints in the order of the result.
    """
    if padding is None or padding == "symmetric":
        padding = (kernel - 1) // 2
    if padding == "same":
        total = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in size[2:]]
        top, left = total[0] // 2, total[1] // 2
        resolved = (top, total[0] - top, left, total[1] - left)
    elif isinstance(padding, int):
        resolved = (padding,) * 4
    elif isinstance(padding, tuple | list) and len(padding) == 2:
        resolved = (padding[0], padding[0], padding[1], padding[1])
    elif isinstance(padding, tuple | list) and len(padding) == 4:
        resolved = (padding[0], padding[1], padding[2], padding[3])
    else:
        raise ValueError(
            f"padding must be 'symmetric', 'same', an int, 2 ints or 4 ints, got {padding!r}"
        )
    if any(not isinstance(p, int) or p < 0 for p in resolved):
        raise ValueError(f"padding must be ints >= 0, got {padding!r}")
    out = (
        output_size(size[2], kernel, stride, resolved[0], resolved[1]),
        output_size(size[3], kernel, stride, resolved[2], resolved[3]),
    )
    if min(out) < 1:
        raise ValueError(
            f"a {kernel}x{kernel} kernel with stride {stride} and padding {resolved} "
            f"leaves no output of a {size[2]}x{size[3]} input; use a larger input or padding"
        )
    return resolved
