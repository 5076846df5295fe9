"""What each backend's kernels cannot do, as reasons; metadata of an op's arguments only.

``args`` are the op's own, in the order of :mod:`effnet_fast.reference`, or its first tensor alone:
rules about arguments that are not there do not apply.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

#: The ops that are matrix products: what of them csrc/cuda has no kernel for (:func:`cuda_product`)
#: goes to Triton's kernels, which fuse as well, and without Triton to cuBLAS.
PRODUCTS = frozenset(("conv2d", "pointwise", "pointwise_pool", "conv2d_bwd", "pointwise_bwd"))
CUDA_KERNELS = (3, 5)
CUDA_STRIDES = (1, 2)
CUDA_SHARED_BYTES = 99 * 1024  # of a block, on every architecture from sm_80 on
#: Up to which "auto" takes CUDA's forward product: beyond, few warps share a multiprocessor with
#: the weights, and each multiplies too little at a time. On an H200 at batch 128 CUDA's kernel took
#: 0.07 to 0.17 ms for B0's sums of 1152 channels, when all 31 products by Triton averaged 0.048 ms;
#: of 320 outputs six blocks more than were resident then ran after the others.
CUDA_SHORT_SUM = 480
CUDA_SUMMED_CHANNELS = 1568  # of a product: 32 outputs' weights of so many fill those bytes

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_CPU_TYPES = (torch.float32, torch.bfloat16)
# Where the arguments that the rules below look at are, by op.
_CONVOLUTION = {"depthwise": (0, 1, 2, 3), "depthwise_bwd": (2, 3, 4, 5)}  # x, weight, stride, pads
_SE_WEIGHTS = {"se_gate": (1, 3), "se_gate_bwd": (3, 5)}
_ACCUMULATOR = {"bn_fold": 5}
#: What csrc/cpu reads and writes in fp32 whatever the parameters' type.
_CPU_SUMS = {"bn_finalize": (0,), "bn_bwd_coef": (0, 1), "se_gate": (0,), "se_gate_bwd": (0, 1, 2)}


def tensors(args: tuple[Any, ...]) -> Iterator[Tensor]:
    """The tensors among ``args``, those in lists too."""
    for a in args:
        if isinstance(a, Tensor):
            yield a
        elif isinstance(a, list | tuple):
            yield from (v for v in a if isinstance(v, Tensor))


def reference(op: str, args: tuple[Any, ...]) -> str | None:
    """The reference computes on every floating type, whatever the layout."""
    x = next(tensors(args))
    if not x.is_floating_point():
        return f"{op} computes on floating-point activations, not {x.dtype}"
    return None


def _kernels(
    op: str, args: tuple[Any, ...], name: str, types: tuple[torch.dtype, ...] = _TYPES
) -> str | None:
    """What all kernels have in common."""
    for t in tensors(args):
        if t.dtype not in types:
            *first, last = (str(dtype).removeprefix("torch.") for dtype in types)
            return f"{op} takes {', '.join(first)} and {last} in {name}, not {t.dtype}"
        # The stem reads images as they come; everything behind it has its channels innermost.
        # A 1x1 map is a weight or has no layout to speak of.
        map_of_channels = t.dim() == 4 and t.shape[1] > 1 and t.shape[2] * t.shape[3] > 1
        if map_of_channels and t.stride(1) != 1 and not op.startswith("conv2d"):
            return (
                f"{op} wants channels_last activations, got strides {t.stride()}; convert with "
                "x.contiguous(memory_format=torch.channels_last)"
            )
    if op in _ACCUMULATOR and len(args) > _ACCUMULATOR[op]:
        acc = args[_ACCUMULATOR[op]]
        if acc != torch.float32:
            return f"{op} accumulates in float32 in {name}, not {acc}"
    return None


def cpu(op: str, args: tuple[Any, ...]) -> str | None:
    """The native CPU kernels: every op of the vocabulary, any kernel size and stride."""
    for i in _CPU_SUMS.get(op, ()):
        if i < len(args) and args[i].dtype == torch.bfloat16:
            return f"{op} takes sums over a map in float32 in native CPU code, not {args[i].dtype}"
    return _kernels(op, args, "native CPU code", _CPU_TYPES)


def triton(op: str, args: tuple[Any, ...]) -> str | None:
    """Triton's kernels: every op of the vocabulary, any kernel size and stride."""
    return _kernels(op, args, "Triton")


