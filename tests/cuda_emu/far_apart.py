"""Tensors whose elements lie more than 2^31 apart, in memory that is never touched in between."""

from __future__ import annotations

import mmap
from types import ModuleType

import torch
from torch import Tensor

from effnet_fast import reference
from effnet_fast.ops import library as op
from tests.cuda_emu.backend import emulated
from tests.error_rule import assert_within
from tests.ops.test_backward import assert_sum

MAP_NORESERVE = 0x4000  # of Linux; Python's mmap names it from 3.13 on
#: Elements between two images, and between two rows: the products with N and H leave 32 bits.
IMAGE, ROW = 2**31 + 2**10, 2**28 + 2**7
#: Of the results below: depthwise's statistics, and the sums of its backward.
REGROUPED = (1, 8, 9)


def spread(x: Tensor, stride_n: int, stride_h: int) -> Tensor:
    """``x`` [N,C,H,W] in strides of a huge tensor. Pages that nothing wrote take no memory."""
    n, c, h, w = x.shape
    elements = (n - 1) * stride_n + (h - 1) * stride_h + w * c
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    memory = mmap.mmap(-1, elements * x.element_size(), flags=flags)
    flat = torch.frombuffer(memory, dtype=x.dtype)
    return flat.as_strided(x.shape, (stride_n, 1, stride_h, c)).copy_(x)


def check_far_apart(native: ModuleType) -> None:
    """Every op that takes a strided map, to the bit as the same op on a dense one.

    Of 17 small images a block of a depthwise kernel takes several, unless they lie far apart: what
    it sums over images is then added up in another order, for which the rule has its terms.
    """
    for dtype in (torch.bfloat16, torch.float32):  # with tensor cores, and without
        _check(native, (2, 8, 9, 3), dtype, regrouped=())
        _check(native, (17, 8, 5, 5), dtype, regrouped=REGROUPED)


def _check(
    native: ModuleType,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    regrouped: tuple[int, ...],
) -> None:
    dense = torch.randn(shape).to(dtype)
    dense = dense.contiguous(memory_format=torch.channels_last)
    g = torch.randn_like(dense)
    affine, norm = torch.randn(2, 8), torch.rand(2, 8) + 0.5
    coef, w = torch.randn(4, 8), torch.randn(8, 1, 3, 3).to(dtype)
    fixed = (g, w, dense)
    ones = [1, 1, 1, 1]
    dw_grads = (None, "identity", None, None, affine, "silu", norm, None, True, True)

    def run(x: Tensor, backend: str) -> list[Tensor]:
        g, w, dense = (t.to(x.dtype) for t in fixed)
        y, stats = op.depthwise(
            x, w, 1, ones, affine, "silu", [], 0.0, "identity", "stats", backend
        )  # fmt: skip
        return [
            y, stats,
            op.se_pool(x, affine, "silu", backend),
            op.bn_residual(x, affine, "silu", None, None, x, backend),
            op.bn_bwd_reduce(g, x, norm, affine, "silu", None, None, backend),
            op.bn_residual_bwd(g, x, coef, affine, "silu", None, None, None, backend),
            op.se_bwd_reduce(g, x, affine, "silu", norm, backend),
            *op.depthwise_bwd(g, dense, x, w, 1, ones, coef, *dw_grads, backend),
            *op.depthwise(x, w, 1, ones, None, "identity", [], 0.0, "relu", "pool", backend),
        ]  # fmt: skip

    with emulated(native):
        near = run(dense, "cuda")
        _, c, h, columns = shape
        far = [
            run(spread(dense, IMAGE, columns * c), "cuda"),
            run(spread(dense, h * ROW, ROW), "cuda"),
        ]
    truth, n = run(dense.double(), "reference"), shape[0] * h * columns
    assert_within(near[2], reference.se_pool(dense, affine, "silu"), truth[2], "pooled")
    for results in far:
        for i, (ours, same) in enumerate(zip(results, near, strict=True)):
            if i in regrouped:
                assert_sum(ours, same, truth[i], "far apart", n)
            else:
                assert torch.equal(ours, same)
