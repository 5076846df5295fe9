"""Batch norm by csrc/cpu: its passes over a map."""

from __future__ import annotations

import torch
from torch import Tensor

from effnet_fast.ops.on_cpu.bridge import (
    address,
    behind,
    map_shape,
    native,
    prologue,
    strided,
)
from effnet_fast.ops.shapes import new_acc, new_like


def bn_residual(
    x: Tensor, affine: Tensor | None, act: str, gate: Tensor | None, drop_scale: Tensor | None,
    residual: Tensor | None,
) -> Tensor:  # fmt: skip
    """The one elementwise pass, x [N,C,H,W] -> y."""
    y = new_like(x)
    native().bn_residual(
        torch.get_num_threads(), map_shape(x), strided(x), prologue(affine, act, gate),
        address(drop_scale), strided(residual), y.data_ptr(),
    )  # fmt: skip
    return y


def bn_bwd_reduce(
    g: Tensor | None, y: Tensor, norm: Tensor, affine: Tensor | None, act: str,
    drop_scale: Tensor | None, dpool: Tensor | None,
) -> Tensor:  # fmt: skip
    """-> (sum h, sum h*xhat) [2,C]."""
    sums = new_acc(y, 2, y.shape[1])
    native().bn_bwd_reduce(
        torch.get_num_threads(), map_shape(y),
        behind(g, None, affine, act, None, drop_scale, dpool), strided(y), norm.data_ptr(),
        sums.data_ptr(),
    )  # fmt: skip
    return sums


def bn_residual_bwd(
    g: Tensor, y: Tensor, coef: Tensor | None, affine: Tensor | None, act: str,
    gate: Tensor | None, drop_scale: Tensor | None, dpool: Tensor | None,
) -> Tensor:  # fmt: skip
    """-> the gradient of ``y``, written out."""
    dy = new_like(y)
    native().bn_residual_bwd(
        torch.get_num_threads(), map_shape(y),
        behind(g, coef, affine, act, gate, drop_scale, dpool), strided(y), dy.data_ptr(),
    )  # fmt: skip
    return dy
