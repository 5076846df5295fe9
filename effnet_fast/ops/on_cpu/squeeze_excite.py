"""Squeeze-and-excitation by csrc/cpu: squeeze, excitation, and their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from effnet_fast.ops.on_cpu.bridge import (
    ACTIVATIONS,
    address,
    dense,
    map_shape,
    matrix,
    native,
    prologue,
    strided,
)
from effnet_fast.ops.shapes import new_acc, new_excitation_grads


def se_pool(x: Tensor, affine: Tensor | None, act: str) -> Tensor:
    """x [N,C,H,W] -> the means [N,C]."""
    pooled = new_acc(x, *x.shape[:2])
    native().se_pool(
        torch.get_num_threads(), map_shape(x), strided(x), prologue(affine, act), pooled.data_ptr()
    )
    return pooled


def se_gate(
    pool: Tensor, w_reduce: Tensor, b_reduce: Tensor, w_expand: Tensor, b_expand: Tensor, act: str,
    count: int,
) -> Tensor:  # fmt: skip
    """pool [T,N,C], w_reduce [R,C,1,1], w_expand [C,R,1,1] -> gate [N,C]."""
    t, n, c = pool.shape
    gate = pool.new_empty((n, c))
    pool = pool.contiguous()
    reduce, expand = matrix(w_reduce), matrix(w_expand)
    reduce_bias, expand_bias = matrix(b_reduce), matrix(b_expand)
    native().se_gate(
        torch.get_num_threads(), (t, n, c, w_reduce.shape[0]), pool.data_ptr(), count,
        (reduce.data_ptr(), reduce_bias.data_ptr(), expand.data_ptr(), expand_bias.data_ptr(),
         ACTIVATIONS[act]),
        gate.data_ptr(),
    )  # fmt: skip
    return gate


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


def se_gate_bwd(
    sums: Tensor, gate: Tensor, pooled: Tensor, w_reduce: Tensor, b_reduce: Tensor,
    w_expand: Tensor, act: str, hw: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """-> dpool [N,C], dw_reduce, db_reduce, dw_expand, db_expand, bn_sums [2,C]."""
    n, c = gate.shape
    r = w_reduce.shape[0]
    results = new_excitation_grads(gate, w_reduce, w_expand)
    sums, gate, pooled = sums.contiguous(), gate.contiguous(), pooled.contiguous()
    reduce, bias, expand = matrix(w_reduce), matrix(b_reduce), matrix(w_expand)
    native().se_gate_bwd(
        torch.get_num_threads(), (n, c, r), hw, sums.data_ptr(), gate.data_ptr(),
        pooled.data_ptr(),
        (reduce.data_ptr(), bias.data_ptr(), expand.data_ptr(), 0, ACTIVATIONS[act]),
        [v.data_ptr() for v in results],
    )  # fmt: skip
    return results
