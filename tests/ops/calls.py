"""One call of every op that reduces over pixels or images, on maps of several tiles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from effnet_fast.ops import library
from tests.cases import affine, gate, gradient_like

N, C, K, R, H, W = 5, 40, 24, 6, 11, 9
PADS = [1, 1, 1, 1]
#: The calls' names: an op's, with what else it does where there are two of it.
NAMES = (
    "conv2d", "pointwise", "pointwise, gate", "pointwise_pool", "depthwise", "depthwise, pool",
    "se_pool", "se_gate", "bn_bwd_reduce", "bn_residual", "bn_residual_bwd", "se_bwd_reduce",
    "se_gate_bwd", "conv2d_bwd", "pointwise_bwd", "pointwise_bwd, dx", "pointwise_bwd, dw",
    "depthwise_bwd", "depthwise_bwd, plain",
)  # fmt: skip


def arguments(name: str, dtype: torch.dtype) -> tuple[Any, ...]:
    """The op's arguments, less the backend."""
    x, g = gradient_like((N, C, H, W), dtype), gradient_like((N, C, H, W), dtype)
    y = gradient_like((N, K, H, W), dtype)
    image, stem = torch.randn(N, 3, H, W).to(dtype), gradient_like((N, K, 6, 5), dtype)
    w_d, w_p = torch.randn(C, 1, 3, 3).to(dtype), torch.randn(K, C, 1, 1).to(dtype)
    w_s = torch.randn(K, 3, 3, 3).to(dtype)
    a, s, dpool, drop = affine(C), gate(N, C), torch.randn(N, C), torch.rand(N)
    norm, coef, coef_y = affine(C), torch.randn(4, C), torch.randn(4, K)
    mlp = torch.randn(R, C, 1, 1), torch.randn(R), torch.randn(C, R, 1, 1), torch.randn(C)
    bn = [None, None, torch.zeros(K), torch.ones(K)]
    behind = (y, y, x, w_p, coef_y, None, "identity", drop, None, a, "silu", s, norm, None)
    return {
        "conv2d": (image, w_s, 2, PADS, [], 0.0, "identity", True),
        "pointwise": (x, w_p, None, "identity", None, [], 0.0, "identity", None, True),
        "pointwise, gate": (x, w_p, a, "silu", s, [], 0.0, "identity", None, True),
        "pointwise_pool": (x, w_p, bn, 0.0, "silu"),
        "depthwise": (x, w_d, 1, PADS, a, "silu", [], 0.0, "identity", "stats"),
        "depthwise, pool": (x, w_d, 1, PADS, a, "silu", [], 0.0, "identity", "pool"),
        "se_pool": (x, a, "silu"),
        "se_gate": (torch.randn(11, N, C), *mlp, "silu", 100),
        "bn_bwd_reduce": (g, x, norm, a, "silu", drop, dpool),
        "bn_residual": (x, a, "silu", s, drop, g),
        "bn_residual_bwd": (g, x, coef, a, "silu", s, drop, dpool),
        "se_bwd_reduce": (g, x, a, "silu", norm),
        "se_gate_bwd": (torch.randn(5, N, C), s, dpool, *mlp[:3], "silu", 20),
        "conv2d_bwd": (
            stem, stem, image, w_s, 2, PADS, coef_y, affine(K), "silu", False, True,
        ),
        "pointwise_bwd": (*behind, True, True),
        "pointwise_bwd, dx": (*behind, True, False),
        "pointwise_bwd, dw": (*behind, False, True),
        "depthwise_bwd": (
            g, x, x, w_d, 1, PADS, coef, a, "silu", s, dpool, a, "silu", norm, None, True, True,
        ),
        "depthwise_bwd, plain": (
            g, x, x, w_d, 1, PADS, coef, a, "silu", s, dpool, None, "identity", None, g, True, True,
        ),
    }[name]  # fmt: skip


def call(name: str, args: tuple[Any, ...], backend: str) -> list[Tensor]:
    """The op's results."""
    result = getattr(library, name.split(",")[0])(*args, backend)
    return [result] if isinstance(result, Tensor) else list(result)
