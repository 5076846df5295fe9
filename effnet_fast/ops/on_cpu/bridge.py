"""Tensors as the native module takes them: addresses, codes of types, strides in elements."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from effnet_fast._C import CpuOps

#: csrc/cpu/training/kernels/kernels.h: Type, and csrc/cpu/kernels/kernels.h: Activation.
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
ACTIVATIONS = {"identity": 0, "relu": 1, "relu6": 2, "silu": 3}

Map = tuple[int, int, int, int]
Prologue = tuple[int, int, int]
Behind = tuple[int, int, int, int, int, int, int]
Vector = tuple[int, int, int]

ABSENT_MAP = (0, 0, 0, 0)
ABSENT_VECTOR = (0, 0, 0)


@cache
def _of_isa(isa: str) -> CpuOps:
    from effnet_fast import _C

    return _C.CpuOps(isa)


def native() -> CpuOps:
    """The kernels of the best instruction set, or of the one that EFFNET_FAST_CPU_ISA names."""
    return _of_isa(os.environ.get("EFFNET_FAST_CPU_ISA", ""))


def address(t: Tensor | None) -> int:
    """Of a contiguous tensor; 0 for None."""
    return 0 if t is None else t.data_ptr()


def wanted(t: Tensor, want: bool) -> int:
    """The address of a result, or 0 for one that is not wanted."""
    return t.data_ptr() if want else 0


def dense(t: Tensor | None) -> int:
    """The address of an activation that must be dense channels_last; 0 for None."""
    if t is None:
        return 0
    if not t.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(f"expected a dense channels_last tensor, got strides {t.stride()}")
    return t.data_ptr()


def strided(x: Tensor | None) -> Map:
    """Address and strides of N, H, W of an activation with channels innermost."""
    if x is None:
        return ABSENT_MAP
    stride_n, stride_c, stride_h, stride_w = x.stride()
    if stride_c != 1 and x.shape[1] > 1:
        raise ValueError(f"expected channels innermost, got strides {x.stride()}")
    return x.data_ptr(), stride_n, stride_h, stride_w


def map_shape(x: Tensor) -> tuple[int, int, int, int, int]:
    """Type, N, C, H, W."""
    n, c, h, w = x.shape
    return DTYPES[x.dtype], n, c, h, w


def prologue(affine: Tensor | None, act: str, gate: Tensor | None = None) -> Prologue:
    """What an op does to its input on load."""
    return address(affine), ACTIVATIONS[act], address(gate)


def behind(
    g: Tensor | None, coef: Tensor | None, affine: Tensor | None, act: str, gate: Tensor | None,
    drop_scale: Tensor | None, dpool: Tensor | None,
) -> Behind:  # fmt: skip
    """What lies behind a raw output: from it the output's gradient is rebuilt on load."""
    return (
        dense(g), address(coef), address(affine), ACTIVATIONS[act], address(gate),
        address(drop_scale), address(dpool),
    )  # fmt: skip


def vector(t: Tensor | None) -> Vector:
    """Address, type and stride of a vector [C]."""
    return ABSENT_VECTOR if t is None else (t.data_ptr(), DTYPES[t.dtype], t.stride(0))


def matrix(weight: Tensor) -> Tensor:
    """A weight in fp32, contiguous: small beside any map."""
    return weight.float().contiguous()
