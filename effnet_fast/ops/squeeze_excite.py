"""Squeeze-and-excitation as one differentiable op, standing alone.

Inside a network the gate is applied by the next op on load (:mod:`.mbconv`); here the gated tensor
is wanted, which costs a pass: x is read for the squeeze and again for the product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from effnet_fast.backends import requested
from effnet_fast.ops import library as op
from effnet_fast.ops.checks import check_activation, check_map, check_vector
from effnet_fast.ops.conv_bn import channels_last_grad, differentiable_once, like_parameter


def squeeze_excite(
    x: Tensor,
    w_reduce: Tensor,
    b_reduce: Tensor,
    w_expand: Tensor,
    b_expand: Tensor,
    *,
    activation: str = "silu",
    backend: str | None = None,
) -> Tensor:
    """``x * sigmoid(W2 act(W1 mean_hw(x) + b1) + b2)``, differentiable.

    Args:
        x: ``[N, C, H, W]``, bf16, fp16, fp32 (or fp64 with the reference backend).
        w_reduce, b_reduce: ``[R, C, 1, 1]`` and ``[R]``; R is free (need not divide C).
        w_expand, b_expand: ``[C, R, 1, 1]`` and ``[C]``. The MLP is computed in fp32 whatever the
            types of x and of the weights.
        activation: of the hidden layer: "silu", "relu", "relu6" or "identity".
        backend: "cuda", "triton", "cpu", "reference", or None / "auto".

    Returns:
        ``[N, C, H, W]`` of x's type, channels_last.

    Raises:
        ValueError, TypeError: shapes, types or devices do not fit; the message says which.
        BackendUnavailableError: the backend asked for by name cannot run this.

    Source: Hu et al., arXiv 1709.01507; the SiLU inside is EfficientNet's.
    """
    check_map(x, None, "x")
    c = x.shape[1]
    r = b_reduce.shape[0] if b_reduce.dim() == 1 else -1
    for name, w, shape in (
        ("w_reduce", w_reduce, (r, c, 1, 1)),
        ("w_expand", w_expand, (c, r, 1, 1)),
    ):
        if tuple(w.shape) != shape or r < 1:
            raise ValueError(
                f"{name} must be {'[R, C, 1, 1]' if name == 'w_reduce' else '[C, R, 1, 1]'} with "
                f"C = {c} as in x and R >= 1 as in b_reduce {tuple(b_reduce.shape)}, "
                f"got shape {tuple(w.shape)}"
            )
        if w.device != x.device:
            raise ValueError(f"{name} is on {w.device} and x is on {x.device}; move one of them")
    check_vector(b_reduce, r, x, "b_reduce")
    check_vector(b_expand, c, x, "b_expand")
    check_activation(activation)
    y: Tensor = SqueezeExciteFn.apply(
        activation, requested(backend), x, w_reduce, b_reduce, w_expand, b_expand
    )
    return y


class SqueezeExciteFn(torch.autograd.Function):
    """apply(act, backend, x, w_reduce, b_reduce, w_expand, b_expand) -> gated x."""

    @staticmethod
    def forward(ctx: Any, act: str, backend: str, x: Tensor, *mlp: Tensor) -> Tensor:
        pooled = op.se_pool(x, None, "identity", backend)
        gate = op.se_gate(pooled.unsqueeze(0), *mlp, act, 1, backend)
        ctx.save_for_backward(x, pooled, gate, *mlp)
        ctx.static = (act, backend)
        return op.bn_residual(x, None, "identity", gate, None, None, backend)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, pooled, gate, w_reduce, b_reduce, w_expand, b_expand = ctx.saved_tensors
        act, backend = ctx.static
        g = channels_last_grad(grads[0])
        sums = op.se_bwd_reduce(g, x, None, "identity", None, backend)
        dpool, *d_mlp, _ = op.se_gate_bwd(
            sums, gate, pooled, w_reduce, b_reduce, w_expand, act, x.shape[2] * x.shape[3], backend
        )
        dx = None
        if ctx.needs_input_grad[2]:
            dx = op.bn_residual_bwd(
                g, x, None, None, "identity", gate, None, dpool, backend
            )  # fmt: skip
        mlp = (w_reduce, b_reduce, w_expand, b_expand)
        return None, None, dx, *map(like_parameter, d_mlp, mlp)
