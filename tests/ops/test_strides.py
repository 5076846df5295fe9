"""The same values in other strides give the same bits: a kernel may copy them another way.

On sm_90 and newer "cuda" copies what is dense, or a slice in whole vectors, by boxes if asked to,
and images that overlap in memory, or are one, vector by vector.
"""

import pytest
import torch
from torch import Tensor

from effnet_fast.ops import library as op
from tests.cases import BACKENDS, FLOATS, INTERPRETED, batch_norm

pytestmark = [
    # Stock PyTorch, behind "reference", chooses between sums in different orders by the strides.
    pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"]),
    pytest.mark.parametrize("dtype", FLOATS, ids=str),
]

#: N, C, H, W, kernel, stride: channels that end within a block's, odd sides, one column, and none,
#: of a parity, several images in a block.
SHAPES = [
    (3, 40, 9, 11, 3, 1), (2, 72, 12, 7, 5, 1), (3, 40, 11, 8, 3, 2), (2, 40, 9, 13, 5, 2),
    (2, 8, 5, 2, 3, 2), (2, 8, 3, 1, 5, 2), (40, 8, 3, 3, 3, 1), (37, 8, 3, 3, 3, 2),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _with_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFNET_FAST_CUDA_BOXES", "1")


def overlapping(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor:
    """Images of which each begins with the last pixel of the one before."""
    n, c, h, w = shape
    image = (h * w - 1) * c
    return torch.randn(n * image + c).to(dtype).as_strided(shape, (image, 1, w * c, c))


def sliced(x: Tensor) -> Tensor:
    """``x`` within a larger tensor of NaN, in whole vectors."""
    n, c, h, w = x.shape
    larger = torch.full((n + 1, c + 24, h + 3, w + 2), float("nan"), dtype=x.dtype)
    larger = larger.contiguous(memory_format=torch.channels_last)
    return larger[1:, 8 : c + 8, 2 : h + 2, 1 : w + 1].copy_(x)


@pytest.mark.parametrize("shape", SHAPES[4:6] if INTERPRETED else SHAPES, ids=str)
def test_depthwise(
    shape: tuple[int, int, int, int, int, int], dtype: torch.dtype, backend: str
) -> None:
    *of_x, kernel, stride = shape
    n, c, h, w = of_x
    bn, weight = batch_norm(c), torch.randn(c, 1, kernel, kernel).to(dtype)
    pads = [kernel // 2] * 4
    rest = (weight, stride, pads, None, "identity", bn, 1e-3, "silu", "pool", backend)
    images = overlapping((n, c, h, w), dtype)
    for x in (images, images[1:2].expand(n, c, h, w)):
        y, pool = op.depthwise(x, *rest)
        dense = x.contiguous(memory_format=torch.channels_last)
        assert torch.isfinite(y).all()
        for other in (dense, sliced(dense)):
            y_other, pool_other = op.depthwise(other, *rest)
            assert torch.equal(y, y_other)
            assert torch.equal(pool, pool_other)