def pixel_step(x: Tensor) -> int | None:
    """Elements from each pixel to the next, counted through [N, H, W]; None if they lie unevenly.

    The strides of axes of length 1 mean nothing and are not looked at.
    """
    n, c, h, w = x.shape
    stride_n, _, stride_h, stride_w = x.stride()
    step = stride_w if w > 1 else stride_h if h > 1 else stride_n if n > 1 else c
    even = (h == 1 or stride_h == w * step) and (n == 1 or stride_n == h * w * step)
    return step if even else None


def cuda_product(op: str, args: tuple[Any, ...]) -> str | None:
    """Why csrc/cuda has no kernel for this product, or None if it has."""
    if op == "pointwise":
        x, weight, residual = args[0], args[1], args[8]
        summed = weight.shape[1]
    elif op == "pointwise_bwd":
        g, x, weight = args[0], *args[2:4]
        residual, summed = None, weight.shape[0] if args[14] else 0
        if g is None or args[5] is not None or args[6] != "identity" or args[8] is not None:
            return f"{op} has no CUDA kernel for an activation behind its batch norm"
        if args[9] is not None and args[13] is not None:
            return f"{op} has no CUDA kernel for a prologue and a residual gradient at once"
    else:
        return f"{op} has no CUDA kernel"
    k, c = weight.shape[:2]
    if x.dtype not in (torch.bfloat16, torch.float16) or weight.dtype != x.dtype:
        return f"{op} is for one 16-bit type in CUDA, not {x.dtype} and {weight.dtype}"
    if c % 8 or k % 8 or summed > CUDA_SUMMED_CHANNELS:
        return (
            f"{op} sums multiples of 8 channels, at most {CUDA_SUMMED_CHANNELS}, to multiples of 8 "
            f"in CUDA, not {c} to {k}"
        )
    if weight.is_contiguous() and weight.storage_offset() % 8:
        return f"{op} wants weights on a 16-byte boundary in CUDA"
    for t in (x, residual):
        if t is not None and ((pixel_step(t) or 1) % 8 or t.storage_offset() % 8):
            return f"{op} wants evenly spaced pixels of 16-byte vectors in CUDA, not {t.stride()}"
    return None


def _cuda_convolution(op: str, x: Tensor, weight: Tensor, stride: int, pads: Any) -> str | None:
    size = tuple(weight.shape[2:])
    if size[0] != size[1] or size[0] not in CUDA_KERNELS:
        return f"{op} has CUDA kernels of {CUDA_KERNELS}, not of {size}"
    if stride not in CUDA_STRIDES:
        return f"{op} has CUDA kernels of stride {CUDA_STRIDES}, not {stride}"
    if weight.dtype != x.dtype:
        return f"{op} wants weights of the input's type {x.dtype}, not {weight.dtype}"
    if max(pads) >= size[0]:
        return f"{op} wants less padding than the kernel's {size[0]} in CUDA, not {tuple(pads)}"
    return None


def cuda(op: str, args: tuple[Any, ...]) -> str | None:
    """The CUDA C++ kernels: the sizes that EfficientNet has."""
    reason = _kernels(op, args, "CUDA")
    if reason is not None or len(args) == 1:
        return reason
    if op in _CONVOLUTION:
        return _cuda_convolution(op, *(args[i] for i in _CONVOLUTION[op]))
    if op in _SE_WEIGHTS:
        w_reduce, w_expand = (args[i] for i in _SE_WEIGHTS[op])
        if w_reduce.dtype != w_expand.dtype:
            return f"{op} wants weights of one type, not {w_reduce.dtype} and {w_expand.dtype}"
        r, c = w_reduce.shape[:2]
        if 4 * (2 * c + 4 * r + 1100) > CUDA_SHARED_BYTES:
            return f"{op} keeps an image's {c} + {r} channels in shared memory in CUDA: too many"
    return None
