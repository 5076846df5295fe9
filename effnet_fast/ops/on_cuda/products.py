"""The ops that are matrix products, where Triton is not installed: cuBLAS and cuDNN through torch.

What Triton's kernels do on load and on store is here a pass of its own, by the kernels for maps:
right, and up to three times the traffic. Products are formed in the storage type with torch's own
accumulation, and batch statistics are those of the rounded result, as in stock PyTorch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from effnet_fast.ops.on_cuda.batch_norm import bn_fold, bn_residual, bn_residual_bwd
from effnet_fast.ops.on_cuda.squeeze_excite import se_bwd_reduce, se_pool
from effnet_fast.ops.shapes import new_acc, new_like
from effnet_fast.reference import Padding, running_statistics


def _padded(x: Tensor, padding: Padding) -> tuple[Tensor, list[int]]:
    """``x`` and the symmetric padding that is left to the convolution."""
    top, bottom, left, right = padding
    if top == bottom and left == right:
        return x, [top, left]
    return F.pad(x, (left, right, top, bottom)), [0, 0]


def _convolve(x: Tensor, weight: Tensor, stride: int, padding: Padding) -> Tensor:
    x, pad = _padded(x, padding)
    y = F.conv2d(x, weight, None, stride, pad)
    _, c, h, w = y.shape
    return y if y.stride() == (h * w * c, 1, w * c, c) else new_like(y).copy_(y)


def _fold(out_bn: list[Tensor | None], eps: float) -> Tensor | None:
    return bn_fold(*running_statistics(out_bn), eps, torch.float32)[0] if out_bn else None


def _epilogue(
    y: Tensor, out_bn: list[Tensor | None], eps: float, act: str, residual: Tensor | None
) -> Tensor:
    if not out_bn and act == "identity" and residual is None:
        return y
    return bn_residual(y, _fold(out_bn, eps), act, None, None, residual)


def _moments(y: Tensor, stats: bool) -> Tensor:
    if not stats:
        return new_acc(y, 0)
    if y.numel() == 0:
        return new_acc(y, 2, y.shape[1]).zero_()
    var, mean = torch.var_mean(y.float(), dim=(0, 2, 3), correction=0)
    return torch.stack((mean, var))


def _operand(x: Tensor, affine: Tensor | None, act: str, gate: Tensor | None) -> Tensor:
    if affine is None and gate is None and act == "identity":
        return x
    return bn_residual(x, affine, act, gate, None, None)


def conv2d(
    x: Tensor, weight: Tensor, stride: int, padding: Padding,
    out_bn: list[Tensor | None], eps: float, out_act: str, stats: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Dense k x k convolution."""
    y = _convolve(x, weight, stride, padding)
    return _epilogue(y, out_bn, eps, out_act, None), _moments(y, stats)


def pointwise(
    x: Tensor, weight: Tensor, in_affine: Tensor | None, in_act: str, in_gate: Tensor | None,
    out_bn: list[Tensor | None], eps: float, out_act: str, residual: Tensor | None, stats: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """1x1 convolution."""
    y = _convolve(_operand(x, in_affine, in_act, in_gate), weight, 1, (0, 0, 0, 0))
    return _epilogue(y, out_bn, eps, out_act, residual), _moments(y, stats)


def pointwise_pool(
    x: Tensor, weight: Tensor, out_bn: list[Tensor | None], eps: float, out_act: str
) -> Tensor:
    """The head: 1x1 convolution, BN, activation, mean over H, W -> [N,K]."""
    return se_pool(_convolve(x, weight, 1, (0, 0, 0, 0)), _fold(out_bn, eps), out_act)


def _gradients(
    dy: Tensor, a: Tensor, weight: Tensor, stride: int, padding: Padding, need_dx: bool,
    need_dw: bool,
) -> tuple[Tensor | None, Tensor]:  # fmt: skip
    """(da or None, dw in fp32 or [0])."""
    padded, pad = _padded(a, padding)
    da, dw, _ = torch.ops.aten.convolution_backward(
        dy, padded, weight, None, [stride] * 2, pad, [1, 1], False, [0, 0], 1,
        [need_dx, need_dw, False],
    )  # fmt: skip
    if da is not None:
        if padded is not a:
            top, _, left, _ = padding
            da = da[:, :, top : top + a.shape[2], left : left + a.shape[3]]
        da = new_like(a).copy_(da)
    return da, new_acc(a, 0) if dw is None else dw.float().contiguous()


def conv2d_bwd(
    g: Tensor, y: Tensor, x: Tensor, weight: Tensor, stride: int, padding: Padding, coef: Tensor,
    y_affine: Tensor | None, y_act: str, need_dx: bool, need_dw: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Backward of conv2d -> (dx, dw)."""
    dy = bn_residual_bwd(g, y, coef, y_affine, y_act, None, None, None)
    dx, dw = _gradients(dy, x, weight, stride, padding, need_dx, need_dw)
    return x.new_empty(0) if dx is None else dx, dw


def pointwise_bwd(
    g: Tensor | None, y: Tensor, x: Tensor, weight: Tensor, coef: Tensor,
    y_affine: Tensor | None, y_act: str, drop_scale: Tensor | None, dpool: Tensor | None,
    in_affine: Tensor | None, in_act: str, in_gate: Tensor | None, in_norm: Tensor | None,
    residual_grad: Tensor | None, need_dx: bool, need_dw: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Backward of pointwise -> (dx, dw, sums)."""
    g = torch.zeros_like(y) if g is None else g
    dy = bn_residual_bwd(g, y, coef, y_affine, y_act, None, drop_scale, dpool)
    a = _operand(x, in_affine, in_act, in_gate)
    da, dw = _gradients(dy, a, weight, 1, (0, 0, 0, 0), need_dx, need_dw)
    if da is None:
        return x.new_empty(0), dw, new_acc(x, 0)
    sums = new_acc(x, 0) if in_affine is None else se_bwd_reduce(da, x, in_affine, in_act, in_norm)
    if residual_grad is not None:
        da = bn_residual(da, None, "identity", None, None, residual_grad)
    return da, dw, sums
