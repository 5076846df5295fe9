"""Depthwise convolution by csrc/cuda: forward, and both gradients in one pass."""

from __future__ import annotations

from torch import Tensor

from effnet_fast.ops.on_cuda import bridge
from effnet_fast.ops.on_cuda.bridge import (
    ACTIVATIONS,
    DTYPES,
    REDUCTIONS,
    Workspace,
    address,
    batch_norm,
    dense,
    strided,
)
from effnet_fast.ops.parameters import all_contiguous
from effnet_fast.ops.shapes import new_acc, new_conv_map, new_grads
from effnet_fast.reference import POOL_ROWS, Padding


def _shape(x: Tensor, y: Tensor, weight: Tensor, stride: int, padding: Padding) -> tuple[int, ...]:
    n, c, h, w = x.shape
    _, _, p, q = y.shape
    top, _, left, _ = padding  # below and to the right is what P and Q imply
    return DTYPES[x.dtype], n, c, h, w, p, q, weight.shape[2], stride, top, left


def depthwise(
    x: Tensor, weight: Tensor, stride: int, padding: Padding, in_affine: Tensor | None, in_act: str,
    out_bn: list[Tensor | None], eps: float, out_act: str, reduce: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x [N,C,H,W], weight [C,1,k,k] -> y [N,C,P,Q] and what ``reduce`` asks for."""
    y = new_conv_map(x, weight, stride, padding)
    n, c, p, _ = y.shape
    if reduce == "stats":
        reduced = new_acc(x, 2, c)
    elif reduce == "pool":
        reduced = new_acc(x, -(-p // POOL_ROWS), n, c)
    else:
        reduced = new_acc(x, 0)
    weight, bn = weight.contiguous(), all_contiguous(out_bn)
    bridge.native().depthwise(
        _shape(x, y, weight, stride, padding), strided(x), weight.data_ptr(), address(in_affine),
        ACTIVATIONS[in_act], batch_norm(bn, eps), ACTIVATIONS[out_act], REDUCTIONS[reduce],
        y.data_ptr(), reduced.data_ptr(), Workspace(x), bridge.place(x),
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
    if not need_dx and not need_dw:
        return dx, dw, sums
    weight = weight.contiguous()
    bridge.native().depthwise_bwd(
        _shape(x, y, weight, stride, padding), dense(g), dense(y), strided(x), weight.data_ptr(),
        coef.data_ptr(), address(y_affine), ACTIVATIONS[y_act], address(gate), address(dpool),
        address(in_affine), ACTIVATIONS[in_act], address(in_norm),
        dense(residual_grad) if need_dx else 0, dx.data_ptr(), dw.data_ptr(), sums.data_ptr(),
        Workspace(x), bridge.place(x),
    )  # fmt: skip
    return dx, dw, sums
