"""Squeeze-and-excitation by csrc/cuda: squeeze, excitation, and their gradients."""

from __future__ import annotations

from torch import Tensor

from effnet_fast.ops.on_cuda import bridge
from effnet_fast.ops.on_cuda.bridge import (
    ACTIVATIONS,
    DTYPES,
    Param,
    Workspace,
    address,
    dense,
    map_shape,
    param,
    strided,
)
from effnet_fast.ops.parameters import contiguous
from effnet_fast.ops.shapes import new_acc, new_excitation_grads


def se_pool(x: Tensor, affine: Tensor | None, act: str) -> Tensor:
    """x [N,C,H,W] -> the means [N,C]."""
    pooled = new_acc(x, *x.shape[:2])
    bridge.native().se_pool(
        map_shape(x), strided(x), address(affine), ACTIVATIONS[act], pooled.data_ptr(),
        Workspace(x), bridge.place(x),
    )  # fmt: skip
    return pooled


def _weights(
    w_reduce: Tensor, b_reduce: Tensor, w_expand: Tensor, b_expand: Tensor | None
) -> tuple[tuple[int, int, int, Param, Param], tuple[Tensor | None, ...]]:
    """As the native module takes them, and the tensors that hold the memory."""
    reduce, expand = w_reduce.contiguous(), w_expand.contiguous()
    biases = contiguous(b_reduce), contiguous(b_expand)
    addresses = reduce.data_ptr(), expand.data_ptr(), DTYPES[w_reduce.dtype]
    return (*addresses, param(biases[0]), param(biases[1])), (reduce, expand, *biases)


def se_gate(
    pool: Tensor, w_reduce: Tensor, b_reduce: Tensor, w_expand: Tensor, b_expand: Tensor, act: str,
    count: int,
) -> Tensor:  # fmt: skip
    """pool [T,N,C], w_reduce [R,C,1,1], w_expand [C,R,1,1] -> gate [N,C]."""
    t, n, c = pool.shape
    gate = pool.new_empty((n, c))
    weights, _held = _weights(w_reduce, b_reduce, w_expand, b_expand)
    bridge.native().se_gate(
        (t, n, c, w_reduce.shape[0]), pool.data_ptr(), count, weights, ACTIVATIONS[act],
        gate.data_ptr(), Workspace(pool), bridge.place(pool),
    )  # fmt: skip
    return gate


def se_bwd_reduce(
    g: Tensor, x: Tensor, affine: Tensor | None, act: str, norm: Tensor | None
) -> Tensor:
    """-> the five sums [5,N,C]."""
    sums = new_acc(x, 5, *x.shape[:2])
    bridge.native().se_bwd_reduce(
        map_shape(x), dense(g), strided(x), address(affine), ACTIVATIONS[act], address(norm),
        sums.data_ptr(), Workspace(x), bridge.place(x),
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
    weights, _held = _weights(w_reduce, b_reduce, w_expand, None)
    bridge.native().se_gate_bwd(
        (n, c, r), hw, sums.data_ptr(), gate.data_ptr(), pooled.data_ptr(), weights,
        ACTIVATIONS[act], tuple(v.data_ptr() for v in results), Workspace(gate), bridge.place(gate),
    )  # fmt: skip
    return results
