"""1x1 convolutions by csrc/cuda; what it has no kernel for, by :mod:`.products`."""

from __future__ import annotations

from torch import Tensor

from effnet_fast import limits
from effnet_fast.ops.on_cuda import bridge, products
from effnet_fast.ops.on_cuda.bridge import (
    ACTIVATIONS,
    DTYPES,
    Workspace,
    address,
    batch_norm,
    dense,
)
from effnet_fast.ops.parameters import all_contiguous
from effnet_fast.ops.shapes import new_acc, new_grads, new_map


def _shape(x: Tensor, weight: Tensor) -> tuple[int, int, int, int, int]:
    n, c, h, w = x.shape
    return DTYPES[x.dtype], n, c, weight.shape[0], h * w


def _pixels(x: Tensor | None) -> tuple[int, int]:
    return (0, 0) if x is None else (x.data_ptr(), limits.pixel_step(x) or 0)


def pointwise(
    x: Tensor, weight: Tensor, in_affine: Tensor | None, in_act: str, in_gate: Tensor | None,
    out_bn: list[Tensor | None], eps: float, out_act: str, residual: Tensor | None, stats: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """1x1 convolution with its prologue and its epilogue -> y [N,K,H,W], stats [2,K] or [0]."""
    args = (x, weight, in_affine, in_act, in_gate, out_bn, eps, out_act, residual, stats)
    if limits.cuda_product("pointwise", args) is not None:
        return products.pointwise(*args)
    n, _, h, w = x.shape
    k = weight.shape[0]
    y = new_map(x, n, k, h, w)
    moments = new_acc(x, 2, k) if stats else new_acc(x, 0)
    weight, bn = weight.contiguous(), all_contiguous(out_bn)
    bridge.native().pointwise(
        _shape(x, weight), _pixels(x), weight.data_ptr(), address(in_affine), ACTIVATIONS[in_act],
        address(in_gate), batch_norm(bn, eps), ACTIVATIONS[out_act], _pixels(residual),
        y.data_ptr(), moments.data_ptr() if stats else 0, Workspace(x), bridge.place(x),
    )  # fmt: skip
    return y, moments


def pointwise_bwd(
    g: Tensor | None, y: Tensor, x: Tensor, weight: Tensor, coef: Tensor,
    y_affine: Tensor | None, y_act: str, drop_scale: Tensor | None, dpool: Tensor | None,
    in_affine: Tensor | None, in_act: str, in_gate: Tensor | None, in_norm: Tensor | None,
    residual_grad: Tensor | None, need_dx: bool, need_dw: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Backward of pointwise -> (dx, dw, sums); what is not needed is [0]."""
    args = (
        g, y, x, weight, coef, y_affine, y_act, drop_scale, dpool, in_affine, in_act, in_gate,
        in_norm, residual_grad, need_dx, need_dw,
    )  # fmt: skip
    if limits.cuda_product("pointwise_bwd", args) is not None:
        return products.pointwise_bwd(*args)
    dx, dw = new_grads(x, weight, need_dx, need_dw)
    wants_sums = need_dx and in_affine is not None
    sums = new_acc(x, 5, *x.shape[:2]) if wants_sums else new_acc(x, 0)
    weight = weight.contiguous()
    bridge.native().pointwise_bwd(
        _shape(x, weight), dense(g), dense(y), _pixels(x), weight.data_ptr(), coef.data_ptr(),
        address(drop_scale), address(in_affine), ACTIVATIONS[in_act], address(in_gate),
        address(in_norm), dense(residual_grad), dx.data_ptr() if need_dx else 0,
        dw.data_ptr() if need_dw else 0, sums.data_ptr() if wants_sums else 0, Workspace(x),
        bridge.place(x),
    )  # fmt: skip
    return dx, dw, sums
