"""The registration of the ops: schemas, fake kernels, and every op accounted for."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from effnet_fast import reference
from effnet_fast.ops import library as op

N, C, K, R, H, W = 2, 6, 10, 3, 5, 4
PAD1, PAD0 = [0, 1, 0, 1], [0, 0, 0, 0]


def fmap(c: int, h: int = H, w: int = W) -> Tensor:
    return torch.randn(N, c, h, w).contiguous(memory_format=torch.channels_last)


def affine(c: int) -> Tensor:
    return torch.randn(2, c)


def batch_norm(c: int) -> list[Tensor | None]:
    return [torch.rand(c), None, torch.randn(c), torch.rand(c)]


def se() -> tuple[Tensor, ...]:
    return torch.randn(R, C, 1, 1), torch.randn(R), torch.randn(C, R, 1, 1), torch.randn(C)


def calls() -> dict[str, list[tuple[Any, ...]]]:
    """For each op, argument lists (less the backend) that reach each shape rule."""
    dw, pw, dense = torch.randn(C, 1, 3, 3), torch.randn(K, C, 1, 1), torch.randn(K, C, 3, 3)
    gate, drop, dpool = torch.rand(N, C), torch.rand(N), torch.randn(N, C)
    half, third = fmap(C, 2, 2), fmap(K, 2, 2)
    after = (torch.randn(4, C), affine(C), "silu")
    return {
        "conv2d": [
            (fmap(C), dense, 2, PAD1, [], 0.0, "identity", True),
            (torch.randn(N, C, H, W), dense, 2, PAD1, batch_norm(K), 1e-3, "silu", False),
        ],
        "pointwise": [
            (fmap(C), pw, affine(C), "silu", gate, [], 0.0, "identity", None, True),
            (fmap(C), pw, None, "identity", None, batch_norm(K), 1e-3, "silu", fmap(K), False),
        ],
        "pointwise_pool": [(fmap(C), pw, batch_norm(K), 1e-3, "silu")],
        "depthwise": [
            (fmap(C), dw, 2, PAD1, affine(C), "silu", [], 0.0, "identity", "stats"),
            (fmap(C), dw, 1, [1, 1, 1, 1], None, "identity", batch_norm(C), 1e-3, "relu6", "pool"),
            (fmap(C), dw, 1, PAD0, None, "identity", [], 0.0, "identity", "none"),
        ],
        "se_pool": [(fmap(C), affine(C), "silu"), (fmap(C), None, "identity")],
        "se_gate": [(dpool[None], *se(), "silu", 1), (torch.randn(3, N, C), *se(), "relu", 20)],
        "bn_fold": [
            (torch.rand(C), torch.rand(C), torch.rand(C), torch.rand(C), 1e-3, torch.float32),
            (None, None, torch.rand(C).half(), torch.rand(C).half(), 1e-3, torch.float32),
        ],
        "bn_finalize": [
            (torch.rand(2, C), torch.rand(C), torch.rand(C), torch.rand(C), torch.rand(C), 40,
             0.1, 1e-3),
            (torch.rand(2, C), None, None, None, None, 40, 0.1, 1e-3),
        ],
        "bn_residual": [
            (fmap(C), affine(C), "silu", gate, drop, fmap(C)),
            (fmap(C), None, "identity", None, None, None),
        ],
        "bn_bwd_reduce": [
            (fmap(C), fmap(C), affine(C), affine(C), "silu", drop, dpool),
            (None, fmap(C), affine(C), affine(C), "silu", None, dpool),
        ],
        "bn_bwd_coef": [
            (torch.randn(2, C), affine(C), torch.rand(C), 40, True),
            (torch.randn(2, C), affine(C), None, 40, False),
        ],
        "bn_residual_bwd": [
            (fmap(C), fmap(C), *after, gate, drop, dpool),
            (fmap(C), fmap(C), None, None, "identity", None, None, None),
        ],
        "se_bwd_reduce": [
            (fmap(C), fmap(C), affine(C), "silu", affine(C)),
            (fmap(C), fmap(C), None, "identity", None),
        ],
        "se_gate_bwd": [(torch.randn(5, N, C), gate, dpool, *se()[:3], "silu", H * W)],
        "conv2d_bwd": [
            (third, third, fmap(C), dense, 2, PAD1, torch.randn(4, K), affine(K), "silu", *need)
            for need in ((True, True), (True, False), (False, True))
        ],
        "pointwise_bwd": [
            (fmap(K), fmap(K), fmap(C), pw, torch.randn(4, K), None, "identity", drop, None,
             affine(C), "silu", gate, affine(C), None, True, True),
            (None, fmap(K), fmap(C), pw, torch.randn(4, K), affine(K), "silu", None,
             torch.randn(N, K), None, "identity", None, None, fmap(C), True, False),
            (fmap(K), fmap(K), fmap(C), pw, torch.randn(4, K), None, "identity", None, None,
             None, "identity", None, None, None, False, True),
        ],
        "depthwise_bwd": [
            (half, half, fmap(C), dw, 2, PAD1, *after, gate, dpool, affine(C), "silu", affine(C),
             None, True, True),
            (half, half, fmap(C), dw, 2, PAD1, *after, None, None, None, "identity", None,
             fmap(C), True, False),
            (half, half, fmap(C), dw, 2, PAD1, *after, None, None, None, "identity", None, None,
             False, True),
        ],
    }  # fmt: skip


@pytest.mark.parametrize("name", calls())
def test_opcheck(name: str) -> None:
    """torch's own checks: schema (mutation, aliasing), fake against real, tracing, dynamic."""
    overload = getattr(torch.ops.effnet_fast, name).default
    for arguments in calls()[name]:
        torch.library.opcheck(overload, (*arguments, "reference"))


@pytest.mark.parametrize("name", calls())
def test_fake_strides(name: str) -> None:
    """Fake results have the real ones' shapes, types and strides (those that matter: size > 1)."""

    def layout(t: Tensor) -> object:
        strides = [s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1]
        return t.shape, t.dtype, strides

    overload = getattr(torch.ops.effnet_fast, name).default
    for arguments in calls()[name]:
        real = overload(*arguments, "reference")
        meta = tree_map(lambda a: a.to("meta") if isinstance(a, Tensor) else a, arguments)
        fake = overload(*meta, "reference")
        real, fake = (r if isinstance(r, tuple) else (r,) for r in (real, fake))
        for a, b in zip(real, fake, strict=True):
            assert layout(a) == layout(b)


def test_every_op_has_cases_and_a_reference() -> None:
    names = set(calls())
    namespace = torch.ops.effnet_fast
    registered = {n for n in vars(op) if hasattr(getattr(namespace, n, None), "default")}
    assert registered == names
    for name in names:
        schema = getattr(torch.ops.effnet_fast, name).default._schema
        theirs = [a.name for a in schema.arguments]
        assert theirs == [*inspect.signature(getattr(reference, name)).parameters, "backend"]
