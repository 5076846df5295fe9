"""What only unmixed channels and unrounded operands give in depthwise convolution, to the bit."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from effnet_fast.ops import library as op
from tests.cuda_emu.backend import emulated

PAD = [2, 2, 2, 2]
INFINITY = float("inf")


def _depthwise(x: Tensor, w: Tensor, affine: Tensor | None, backend: str) -> list[Tensor]:
    act = "identity" if affine is None else "silu"
    reduce = "none" if affine is None else "stats"
    return list(op.depthwise(x, w, 1, PAD, affine, act, [], 0.0, "identity", reduce, backend))


def _gradients(
    g: Tensor, x: Tensor, w: Tensor, coef: Tensor, affine: Tensor | None, backend: str
) -> list[Tensor]:
    """dx and dw, of a linear batch norm behind and, with ``affine``, of one before."""
    behind, pad = (coef, None, "identity", None, None), [w.shape[-1] // 2] * 4
    before = (affine, "identity", None, None, True, True)
    return list(op.depthwise_bwd(g, x, x, w, 1, pad, *behind, *before, backend))[:2]


def check_infinities(native: ModuleType) -> None:
    """An infinity or NaN of one channel shows in that channel, where its window is, and only there.

    Tensor cores multiply it by the zeros of seven other channels.
    """
    native.emulator_expect_nan(1)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        x = torch.randn(2, 16, 9, 19).to(dtype).contiguous(memory_format=torch.channels_last)
        x[0, 3, 4, 5], x[0, 2, 0, 0], x[1, 9, 8, 18] = INFINITY, -INFINITY, float("nan")
        w = torch.randn(16, 1, 5, 5).to(dtype)
        for affine in (None, torch.randn(2, 16)):
            with emulated(native):
                ours = _depthwise(x, w, affine, "cuda")
            truth = _depthwise(x.double(), w.double(), affine, "reference")
            for mine, exact in zip(ours, truth, strict=True):
                assert torch.equal(torch.isnan(mine), torch.isnan(exact))
                assert torch.equal(torch.isinf(mine), torch.isinf(exact))
        # Not at an edge, where zeros of padding join them in the weights' gradient.
        g, coef = torch.randn_like(x), torch.randn(4, 16)
        x = torch.randn_like(g)
        g[0, 3, 4, 5], g[0, 2, 2, 2], g[1, 9, 6, 16] = INFINITY, -INFINITY, float("nan")
        with emulated(native):
            dx, dw = _gradients(g, x, w, coef, None, "cuda")
        dx_true, dw_true = _gradients(g.double(), x.double(), w.double(), coef, None, "reference")
        assert torch.equal(torch.isnan(dx), torch.isnan(dx_true))
        assert torch.equal(torch.isinf(dx), torch.isinf(dx_true))
        assert torch.equal(torch.isfinite(dw), torch.isfinite(dw_true))


def check_halves(native: ModuleType) -> None:
    """257 and 256 differ though bf16 rounds one to the other: operands are not rounded."""
    x = torch.tensor([256.0, 255.0]).repeat(10).expand(1, 8, 6, 20).to(torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)
    w = torch.zeros(8, 1, 3, 3, dtype=torch.bfloat16)
    w[..., 1, 1], w[..., 1, 2] = 1.0, -1.0
    arguments = (1, [1, 1, 1, 1], torch.ones(2, 8), "identity", [], 0.0, "identity", "stats")
    with emulated(native):
        y, _ = op.depthwise(x, w, *arguments, "cuda")
    truth, _ = op.depthwise(x.double(), w.double(), *arguments, "reference")
    assert torch.equal(y.double(), truth)

    # Of the two operands of the weights' gradient one needs its low half, the other is 1.
    plus_one, same = torch.tensor([[1.0], [0.0], [0.0], [1.0]]).expand(4, 8).contiguous(), None
    one = torch.ones_like(x)
    just_g = plus_one * torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    for g, of, coef, affine in ((x, one, plus_one, same), (one, x, just_g, torch.ones(2, 8))):
        with emulated(native):
            ours = _gradients(g, of, w, coef, affine, "cuda")
        truth_of = _gradients(g.double(), of.double(), w.double(), coef, affine, "reference")
        for mine, exact in zip(ours, truth_of, strict=True):
            assert torch.equal(mine, exact.to(mine.dtype))
