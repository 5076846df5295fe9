"""Batch norm by csrc/cuda: its per-channel steps and its passes over a map."""

from __future__ import annotations

import torch
from torch import Tensor

from effnet_fast.ops.on_cuda import bridge
from effnet_fast.ops.on_cuda.bridge import (
    ACTIVATIONS,
    Workspace,
    address,
    batch_norm,
    dense,
    map_shape,
    param,
    strided,
)
from effnet_fast.ops.parameters import all_contiguous, contiguous, write_back
from effnet_fast.ops.shapes import new_acc, new_like, new_norm_pair


def bn_fold(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float,
    acc: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Mean and biased variance [C] -> (affine, norm), [2,C] in fp32."""
    c = mean.shape[0]
    affine, norm = new_norm_pair(mean, c, acc)
    bn = all_contiguous((weight, bias, mean, var))
    bridge.native().bn_fold(
        c, batch_norm(bn, eps), affine.data_ptr(), norm.data_ptr(),
        bridge.place(mean),
    )  # fmt: skip
    return affine, norm


def bn_finalize(
    stats: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
    running_var: Tensor | None, count: int, momentum: float, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """stats [2,C] -> (affine, norm); updates the running statistics."""
    c = stats.shape[1]
    affine, norm = new_norm_pair(stats, c, stats.dtype)
    weight, bias = contiguous(weight), contiguous(bias)
    mean, var = contiguous(running_mean), contiguous(running_var)
    bridge.native().bn_finalize(
        c, stats.data_ptr(), param(weight), param(bias), param(mean), param(var), count, momentum,
        eps, affine.data_ptr(), norm.data_ptr(), bridge.place(stats),
    )  # fmt: skip
    write_back(running_mean, mean)
    write_back(running_var, var)
    return affine, norm


def bn_residual(
    x: Tensor, affine: Tensor | None, act: str, gate: Tensor | None, drop_scale: Tensor | None,
    residual: Tensor | None,
) -> Tensor:  # fmt: skip
    """The one elementwise pass, x [N,C,H,W] -> y."""
    y = new_like(x)
    bridge.native().bn_residual(
        map_shape(x), strided(x), address(affine), ACTIVATIONS[act], address(gate),
        address(drop_scale), strided(residual), y.data_ptr(), bridge.place(x),
    )  # fmt: skip
    return y


def bn_bwd_reduce(
    g: Tensor | None, y: Tensor, norm: Tensor, affine: Tensor | None, act: str,
    drop_scale: Tensor | None, dpool: Tensor | None,
) -> Tensor:  # fmt: skip
    """-> (sum h, sum h*xhat) [2,C]."""
    sums = new_acc(y, 2, y.shape[1])
    bridge.native().bn_bwd_reduce(
        map_shape(y), dense(g), strided(y), norm.data_ptr(), address(affine), ACTIVATIONS[act],
        address(drop_scale), address(dpool), sums.data_ptr(), Workspace(y), bridge.place(y),
    )  # fmt: skip
    return sums


def bn_bwd_coef(
    sums: Tensor, norm: Tensor, weight: Tensor | None, count: int, batch_stats: bool
) -> Tensor:
    """-> coef [4,C]."""
    c = norm.shape[1]
    coef = new_acc(norm, 4, c)
    weight = contiguous(weight)
    bridge.native().bn_bwd_coef(
        c, sums.data_ptr(), norm.data_ptr(), param(weight), count, batch_stats, coef.data_ptr(),
        bridge.place(norm),
    )  # fmt: skip
    return coef


def bn_residual_bwd(
    g: Tensor, y: Tensor, coef: Tensor | None, affine: Tensor | None, act: str,
    gate: Tensor | None, drop_scale: Tensor | None, dpool: Tensor | None,
) -> Tensor:  # fmt: skip
    """-> the gradient of ``y``, written out."""
    dy = new_like(y)
    bridge.native().bn_residual_bwd(
        map_shape(y), dense(g), strided(y), address(coef), address(affine), ACTIVATIONS[act],
        address(gate), address(drop_scale), address(dpool), dy.data_ptr(), bridge.place(y),
    )  # fmt: skip
    return dy
