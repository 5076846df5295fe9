"""Batch norm by kernels/batch_norm.py; see :mod:`effnet_fast.reference`."""

from __future__ import annotations

import torch
from torch import Tensor

from effnet_fast.kernels import batch_norm as kernel
from effnet_fast.kernels import reduce, tuning, walk
from effnet_fast.ops.on_triton.common import TYPE_NAMES, pixels
from effnet_fast.ops.parameters import contiguous, write_back
from effnet_fast.ops.shapes import new_acc, new_like, new_norm_pair


def bn_fold(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float,
    acc: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Mean and biased variance [C] -> (affine, norm), [2,C]; ``acc`` is fp32 here."""
    c = mean.shape[0]
    affine, norm = new_norm_pair(mean, c, acc)
    kernel.launch_bn_fold(
        mean.contiguous(), var.contiguous(), contiguous(weight), contiguous(bias), None,
        affine, norm, c, eps, 0.0, 1.0,
    )  # fmt: skip
    return affine, norm


def bn_finalize(
    stats: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
    running_var: Tensor | None, count: int, momentum: float, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Batch moments [2,C] -> (affine, norm); moves the running statistics in the same launch."""
    c = stats.shape[1]
    affine, norm = new_norm_pair(stats, c, stats.dtype)
    running = None
    if count > 0 and running_mean is not None and running_var is not None:
        running = (running_mean.contiguous(), running_var.contiguous())
    kernel.launch_bn_fold(
        stats[0], stats[1], contiguous(weight), contiguous(bias), running,
        affine, norm, c, eps, momentum, count / max(count - 1, 1),
    )  # fmt: skip
    if running is not None:
        write_back(running_mean, running[0])
        write_back(running_var, running[1])
    return affine, norm


def _plan(op: str, x: Tensor, by_image: bool, reduces: str) -> tuple[walk.Walk, walk.Config]:
    """How the pass ``op`` over ``x`` is shared out; one image of all pixels unless ``by_image``."""
    n, c, h, w = x.shape
    images, size = (n, h * w) if by_image else (1, n * h * w)
    default = walk.default_config(images, size, c, reduces)
    key = walk.shape_class(images, size, c, TYPE_NAMES[x.dtype])
    config = tuning.pick(op, key, default)
    return walk.plan(images, size, c, config), config


def bn_residual(
    x: Tensor, affine: Tensor | None, act: str, gate: Tensor | None, drop_scale: Tensor | None,
    residual: Tensor | None,
) -> Tensor:  # fmt: skip
    """``act(affine(x)) * gate[N,C] * drop_scale[N] + residual``."""
    y = new_like(x)
    if y.numel() == 0:
        return y
    by_image = gate is not None or drop_scale is not None
    share, config = _plan("bn_residual", x, by_image, "nothing")
    x_pixels = pixels(x)
    kernel.launch_bn_residual(
        x, affine, gate, drop_scale, residual, y, tuple(x.shape[1:]), x_pixels,
        x_pixels if residual is None else pixels(residual), act, share, config,
    )  # fmt: skip
    return y


def bn_bwd_reduce(
    g: Tensor | None, y: Tensor, norm: Tensor, affine: Tensor | None, act: str,
    drop_scale: Tensor | None, dpool: Tensor | None,
) -> Tensor:  # fmt: skip
    """(sum h, sum h*xhat) over N, H, W -> [2,C]."""
    c = y.shape[1]
    sums = new_acc(y, 2, c)
    if y.numel() == 0:
        return sums.zero_()
    by_image = dpool is not None or drop_scale is not None
    share, config = _plan("bn_bwd_reduce", y, by_image, "batch")
    partials = sums if share.walkers == 1 else new_acc(y, share.walkers, 2, c)
    kernel.launch_bn_bwd_reduce(
        g, y, norm, affine, drop_scale, dpool, partials, tuple(y.shape[1:]), pixels(y), act,
        share, config,
    )  # fmt: skip
    if share.walkers > 1:
        reduce.launch_sum(partials, sums, share.walkers, 2 * c)
    return sums


def bn_bwd_coef(
    sums: Tensor, norm: Tensor, weight: Tensor | None, count: int, batch_stats: bool
) -> Tensor:
    """Sums over ``count`` elements -> coef [4,C]."""
    c = norm.shape[1]
    coef = new_acc(norm, 4, c)
    kernel.launch_bn_bwd_coef(sums, norm, contiguous(weight), coef, c, count, batch_stats)
    return coef


def bn_residual_bwd(
    g: Tensor, y: Tensor, coef: Tensor | None, affine: Tensor | None, act: str,
    gate: Tensor | None, drop_scale: Tensor | None, dpool: Tensor | None,
) -> Tensor:  # fmt: skip
    """The gradient of ``y``, written out."""
    dy = new_like(y)
    if dy.numel() == 0:
        return dy
    by_image = gate is not None or drop_scale is not None or dpool is not None
    share, config = _plan("bn_residual_bwd", y, by_image, "nothing")
    kernel.launch_bn_residual_bwd(
        g, y, coef, affine, gate, drop_scale, dpool, dy, tuple(y.shape[1:]), pixels(y), act,
        share, config,
    )  # fmt: skip
    return dy
