"""The dense convolution (the stem) on Triton; meaning and arguments as in the reference."""

from __future__ import annotations

from torch import Tensor

from effnet_fast.kernels import conv2d as forward
from effnet_fast.kernels import conv2d_bwd as backward
from effnet_fast.kernels import reduce, tuning
from effnet_fast.ops.on_triton.common import TYPE_NAMES, dot_precision
from effnet_fast.ops.parameters import all_contiguous
from effnet_fast.ops.shapes import new_acc, new_conv_map, new_grads
from effnet_fast.reference import Padding


def _key(x: Tensor, weight: Tensor, stride: int, pixels: int) -> str:
    """The shape class: maps count by their number of pixels, to a factor of 2."""
    k, c, kernel, _ = weight.shape
    return f"k{kernel} s{stride} c{c} to{k} m{pixels.bit_length()} {TYPE_NAMES[x.dtype]}"


def conv2d(
    x: Tensor, weight: Tensor, stride: int, padding: Padding,
    out_bn: list[Tensor | None], eps: float, out_act: str, stats: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See :func:`effnet_fast.reference.conv2d`."""
    k, c, kernel, _ = weight.shape
    y = new_conv_map(x, weight, stride, padding)
    merged = new_acc(x, 2, k) if stats else new_acc(x, 0)
    pixels = y.numel() // k
    if pixels == 0:
        return y, merged.zero_()
    config = tuning.pick(
        "conv2d",
        _key(x, weight, stride, pixels),
        forward.default_config(pixels, c * kernel * kernel, k, x.element_size(), stats),
    )
    moments = counts = None
    if stats:
        parts = forward.programs(pixels, config)
        moments, counts = new_acc(x, parts, 2, k), new_acc(x, parts)
    forward.launch_conv2d(
        x, weight, all_contiguous(out_bn), y, moments, counts, stride, padding[0], padding[2], eps,
        out_act, dot_precision(x), config,
    )  # fmt: skip
    if stats:
        reduce.launch_merge_moments(moments, counts, merged, parts, k)
    return y, merged


def conv2d_bwd(
    g: Tensor, y: Tensor, x: Tensor, weight: Tensor, stride: int, padding: Padding, coef: Tensor,
    y_affine: Tensor | None, y_act: str, need_dx: bool, need_dw: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See :func:`effnet_fast.reference.conv2d_bwd`."""
    k, c, kernel, _ = weight.shape
    top, _, left, _ = padding
    pixels = y.numel() // k
    dx, dw = new_grads(x, weight, need_dx, need_dw)
    if pixels == 0:
        return dx, dw.zero_()
    if need_dx:
        backward.launch_conv2d_dx(
            g, y, weight, coef, y_affine, dx, stride, top, left, y_act, dot_precision(x)
        )
    if need_dw:
        config = tuning.pick(
            "conv2d_bwd",
            _key(x, weight, stride, pixels),
            backward.default_config(pixels, c * kernel * kernel, k, x.element_size()),
        )
        parts = backward.programs(pixels, config)
        partials = new_acc(x, parts, *weight.shape)
        backward.launch_conv2d_dw(
            g, y, x, coef, y_affine, partials, kernel, stride, top, left, y_act,
            dot_precision(x), config,
        )  # fmt: skip
        reduce.launch_sum(partials, dw, parts, dw.numel())
    return dx, dw
