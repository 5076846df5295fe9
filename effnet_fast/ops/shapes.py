"""Shapes, layouts and types of the ops' results: for their fake kernels and for the real ones."""

from __future__ import annotations

import torch
from torch import Tensor

from effnet_fast.reference import Padding, acc_dtype


def output_size(size: int, kernel: int, stride: int, before: int, after: int) -> int:
    """Length of a convolution's output along one axis."""
    return (size + before + after - kernel) // stride + 1


def new_map(x: Tensor, n: int, c: int, h: int, w: int) -> Tensor:
    """An uninitialised activation like ``x``, in canonical channels_last strides."""
    return x.new_empty_strided((n, c, h, w), (h * w * c, 1, w * c, c))


def new_like(x: Tensor) -> Tensor:
    """An uninitialised activation of ``x``'s shape, in canonical channels_last strides."""
    return new_map(x, *x.shape)


def new_conv_map(x: Tensor, weight: Tensor, stride: int, padding: Padding) -> Tensor:
    """The uninitialised result of a convolution of ``x`` with ``weight`` [K, ., k, k]."""
    top, bottom, left, right = padding
    p = output_size(x.shape[2], weight.shape[2], stride, top, bottom)
    q = output_size(x.shape[3], weight.shape[3], stride, left, right)
    return new_map(x, x.shape[0], weight.shape[0], p, q)


def new_acc(x: Tensor, *shape: int) -> Tensor:
    """An uninitialised tensor of the accumulation type that goes with ``x``."""
    return x.new_empty(shape, dtype=acc_dtype(x))


def new_grads(x: Tensor, weight: Tensor, need_dx: bool, need_dw: bool) -> tuple[Tensor, Tensor]:
    """Uninitialised dx like ``x`` and dw like ``weight`` in the accumulation type; else [0]."""
    dx = new_like(x) if need_dx else x.new_empty(0)
    return dx, new_acc(x, *weight.shape) if need_dw else new_acc(x, 0)


def new_excitation_grads(
    gate: Tensor, w_reduce: Tensor, w_expand: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Uninitialised dpool [N,C], dw_reduce, db_reduce, dw_expand, db_expand, bn_sums [2,C]."""
    r, c = w_reduce.shape[:2]
    return (
        new_acc(gate, *gate.shape), new_acc(gate, *w_reduce.shape), new_acc(gate, r),
        new_acc(gate, *w_expand.shape), new_acc(gate, c), new_acc(gate, 2, c),
    )  # fmt: skip


def new_norm_pair(x: Tensor, channels: int, acc: torch.dtype) -> tuple[Tensor, Tensor]:
    """Uninitialised (affine, norm), [2, channels] each."""
    return x.new_empty((2, channels), dtype=acc), x.new_empty((2, channels), dtype=acc)
