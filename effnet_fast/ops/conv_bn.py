"""Convolution and batch norm as one layer: the part that every autograd function here shares.

A layer is a static :class:`ConvBn` and the five tensors :class:`ConvBnTensors`. Its raw output
``y`` is the only activation it writes; batch norm becomes ``affine``, applied by whoever loads
``y`` next, and in the backward pass ``coef``, from which the gradient of ``y`` is rebuilt on load.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from effnet_fast.ops import library as op
from effnet_fast.ops.checks import check_batch_statistics


class ConvBn(NamedTuple):
    """A convolution and its batch norm, less the tensors."""

    kind: str  # "conv2d", "pointwise" or "depthwise": an op of the vocabulary
    stride: int
    padding: tuple[int, int, int, int]  # top, bottom, left, right
    eps: float
    momentum: float
    batch_stats: bool  # normalise by the batch (training) or by the running statistics
    group: Any = None  # torch.distributed process group of a SyncBatchNorm


class ConvBnTensors(NamedTuple):
    """weight [K, C or 1, k, k]; gamma, beta, running_mean, running_var [K] or None."""

    weight: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None

    def batch_norm(self) -> list[Tensor | None]:
        """By the running statistics, as the ``out_bn`` of a convolution in inference."""
        return list(self[1:])


class Normalization(NamedTuple):
    """A batch norm ready to be applied: affine, norm [2,K], and how many values are behind it."""

    affine: Tensor
    norm: Tensor
    values: int


def normalize(
    layer: ConvBn, t: ConvBnTensors, y: Tensor, stats: Tensor, backend: str
) -> Normalization:
    """Batch norm of the raw output ``y`` (metadata only): by its moments ``stats``, or running."""
    count = y.shape[0] * y.shape[2] * y.shape[3]
    if not layer.batch_stats:
        return fold(layer, t, y.dtype, backend)
    if layer.group is not None:
        stats, count = _gather_moments(stats, count, layer.group)
    check_batch_statistics(count, f"{layer.kind} with {y.shape[1]} channels")
    affine, norm = op.bn_finalize(
        stats, t.gamma, t.beta, t.running_mean, t.running_var, count, layer.momentum, layer.eps,
        backend,
    )  # fmt: skip
    return Normalization(affine, norm, count)


def fold(layer: ConvBn, t: ConvBnTensors, dtype: torch.dtype, backend: str) -> Normalization:
    """Batch norm by the running statistics where gradients pass, for activations of ``dtype``."""
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    affine, norm = op.bn_fold(
        t.gamma, t.beta, t.running_mean, t.running_var, layer.eps, acc, backend
    )
    return Normalization(affine, norm, 0)


def backward_coef(
    layer: ConvBn, gamma: Tensor | None, norm: Tensor, sums: Tensor, count: int, backend: str
) -> Tensor:
    """The coefficients that rebuild the gradient of ``y``; ``sums`` are this process's own."""
    if layer.group is not None and layer.batch_stats:
        sums = sums.clone()
        dist.all_reduce(sums, group=layer.group)
    return op.bn_bwd_coef(sums, norm, gamma, count, layer.batch_stats, backend)


def _gather_moments(stats: Tensor, count: int, group: Any) -> tuple[Tensor, int]:
    """Moments over all processes of ``group``, by Chan's formula, and their total count."""
    mine = torch.cat((stats.flatten(), stats.new_tensor([count])))
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, mine, group=group)
    table = torch.stack(everyone)
    counts = table[:, -1:]
    mean, var = table[:, :-1].unflatten(1, stats.shape).unbind(1)
    total = counts.sum().clamp(min=1)
    grand_mean = (mean * counts).sum(0) / total
    grand_var = ((var + (mean - grand_mean) ** 2) * counts).sum(0) / total
    return torch.stack((grand_mean, grand_var)), int(counts.sum().item())


def wants_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd would record an op on these."""
    return torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in tensors)


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """For a Function's ``backward``: refuse ``create_graph=True`` instead of dropping terms.

    torch's own ``once_differentiable`` raises only if the incoming gradient requires grad; a
    gradient penalty, whose incoming gradient is a constant, it would let pass without a word.
    """

    @functools.wraps(backward)
    def run(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "effnet_fast's ops have no second derivative: they cannot be differentiated with "
                "create_graph=True; compute gradient penalties on a stock PyTorch model"
            )
        return backward(ctx, *grads)

    return run


def like_parameter(grad: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    """A gradient in its parameter's type (kernels return them in fp32)."""
    return None if grad is None or parameter is None else grad.to(parameter.dtype)


def channels_last_grad(g: Tensor) -> Tensor:
    """What autograd hands back, in the layout of the kernels.

    The one place where an activation-sized copy can happen: the gradient's layout is the choice of
    whoever consumed our output, and is not known when the backend is chosen.
    """
    return g.contiguous(memory_format=torch.channels_last)
