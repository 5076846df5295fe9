"""How tensors meet the kernels: the layout of an activation and the precision of a product."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Pixels(NamedTuple):
    """Where the pixels of an [N, C, H, W] tensor lie, channels innermost; strides in elements."""

    n: int
    h: int
    w: int
    dense: bool  # pixel i, counted through [N, H, W], is at i * w


def pixels(x: Tensor) -> Pixels:
    """The strides of ``x``; those of axes of length 1 mean nothing and are not looked at."""
    n, c, h, w = x.shape
    stride_n, _, stride_h, stride_w = x.stride()
    step = stride_w if w > 1 else stride_h if h > 1 else stride_n if n > 1 else c
    dense = (h == 1 or stride_h == w * step) and (n == 1 or stride_n == h * w * step)
    return Pixels(stride_n, stride_h, step if dense else stride_w, dense)


def dot_precision(x: Tensor) -> str:
    """How products of ``x``'s type are formed: "tf32" for fp32 where torch's convolutions do so."""
    if x.dtype == torch.float32 and x.is_cuda:
        conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # missing in torch's stubs
        return "tf32" if conv.fp32_precision == "tf32" else "ieee"
    return "ieee"


#: Storage types as the tuning table names them.
TYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
