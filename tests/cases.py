"""The named cases of each op, every one with its reason, and the tensors that go with them.

Not a product of everything: each row is here because a kernel has been, or would be, wrong there
and nowhere else. Spatial sizes are kept small where only the pattern matters.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from effnet_fast.backends import BACKENDS as ALL_BACKENDS
from effnet_fast.backends import why_not
from effnet_fast.limits import CUDA_KERNELS, CUDA_STRIDES

#: Where tests/ops computes: "cpu" or "cuda".
DEVICE = os.environ.get("EFFNET_FAST_TEST_DEVICE", "cpu")


def _backends() -> list[str]:
    """Those named by the tier, whether they can run or not; by hand: those that can run here."""
    named = os.environ.get("EFFNET_FAST_TEST_BACKENDS")
    if named:
        return named.split(",")
    x = torch.empty(1, 8, 1, 1)
    return [b for b in ALL_BACKENDS if why_not("depthwise", b, x) is None]


#: The backends under test in tests/ops.
BACKENDS = _backends()
#: Triton's interpreter takes about a millisecond for what one program does in one turn of a loop.
#: To a kernel there are only fp32 and 16-bit types, so in the interpreter fp16 is for the blocks of
#: tests/ops/test_blocks.py alone; and the large cases have smaller twins, :data:`TWINS`.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
FLOATS = [torch.float32, torch.bfloat16] + [torch.float16] * (not INTERPRETED)


@dataclass(frozen=True)
class Case:
    """A convolution: N images of H x W with C channels, to K channels, k x k, stride."""

    name: str
    reason: str
    n: int
    c: int
    h: int
    w: int
    kernel: int = 3
    stride: int = 1
    padding: str = "symmetric"
    k: int = 0  # outputs of a 1x1 convolution; 0: as many as inputs
    mean: float = 0.0  # of the input, in units of its standard deviation
    constant_channel: bool = False
    sliced: bool = False  # the input is a slice of a larger tensor

    def __str__(self) -> str:
        return self.name

    def fits_cuda(self) -> bool:
        """Whether "cuda" has a kernel for it, or needs none: kernel 1 is a matrix product.

        Of one channel of a product that is rounded before its moments are taken, as those of
        ops/on_cuda/products.py are, the error is a lottery.
        """
        return self.kernel in (1, *CUDA_KERNELS) and self.stride in CUDA_STRIDES and self.k != 1


DEPTHWISE = [
    Case("b0-stage1", "a real layer, k 3, stride 1", 2, 32, 28, 28),
    Case("b0-stage2-down", "a real layer, k 3, stride 2", 1, 96, 28, 28, 3, 2),
    Case("b0-stage3-down", "a real layer, k 5, stride 2", 1, 144, 14, 14, 5, 2),
    Case("b0-stage6", "7x7 maps: rows shorter than a tile", 2, 1152, 7, 7, 5),
    Case("b3-stage4", "B3: 19x19, odd", 1, 288, 19, 19, 3, 2),
    Case("b7-stage5", "B7: 960 channels, k 5", 1, 960, 19, 19, 5),
    Case("c-not-8", "C no multiple of a 16-byte vector", 2, 20, 9, 9),
    Case("c-1", "a single channel", 1, 1, 8, 8, 5),
    Case("c-9", "C one more than a vector", 1, 9, 6, 6),
    Case("odd-tall", "odd H != W, H longer", 1, 16, 17, 5, 3),
    Case("odd-wide", "odd H != W, W longer", 1, 16, 5, 17, 5),
    Case("stride2-even", "SAME pads one side only", 1, 16, 8, 8, 3, 2, "same"),
    Case("stride2-odd", "SAME pads both sides", 1, 16, 9, 7, 3, 2, "same"),
    Case("same-k5", "SAME pads 1 and 2", 1, 16, 8, 10, 5, 2, "same"),
    Case("same-stride1", "SAME at stride 1 is symmetric", 1, 16, 7, 7, 5, 1, "same"),
    Case("k7", "a kernel size outside the family", 1, 16, 11, 11, 7),
    Case("stride3", "a stride outside the family", 1, 16, 11, 11, 3, 3),
    Case("1x1", "a map of one pixel: all taps but one are padding", 4, 16, 1, 1, 5),
    Case("1-row", "a map of one row", 3, 16, 1, 9, 3),
    Case("batch-0", "no image", 0, 16, 7, 7),
    Case("batch-17", "more images than a round number", 17, 8, 5, 5),
    Case("sliced", "a slice of a larger tensor: strides that are not its shape's", 2, 16, 8, 8,
         sliced=True),
    Case("mean>>std", "mean 50 times std: where sum(x*x) - mean**2 loses", 4, 16, 8, 8, mean=50),
    Case("constant", "a channel without variance", 4, 16, 8, 8, constant_channel=True),
]  # fmt: skip

POINTWISE = [
    Case("b0-expand", "a real expansion, 16 to 96", 2, 16, 14, 14, 1, k=96),
    Case("b0-project", "a real projection, 96 to 24", 2, 96, 14, 14, 1, k=24),
    Case("b0-project-late", "a long sum: 1152 to 320 on 7x7", 1, 1152, 7, 7, 1, k=320),
    Case("b0-head", "the head: 320 to 1280", 2, 320, 7, 7, 1, k=1280),
    Case("b3-expand", "B3: odd map, 136 to 816", 1, 136, 19, 19, 1, k=816),
    Case("b7-project", "B7: 1344 to 224", 1, 1344, 10, 10, 1, k=224),
    Case("c-k-not-8", "C and K no multiples of a vector", 2, 20, 9, 9, 1, k=13),
    Case("c-1-k-1", "one channel to one", 2, 1, 4, 4, 1, k=1),
    Case("odd", "odd H != W: rows of the product that end inside a tile", 3, 24, 5, 7, 1, k=40),
    Case("1x1", "one pixel per image: the gate changes with every row", 5, 24, 1, 1, 1, k=16),
    Case("batch-0", "no image", 0, 16, 7, 7, 1, k=8),
    Case("batch-17", "images that straddle tiles", 17, 16, 3, 3, 1, k=8),
    Case("sliced", "a slice of a larger tensor", 2, 16, 8, 8, 1, k=24, sliced=True),
    Case("mean>>std", "mean 50 times std", 4, 16, 8, 8, 1, k=24, mean=50),
    Case("constant", "a channel without variance", 4, 16, 8, 8, 1, k=16, constant_channel=True),
]


#: In the interpreter: fewer channels, yet several blocks of them, and fewer images and pixels.
TWINS = {
    "b0-stage6": {"c": 72}, "b3-stage4": {"c": 72}, "b7-stage5": {"c": 72, "h": 11, "w": 11},
    "batch-17": {"n": 5},
    "b0-project-late": {"c": 1152, "k": 40}, "b0-head": {"c": 40, "k": 272},
    "b3-expand": {"k": 136}, "b7-project": {"c": 672, "k": 72},
}  # fmt: skip
#: In the interpreter 16-bit types take these alone: a width that decides how wide loads are, ends
#: of tiles, a slice, a large mean, no work at all.
SIXTEEN_BIT = ("c-not-8", "odd", "odd-tall", "stride2-odd", "sliced", "mean>>std", "batch-0")
if INTERPRETED:
    DEPTHWISE = [replace(c, **TWINS.get(c.name, {})) for c in DEPTHWISE]
    POINTWISE = [replace(c, **TWINS.get(c.name, {})) for c in POINTWISE]


def activation_input(case: Case, dtype: torch.dtype) -> Tensor:
    """The case's input, channels_last, rounded to ``dtype``."""
    x = torch.randn(case.n, case.c, case.h, case.w)
    if case.constant_channel:
        x[:, 0] = 0.5
    x = (x + case.mean).to(dtype).contiguous(memory_format=torch.channels_last)
    if not case.sliced:
        return x
    larger = torch.full(
        (case.n + 1, case.c + 3, case.h + 2, case.w + 1), float("nan"), dtype=dtype
    ).contiguous(memory_format=torch.channels_last)
    view = larger[1:, 1 : case.c + 1, 2:, : case.w]
    return view.copy_(x)


def affine(channels: int) -> Tensor:
    """[2, C] in fp32: scales of both signs, shifts around 0."""
    return torch.stack((torch.randn(channels) + 0.5, 0.5 * torch.randn(channels)))


def batch_norm(channels: int) -> list[Tensor | None]:
    """(weight, bias, running mean, running variance), [C] each in fp32, for an epilogue."""
    scale, shift = affine(channels)
    return [scale, shift, torch.randn(channels), torch.rand(channels) + 0.5]


def gate(n: int, channels: int) -> Tensor:
    """[N, C] in fp32, within (0, 1)."""
    return torch.rand(n, channels)


def gradient_like(shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> Tensor:
    """A gradient, or a raw output, of this shape: dense channels_last, rounded to ``dtype``."""
    return torch.randn(tuple(shape)).to(dtype).contiguous(memory_format=torch.channels_last)
