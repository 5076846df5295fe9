"""Depthwise convolution by the Triton kernels: forward, and both gradients in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from effnet_fast.kernels import depthwise as fwd
from effnet_fast.kernels import depthwise_bwd as bwd
from effnet_fast.kernels import reduce as second_stage
from effnet_fast.kernels import tuning
from effnet_fast.ops.on_triton.common import TYPE_NAMES, pixels
from effnet_fast.ops.parameters import all_contiguous
from effnet_fast.ops.shapes import new_conv_map, new_like
from effnet_fast.reference import POOL_ROWS, Padding

assert POOL_ROWS == fwd.STRIP_ROWS


def _key(kernel: int, stride: int, channels: int, columns: int, dtype: torch.dtype) -> str:
    return f"k{kernel} s{stride} c{channels} w{columns} {TYPE_NAMES[dtype]}"


def _taps(weight: Tensor) -> Tensor:
    """[C, 1, k, k] -> [k*k, C] contiguous: a view if the weight is stored that way, else a copy.

    Read in the parameter's own order, a thread's 8 channels lie k*k apart, and k 5 costs it 200
    loads of two bytes for each patch beside 48 of sixteen for the pixels.
    """
    return weight.flatten(1).t().contiguous()


def depthwise(
    x: Tensor, weight: Tensor, stride: int, padding: Padding, in_affine: Tensor | None, in_act: str,
    out_bn: list[Tensor | None], eps: float, out_act: str, reduce: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x [N,C,H,W], weight [C,1,k,k] -> y [N,C,P,Q] and what ``reduce`` asks for."""
    k, (top, _, left, _) = weight.shape[2], padding
    y = new_conv_map(x, weight, stride, padding)
    n, c, p, q = y.shape
    shape = {"stats": (2, c), "pool": (-(-p // POOL_ROWS), n, c), "none": (0,)}[reduce]
    reduced = torch.empty(shape, dtype=torch.float32, device=x.device)
    if y.numel() == 0:
        return y, reduced.zero_()
    along = fwd.programs(n, p, reduce == "stats")
    moments = counts = None
    if reduce == "stats":
        moments, counts = reduced.new_empty((along, 2, c)), reduced.new_empty(along)
    default = fwd.default_config(c, q, x.element_size())
    config = tuning.pick("depthwise", _key(k, stride, c, q, x.dtype), default)
    bn = tuple(all_contiguous(out_bn)) or None
    at = pixels(x)
    fwd.launch_depthwise(
        x, _taps(weight), in_affine, bn, y, reduced if reduce == "pool" else None, moments, counts,
        k, stride, top, left, (at.n, at.h, at.w), in_act, eps, out_act, config,
    )  # fmt: skip
    if moments is not None and counts is not None:
        second_stage.launch_merge_moments(moments, counts, reduced, along, c)
    return y, reduced


def depthwise_bwd(
    g: Tensor, y: Tensor, x: Tensor, weight: Tensor, stride: int, padding: Padding, coef: Tensor,
    y_affine: Tensor | None, y_act: str, gate: Tensor | None, dpool: Tensor | None,
    in_affine: Tensor | None, in_act: str, in_norm: Tensor | None, residual_grad: Tensor | None,
    need_dx: bool, need_dw: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """g and y [N,C,P,Q], x [N,C,H,W] -> dx, dw [C,1,k,k] and sums [2,C]; [0] where not needed."""
    n, c, h, w = x.shape
    k = weight.shape[2]
    nothing = torch.empty(0, dtype=torch.float32, device=x.device)
    need_sums = need_dx and in_affine is not None and in_norm is not None
    dx = new_like(x) if need_dx else None
    dw = nothing.new_empty(weight.shape) if need_dw else None
    rows = (k * k if need_dw else 0) + (2 if need_sums else 0)
    summed = nothing.new_empty((rows, c))  # of dw by taps, then of h and h * xhat
    results = (
        x.new_empty(0) if dx is None else dx,
        nothing if dw is None else dw,
        summed[rows - 2 :] if need_sums else nothing,
    )
    if y.numel() == 0 or x.numel() == 0 or not (need_dx or need_dw):
        for result in results:
            result.zero_()
        return results
    config = tuning.pick(
        "depthwise_bwd", _key(k, stride, c, w, x.dtype), bwd.default_config(k, stride, c, h, w)
    )
    along, _ = bwd.walk(n, c, h, w, padding[0], k, stride, config)
    parts = nothing.new_empty((along, rows, c))
    at = pixels(x)
    bwd.launch_depthwise_bwd(
        g, y, x, _taps(weight), bwd.Epilogue(coef, y_affine, y_act, gate, dpool),
        in_affine, in_act, in_norm if need_sums else None, residual_grad, dx,
        parts if need_dw else None, parts[:, rows - 2 :] if need_sums else None, rows * c,
        k, stride, padding[0], padding[2], (at.n, at.h, at.w), config,
    )  # fmt: skip
    if rows:
        second_stage.launch_sum(parts, summed, along, rows * c)
    if dw is not None:
        dw.view(c, k * k).copy_(summed[: k * k].t())
    return results
