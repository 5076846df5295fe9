"""How tensors meet the kernels: the layout of an activation and the precision of a product."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from effnet_fast.limits import pixel_step


class Pixels(NamedTuple):
    """Where the pixels of an [N, C, H, W] tensor lie, channels innermost; strides in elements."""

    n: int
    h: int
    w: int
    dense: bool  # pixel i, counted through [N, H, W], is at i * w


def pixels(x: Tensor) -> Pixels:
    """The strides of ``x``."""
    stride_n, _, stride_h, stride_w = x.stride()
    step = pixel_step(x)
    return Pixels(stride_n, stride_h, stride_w if step is None else step, step is not None)


def dot_precision(x: Tensor) -> str:
    """How products of ``x``'s type are formed: "tf32" for fp32 where torch's convolutions do so."""
    if x.dtype == torch.float32 and x.is_cuda:
        conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # missing in torch's stubs
        return "tf32" if conv.fp32_precision == "tf32" else "ieee"
    return "ieee"


#: Storage types as the tuning table names them.
TYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
