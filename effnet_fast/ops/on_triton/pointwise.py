"""1x1 convolutions forward by kernels/pointwise.py; see :mod:`effnet_fast.reference`."""

from __future__ import annotations

from torch import Tensor

from effnet_fast.kernels import pointwise as kernel
from effnet_fast.kernels import reduce, tuning
from effnet_fast.ops.on_triton.common import TYPE_NAMES, dot_precision, pixels
from effnet_fast.ops.parameters import all_contiguous
from effnet_fast.ops.shapes import new_acc, new_map


def _config(op: str, x: Tensor, weight: Tensor, rows: int) -> kernel.Config:
    k, c = weight.shape[:2]
    default = kernel.default_config(rows, c, k, x.element_size() * 8)
    return tuning.pick(op, kernel.shape_class(rows, c, k, TYPE_NAMES[x.dtype]), default)


def pointwise(
    x: Tensor, weight: Tensor, in_affine: Tensor | None, in_act: str, in_gate: Tensor | None,
    out_bn: list[Tensor | None], eps: float, out_act: str, residual: Tensor | None, stats: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """1x1 convolution with its prologue and its epilogue -> y [N,K,H,W], stats [2,K] or [0]."""
    n, _, h, w = x.shape
    k = weight.shape[0]
    y = new_map(x, n, k, h, w)
    if n == 0:
        return y, new_acc(x, 2, k).zero_() if stats else new_acc(x, 0)
    groups, rows = (1, n * h * w) if in_gate is None else (n, h * w)
    config = _config("pointwise", x, weight, rows)
    parts = kernel.parts(groups, rows, k, config)
    partials = new_acc(x, groups * parts, 2, k) if stats else None
    counts = new_acc(x, groups * parts) if stats else None
    kernel.launch_pointwise_fwd(
        x, weight.contiguous(), in_affine, in_gate, all_contiguous(out_bn), eps, residual, y,
        partials, counts,
        groups, rows, parts, (h, w), pixels(x), pixels(y if residual is None else residual),
        in_act, out_act, dot_precision(x), config,
    )  # fmt: skip
    if partials is None:
        return y, new_acc(x, 0)
    moments = new_acc(x, 2, k)
    reduce.launch_merge_moments(partials, counts, moments, groups * parts, k)
    return y, moments


def pointwise_pool(
    x: Tensor, weight: Tensor, out_bn: list[Tensor | None], eps: float, out_act: str
) -> Tensor:
    """The head: 1x1 convolution, BN, activation, mean over H, W -> [N,K]."""
    n, _, h, w = x.shape
    pooled = new_acc(x, n, weight.shape[0])
    if n > 0:
        config = _config("pointwise_pool", x, weight, h * w)
        kernel.launch_pointwise_pool(
            x, weight.contiguous(), all_contiguous(out_bn), eps, pooled, (h, w), pixels(x),
            out_act, dot_precision(x), config,
        )  # fmt: skip
    return pooled
