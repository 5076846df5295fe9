"""Tensors as the native module takes them: addresses, codes of types, strides in elements.

The tests put another module in place of :func:`native` and another :func:`place` to run the same
kernels on CPU tensors.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

#: csrc/cuda/ops.h: DType, Activation, Reduce.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
ACTIVATIONS = {"identity": 0, "relu": 1, "relu6": 2, "silu": 3}
REDUCTIONS = {"none": 0, "stats": 1, "pool": 2}

ABSENT_MAP = (0, 0, 0, 0)
ABSENT_PARAM = (0, 0)

Param = tuple[int, int]


@cache
def native() -> ModuleType:
    """The compiled module."""
    from effnet_fast import _C

    return _C


def place(x: Tensor) -> tuple[int, int]:
    """Device index of ``x`` and the address of torch's current stream there."""
    index = x.get_device()
    return index, torch._C._cuda_getCurrentRawStream(index)


def address(t: Tensor | None) -> int:
    """Of a contiguous tensor; 0 for None."""
    return 0 if t is None else t.data_ptr()


def dense(t: Tensor | None) -> int:
    """The address of an activation that must be dense channels_last; 0 for None."""
    if t is None:
        return 0
    if not t.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(f"expected a dense channels_last tensor, got strides {t.stride()}")
    return t.data_ptr()


def strided(x: Tensor | None) -> tuple[int, int, int, int]:
    """Address and strides of N, H, W of an activation with channels innermost.

    The strides of axes of length 1 mean nothing; they are given as 0, which fits any alignment.
    """
    if x is None:
        return ABSENT_MAP
    n, _, h, w = x.shape
    stride_n, _, stride_h, stride_w = x.stride()
    return (
        x.data_ptr(),
        stride_n if n > 1 else 0,
        stride_h if h > 1 else 0,
        stride_w if w > 1 else 0,
    )


def map_shape(x: Tensor) -> tuple[int, int, int, int, int]:
    """Type, N, C, H, W."""
    n, c, h, w = x.shape
    return DTYPES[x.dtype], n, c, h, w


def param(t: Tensor | None) -> Param:
    """Address and type of a vector that must be contiguous: see :mod:`..parameters`."""
    if t is None:
        return ABSENT_PARAM
    if not t.is_contiguous():
        raise ValueError(f"expected a contiguous vector, got strides {t.stride()}")
    return t.data_ptr(), DTYPES[t.dtype]


def batch_norm(
    bn: list[Tensor | None], eps: float
) -> tuple[Param, Param, Param, Param, float] | None:
    """(gamma, beta, mean, var) and eps; None for an empty list."""
    if not bn:
        return None
    gamma, beta, mean, var = bn
    return param(gamma), param(beta), param(mean), param(var), eps


class Workspace:
    """Memory for a second stage, on the device of ``x``: called by the native module for its size.

    It may be freed once the kernels are queued: torch's allocator hands it out again in stream
    order.
    """

    __slots__ = ("device", "memory")

    def __init__(self, x: Tensor) -> None:
        self.device = x.device
        self.memory: Tensor | None = None

    def __call__(self, size: int) -> int:
        """The address of ``size`` bytes."""
        self.memory = torch.empty(size, dtype=torch.uint8, device=self.device)
        return self.memory.data_ptr()
