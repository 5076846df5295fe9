"""Depthwise convolution by csrc/cpu: forward, and both gradients in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from effnet_fast.ops.on_cpu.batch_norm import fold
from effnet_fast.ops.on_cpu.bridge import (
    ACTIVATIONS,
    address,
    behind,
    dense,
    map_shape,
    matrix,
    native,
    prologue,
    strided,
    wanted,
)
from effnet_fast.ops.shapes import new_acc, new_conv_map, new_grads
from effnet_fast.reference import POOL_ROWS, Padding

Convolution = tuple[tuple[int, int, int, int, int], int, int, int, int, int, int]


def _shape(x: Tensor, y: Tensor, weight: Tensor, stride: int, padding: Padding) -> Convolution:
    _, _, p, q = y.shape
    top, _, left, _ = padding  # below and to the right is what P and Q imply
    return map_shape(x), p, q, weight.shape[2], stride, top, left


def depthwise(
    x: Tensor, weight: Tensor, stride: int, padding: Padding, in_affine: Tensor | None, in_act: str,
    out_bn: list[Tensor | None], eps: float, out_act: str, reduce: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x [N,C,H,W], weight [C,1,k,k] -> y [N,C,P,Q] and what ``reduce`` asks for."""
    y = new_conv_map(x, weight, stride, padding)
    n, c, p, _ = y.shape
    reduced = {
        "stats": lambda: new_acc(x, 2, c),
        "pool": lambda: new_acc(x, -(-p // POOL_ROWS), n, c),
        "none": lambda: new_acc(x, 0),
    }[reduce]()
    w, affine = matrix(weight), fold(out_bn, eps)
    native().depthwise(
        torch.get_num_threads(), _shape(x, y, weight, stride, padding), strided(x), w.data_ptr(),
        prologue(in_affine, in_act), (address(affine), ACTIVATIONS[out_act]), y.data_ptr(),
        wanted(reduced, reduce == "stats"), wanted(reduced, reduce == "pool"), POOL_ROWS,
    )  # fmt: skip
    return y, reduced


def depthwise_bwd(
    g: Tensor, y: Tensor, x: Tensor, weight: Tensor, stride: int, padding: Padding, coef: Tensor,
    y_affine: Tensor | None, y_act: str, gate: Tensor | None, dpool: Tensor | None,
    in_affine: Tensor | None, in_act: str, in_norm: Tensor | None, residual_grad: Tensor | None,
    need_dx: bool, need_dw: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """-> dx like x, dw like weight in fp32, sums [2,C]; [0] for what is not needed."""
    dx, dw = new_grads(x, weight, need_dx, need_dw)
    undo = need_dx and in_affine is not None and in_norm is not None
    sums = new_acc(x, 2, x.shape[1]) if undo else new_acc(x, 0)
    w = matrix(weight)
    native().depthwise_bwd(
        torch.get_num_threads(), _shape(x, y, weight, stride, padding),
        behind(g, coef, y_affine, y_act, gate, None, dpool), dense(y), strided(x), w.data_ptr(),
        prologue(in_affine, in_act), address(in_norm) if undo else 0, dense(residual_grad),
        wanted(dx, need_dx), wanted(dw, need_dw), wanted(sums, undo),
    )  # fmt: skip
    return dx, dw, sums
