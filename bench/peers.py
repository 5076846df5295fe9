"""What PyTorch runs where this library runs one depthwise op: the peers of :mod:`bench.kernels`.

"cudnn" and "cudnn-nchw", on a CPU "onednn" and "onednn-nchw", are a convolution's own kernels,
channels_last and NCHW, with nothing before or after; "eager" and "compile" do all that the fused op
does. A function here takes tensors of any layout and returns the tensors that matter.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Function = Callable[..., list[Tensor]]


def copy(x: Tensor) -> list[Tensor]:
    """As many bytes as a convolution of stride 1 moves, and nothing computed."""
    return [x.clone()]


def convolution(x: Tensor, weight: Tensor, stride: int, pad: int) -> list[Tensor]:
    """Forward: y."""
    return [F.conv2d(x, weight, None, stride, pad, 1, x.shape[1])]


def convolution_backward(
    g: Tensor, x: Tensor, weight: Tensor, stride: int, pad: int
) -> list[Tensor]:
    """Both gradients: dx, dw."""
    ones, zeros, wanted = [1, 1], [0, 0], [True, True, False]
    dx, dw, _ = torch.ops.aten.convolution_backward(
        g, x, weight, None, [stride] * 2, [pad] * 2, ones, False, zeros, x.shape[1], wanted
    )
    return [dx, dw]


def inference(
    x: Tensor, weight: Tensor, stride: int, pad: int, bn: list[Tensor], eps: float
) -> list[Tensor]:
    """Convolution, batch norm by running statistics, SiLU, and the means that SE wants."""
    gamma, beta, mean, var = bn
    (y,) = convolution(x, weight, stride, pad)
    y = F.silu(F.batch_norm(y, mean, var, gamma, beta, False, 0.0, eps))
    return [y, y.mean((2, 3))]


def training(x: Tensor, weight: Tensor, stride: int, pad: int, affine: Tensor) -> list[Tensor]:
    """The batch norm before it, applied, SiLU, convolution, and the statistics of the next one."""
    scale, shift = affine.to(x.dtype).view(2, 1, -1, 1, 1)
    (y,) = convolution(F.silu(x * scale + shift), weight, stride, pad)
    var, mean = torch.var_mean(y.float(), (0, 2, 3), correction=0)
    return [y, torch.stack((mean, var))]


def nchw(function: Function, args: tuple[Any, ...]) -> tuple[Function, tuple[Any, ...]]:
    """The same on contiguous copies of the activations."""
    own = tuple(a.contiguous() if isinstance(a, Tensor) and a.dim() == 4 else a for a in args)
    return function, own


def compiled(function: Function) -> Function:
    """By torch.compile for these very shapes; ``stock`` is the function as it was.

    A code object of its own each time: torch.compile gives one up after eight shapes.
    """
    fresh = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    result: Function = torch.compile(fresh, dynamic=False)
    result.stock = function  # type: ignore[attr-defined]
    return result
