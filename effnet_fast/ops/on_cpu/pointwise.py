"""1x1 convolutions by csrc/cpu, with all that goes before and after."""

from __future__ import annotations

import torch
from torch import Tensor

from effnet_fast.ops.on_cpu.batch_norm import fold
from effnet_fast.ops.on_cpu.bridge import (
    ABSENT_MAP,
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
from effnet_fast.ops.shapes import new_acc, new_grads, new_map


def pointwise(
    x: Tensor, weight: Tensor, in_affine: Tensor | None, in_act: str, in_gate: Tensor | None,
    out_bn: list[Tensor | None], eps: float, out_act: str, residual: Tensor | None, stats: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x [N,C,H,W], weight [K,C,1,1], in_gate [N,C] -> y [N,K,H,W], stats [2,K] or [0]."""
    n, _, h, w = x.shape
    k = weight.shape[0]
    y = new_map(x, n, k, h, w)
    moments = new_acc(x, 2, k) if stats else new_acc(x, 0)
    m, affine = matrix(weight), fold(out_bn, eps)
    native().pointwise(
        torch.get_num_threads(), map_shape(x), k, strided(x), m.data_ptr(),
        prologue(in_affine, in_act, in_gate), (address(affine), ACTIVATIONS[out_act]),
        strided(residual), y.data_ptr(), wanted(moments, stats), 0,
    )  # fmt: skip
    return y, moments


def pointwise_pool(
    x: Tensor, weight: Tensor, out_bn: list[Tensor | None], eps: float, out_act: str
) -> Tensor:
    """The head: 1x1 convolution, BN, activation, mean over H, W -> [N,K]; no map is stored."""
    k = weight.shape[0]
    pooled = new_acc(x, x.shape[0], k)
    m, affine = matrix(weight), fold(out_bn, eps)
    native().pointwise(
        torch.get_num_threads(), map_shape(x), k, strided(x), m.data_ptr(),
        prologue(None, "identity"), (address(affine), ACTIVATIONS[out_act]), ABSENT_MAP, 0, 0,
        pooled.data_ptr(),
    )  # fmt: skip
    return pooled


def pointwise_bwd(
    g: Tensor | None, y: Tensor, x: Tensor, weight: Tensor, coef: Tensor,
    y_affine: Tensor | None, y_act: str, drop_scale: Tensor | None, dpool: Tensor | None,
    in_affine: Tensor | None, in_act: str, in_gate: Tensor | None, in_norm: Tensor | None,
    residual_grad: Tensor | None, need_dx: bool, need_dw: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Backward of pointwise -> (dx, dw, sums); what is not needed is [0]."""
    dx, dw = new_grads(x, weight, need_dx, need_dw)
    wants_sums = need_dx and in_affine is not None
    sums = new_acc(x, 5, *x.shape[:2]) if wants_sums else new_acc(x, 0)
    m = matrix(weight)
    native().pointwise_bwd(
        torch.get_num_threads(), map_shape(x), weight.shape[0],
        behind(g, coef, y_affine, y_act, None, drop_scale, dpool), dense(y), strided(x),
        m.data_ptr(), prologue(in_affine, in_act, in_gate), address(in_norm),
        dense(residual_grad), wanted(dx, need_dx), wanted(dw, need_dw), wanted(sums, wants_sums),
    )  # fmt: skip
    return dx, dw, sums
