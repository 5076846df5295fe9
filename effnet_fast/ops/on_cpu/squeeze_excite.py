"""Squeeze-and-excitation by csrc/cpu: its passes over a map."""

from __future__ import annotations

import torch
from torch import Tensor

from effnet_fast.ops.on_cpu.bridge import address, dense, map_shape, native, prologue, strided
from effnet_fast.ops.shapes import new_acc


def se_pool(x: Tensor, affine: Tensor | None, act: str) -> Tensor:
    """x [N,C,H,W] -> the means [N,C]."""
    pooled = new_acc(x, *x.shape[:2])
    native().se_pool(
        torch.get_num_threads(), map_shape(x), strided(x), prologue(affine, act), pooled.data_ptr()
    )
    return pooled


def se_bwd_reduce(
    g: Tensor, x: Tensor, affine: Tensor | None, act: str, norm: Tensor | None
) -> Tensor:
    """-> the five sums [5,N,C]."""
    sums = new_acc(x, 5, *x.shape[:2])
    native().se_bwd_reduce(
        torch.get_num_threads(), map_shape(x), dense(g), strided(x), prologue(affine, act),
        address(norm), sums.data_ptr(),
    )  # fmt: skip
    return sums
