"""Batch norm by csrc/cpu: its vectors of channels and its passes over a map."""

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
    vector,
)
from effnet_fast.ops.shapes import new_acc, new_like, new_norm_pair
from effnet_fast.reference import running_statistics


def bn_fold(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float,
    acc: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Mean and biased variance [C] -> (affine, norm), [2,C] in fp32."""
    c = mean.shape[0]
    affine, norm = new_norm_pair(mean, c, acc)
    native().bn_fold(
        c, vector(weight), vector(bias), vector(mean), vector(var), eps, affine.data_ptr(),
        norm.data_ptr(),
    )  # fmt: skip
    return affine, norm


def fold(out_bn: list[Tensor | None], eps: float) -> Tensor | None:
    """The affine [2,C] of an epilogue's batch norm; None for an empty list."""
    return bn_fold(*running_statistics(out_bn), eps, torch.float32)[0] if out_bn else None


def bn_finalize(
    stats: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
    running_var: Tensor | None, count: int, momentum: float, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """stats [2,C] -> (affine, norm); updates the running statistics."""
    c = stats.shape[1]
    affine, norm = new_norm_pair(stats, c, stats.dtype)
    stats = stats.contiguous()
    native().bn_finalize(
        c, stats.data_ptr(), vector(weight), vector(bias), vector(running_mean),
        vector(running_var), count, momentum, eps, affine.data_ptr(), norm.data_ptr(),
    )  # fmt: skip
    return affine, norm


def bn_bwd_coef(
    sums: Tensor, norm: Tensor, weight: Tensor | None, count: int, batch_stats: bool
) -> Tensor:
    """-> coef [4,C]."""
    c = norm.shape[1]
    coef = new_acc(norm, 4, c)
    sums, norm = sums.contiguous(), norm.contiguous()
    native().bn_bwd_coef(
        c, sums.data_ptr(), norm.data_ptr(), vector(weight), count, batch_stats, coef.data_ptr()
    )
    return coef


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
