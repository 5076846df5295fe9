"""The stem's dense convolution: torch's own in fp32, with our passes around it.

It reads images of three channels and writes one map. torch's convolution is given a channels_last
weight, so that its result is channels_last whatever the image's layout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from effnet_fast.ops.on_cpu.batch_norm import bn_residual, bn_residual_bwd, fold
from effnet_fast.ops.on_cpu.bridge import map_shape, native, strided
from effnet_fast.ops.shapes import new_acc, new_like
from effnet_fast.reference import Padding


def _padded(x: Tensor, padding: Padding) -> tuple[Tensor, list[int]]:
    """``x`` and the symmetric padding that is left to the convolution."""
    top, bottom, left, right = padding
    if top == bottom and left == right:
        return x, [top, left]
    return F.pad(x, (left, right, top, bottom)), [0, 0]


def _canonical(y: Tensor) -> Tensor:
    _, c, h, w = y.shape
    return y if y.stride() == (h * w * c, 1, w * c, c) else new_like(y).copy_(y)


def conv2d(
    x: Tensor, weight: Tensor, stride: int, padding: Padding,
    out_bn: list[Tensor | None], eps: float, out_act: str, stats: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x [N,C,H,W], weight [K,C,k,k] -> y [N,K,P,Q], stats [2,K] of it or [0]."""
    padded, pad = _padded(x.float(), padding)
    w = weight.float().contiguous(memory_format=torch.channels_last)
    y = _canonical(F.conv2d(padded, w, None, stride, pad))
    moments = new_acc(x, 2, y.shape[1]) if stats else new_acc(x, 0)
    if stats:
        native().moments(torch.get_num_threads(), map_shape(y), strided(y), moments.data_ptr())
    if out_bn or out_act != "identity":
        y = bn_residual(y, fold(out_bn, eps), out_act, None, None, None)
    return y.to(x.dtype), moments


def conv2d_bwd(
    g: Tensor, y: Tensor, x: Tensor, weight: Tensor, stride: int, padding: Padding, coef: Tensor,
    y_affine: Tensor | None, y_act: str, need_dx: bool, need_dw: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """-> dx like x, dw like weight in fp32; [0] for what is not needed."""
    dy = bn_residual_bwd(g.float(), y.float(), coef, y_affine, y_act, None, None, None)
    padded, pad = _padded(x.float(), padding)
    da, dw, _ = torch.ops.aten.convolution_backward(
        dy, padded, weight.float(), None, [stride] * 2, pad, [1, 1], False, [0, 0], 1,
        [need_dx, need_dw, False],
    )  # fmt: skip
    if need_dx:
        top, _, left, _ = padding
        if pad == [0, 0]:  # it may have been padded here
            da = da[:, :, top : top + x.shape[2], left : left + x.shape[3]]
        da = _canonical(da).to(x.dtype)
    return (
        da if need_dx else x.new_empty(0),
        dw.contiguous() if need_dw else new_acc(x, 0),
    )
