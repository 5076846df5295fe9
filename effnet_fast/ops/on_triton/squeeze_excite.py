"""Squeeze-and-excitation by kernels/squeeze_excite*.py; see :mod:`effnet_fast.reference`."""

from __future__ import annotations

from torch import Tensor

from effnet_fast.kernels import reduce, tuning, walk
from effnet_fast.kernels import squeeze_excite as kernel
from effnet_fast.kernels import squeeze_excite_bwd as kernel_bwd
from effnet_fast.ops.on_triton.common import TYPE_NAMES, pixels
from effnet_fast.ops.shapes import new_acc, new_excitation_grads


def _plan(op: str, x: Tensor, elements: int) -> tuple[walk.Walk, walk.Config]:
    """How a sum over each image of ``x`` is shared out."""
    n, c, h, w = x.shape
    default = walk.default_config(n, h * w, c, "image", elements)
    config = tuning.pick(op, walk.shape_class(n, h * w, c, TYPE_NAMES[x.dtype]), default)
    return walk.plan(n, h * w, c, config), config


def se_pool(x: Tensor, affine: Tensor | None, act: str) -> Tensor:
    """Mean over H and W of ``act(affine(x))`` -> [N,C]."""
    n, c, h, w = x.shape
    pooled = new_acc(x, n, c)
    if n == 0:
        return pooled
    share, config = _plan("se_pool", x, 4096)
    partials = pooled if share.splits == 1 else new_acc(x, share.splits, n, c)
    kernel.launch_se_pool(x, affine, partials, (c, h, w), pixels(x), act, share, config)
    if share.splits > 1:
        reduce.launch_sum(partials, pooled, share.splits, n * c)
    return pooled


def se_gate(
    pool: Tensor, w_reduce: Tensor, b_reduce: Tensor, w_expand: Tensor, b_expand: Tensor, act: str,
    count: int,
) -> Tensor:  # fmt: skip
    """Excitation: pool [T,N,C] -> gate [N,C] in (0, 1)."""
    t, n, c = pool.shape
    r = w_reduce.shape[0]
    gate = new_acc(pool, n, c)
    if n == 0:
        return gate
    key = kernel.gate_class(n, c, r, TYPE_NAMES[w_reduce.dtype])
    default = kernel.default_gate_config(c, r, w_reduce.element_size() * 8)
    config = tuning.pick("se_gate", key, default)
    kernel.launch_se_gate(
        pool, w_reduce.contiguous(), b_reduce.contiguous(), w_expand.contiguous(),
        b_expand.contiguous(), gate, (t, n, c, r), count, act, config,
    )  # fmt: skip
    return gate


def se_bwd_reduce(
    g: Tensor, x: Tensor, affine: Tensor | None, act: str, norm: Tensor | None
) -> Tensor:
    """Five sums over H, W -> [5,N,C]: g*act', act', g*act'*xhat, act'*xhat, g*act."""
    n, c, h, w = x.shape
    sums = new_acc(x, 5, n, c)
    if n == 0:
        return sums
    share, config = _plan("se_bwd_reduce", x, 2048)
    partials = sums if share.splits == 1 else new_acc(x, share.splits, 5, n, c)
    kernel.launch_se_bwd_reduce(
        g, x, affine, norm, partials, (c, h, w), pixels(x), act, share, config
    )
    if share.splits > 1:
        reduce.launch_sum(partials, sums, share.splits, 5 * n * c)
    return sums


def se_gate_bwd(
    sums: Tensor, gate: Tensor, pooled: Tensor, w_reduce: Tensor, b_reduce: Tensor,
    w_expand: Tensor, act: str, hw: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """-> dpool [N,C], dw_reduce, db_reduce, dw_expand, db_expand, bn_sums [2,C]."""
    n, c = gate.shape
    r = w_reduce.shape[0]
    results = new_excitation_grads(gate, w_reduce, w_expand)
    if n == 0:
        for result in results:  # dpool is empty
            result.zero_()
        return results
    hidden, du = new_acc(gate, n, r), new_acc(gate, n, r)
    key = kernel.gate_class(n, c, r, TYPE_NAMES[w_reduce.dtype])
    config = tuning.pick("se_gate_bwd", key, kernel_bwd.default_gate_bwd_config(c, r))
    kernel_bwd.launch_se_gate_bwd(
        sums, gate, pooled, w_reduce.contiguous(), b_reduce.contiguous(), w_expand.contiguous(),
        hidden, du, *results, (n, c, r), hw, act, config,
    )  # fmt: skip
    return results
