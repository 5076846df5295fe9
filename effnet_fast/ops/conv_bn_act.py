"""Convolution, batch norm and activation as one differentiable op, standing alone.

Inside a network the activation's pass disappears into the next op's load (:mod:`.mbconv`); here the
result is wanted as a tensor, so training is two passes: the convolution with its statistics, then
``bn_residual``. Saved for backward: the input and the raw output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from effnet_fast.backends import requested
from effnet_fast.ops import library as op
from effnet_fast.ops.checks import (
    PaddingArgument,
    check_activation,
    check_map,
    check_match,
    check_vector,
    resolve_padding,
)
from effnet_fast.ops.conv_bn import (
    ConvBn,
    ConvBnTensors,
    backward_coef,
    channels_last_grad,
    differentiable_once,
    like_parameter,
    normalize,
    wants_grad,
)


def depthwise_conv_bn_act(
    x: Tensor,
    weight: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    stride: int = 1,
    padding: PaddingArgument = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "silu",
    backend: str | None = None,
) -> Tensor:
    """``act(batch_norm(depthwise_conv(x)))``, differentiable.

    Args:
        x: ``[N, C, H, W]``, bf16, fp16, fp32 (or fp64 with the reference backend). The result is
            channels_last; the kernels want the input so too, the reference takes any strides.
        weight: ``[C, 1, k, k]``, of x's type.
        bn_weight, bn_bias: ``[C]`` or None for 1 and 0.
        running_mean, running_var: ``[C]``; updated in place when training. May be None when
            training, and are then not kept.
        stride: 1 or 2 in EfficientNet; any positive int.
        padding: None or "symmetric" for ``(k - 1) // 2``, "same" for TensorFlow's SAME, an int,
            (vertical, horizontal) or (top, bottom, left, right).
        training: normalise by the statistics of this batch, as ``F.batch_norm``.
        momentum: ``running = (1 - momentum) * running + momentum * batch``.
        activation: "silu", "relu", "relu6" or "identity".
        backend: "cuda", "triton", "cpu", "reference", or None / "auto".

    Returns:
        ``[N, C, P, Q]`` of x's type.

    Raises:
        ValueError, TypeError: shapes, types or devices do not fit; the message says which.
        BackendUnavailableError: the backend asked for by name cannot run this.

    Source: the depthwise half of MBConv, Tan and Le, arXiv 1905.11946; BN as in torch.
    """
    check_map(x, None, "x")
    channels = x.shape[1]
    if weight.dim() != 4 or weight.shape[:2] != (channels, 1) or weight.shape[2] != weight.shape[3]:
        raise ValueError(
            f"weight must be [C, 1, k, k] with C = {channels} as in x, "
            f"got shape {tuple(weight.shape)}"
        )
    check_match(x, weight, "x")
    names = ("bn_weight", "bn_bias", "running_mean", "running_var")
    for name, v in zip(names, (bn_weight, bn_bias, running_mean, running_var), strict=True):
        check_vector(v, channels, x, name)
    if not isinstance(stride, int) or stride < 1:
        raise ValueError(f"stride must be a positive int, got {stride!r}")
    if not training and (running_mean is None or running_var is None):
        raise ValueError("running_mean and running_var are needed unless training=True")
    pads = resolve_padding(padding, x.shape, weight.shape[2], stride)
    layer = ConvBn("depthwise", stride, pads, eps, momentum, training)
    tensors = ConvBnTensors(weight, bn_weight, bn_bias, running_mean, running_var)
    return conv_bn_act(layer, tensors, x, check_activation(activation), requested(backend))


def conv_bn_act(layer: ConvBn, t: ConvBnTensors, x: Tensor, act: str, backend: str) -> Tensor:
    """Any kind of convolution with its batch norm and activation; checked by the caller."""
    if wants_grad(x, *t):
        y: Tensor = ConvBnActFn.apply(layer, act, backend, x, *t)
        return y
    if layer.batch_stats:
        return _forward(layer, t, x, act, backend)[0]
    return convolve(layer, t.weight, x, None, "identity", t.batch_norm(), act, False, backend)[0]


def convolve(
    layer: ConvBn, weight: Tensor, x: Tensor, in_affine: Tensor | None, in_act: str,
    out_bn: list[Tensor | None], out_act: str, stats: bool, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The convolution op of ``layer``; a prologue is for the depthwise and pointwise kinds."""
    w = weight.to(x.dtype)
    if layer.kind == "depthwise":
        return op.depthwise(
            x, w, layer.stride, layer.padding, in_affine, in_act, out_bn, layer.eps, out_act,
            "stats" if stats else "none", backend,
        )  # fmt: skip
    if layer.kind == "pointwise":
        return op.pointwise(
            x, w, in_affine, in_act, None, out_bn, layer.eps, out_act, None, stats, backend
        )
    return op.conv2d(x, w, layer.stride, layer.padding, out_bn, layer.eps, out_act, stats, backend)


def _forward(
    layer: ConvBn, t: ConvBnTensors, x: Tensor, act: str, backend: str
) -> tuple[Tensor, Tensor, Any]:
    y, stats = convolve(
        layer, t.weight, x, None, "identity", [], "identity", layer.batch_stats, backend
    )
    bn = normalize(layer, t, y, stats, backend)
    return op.bn_residual(y, bn.affine, act, None, None, None, backend), y, bn


class ConvBnActFn(torch.autograd.Function):
    """apply(layer, act, backend, x, weight, gamma, beta, running_mean, running_var) -> out."""

    @staticmethod
    def forward(
        ctx: Any, layer: ConvBn, act: str, backend: str, x: Tensor, *tensors: Tensor | None
    ) -> Tensor:
        t = ConvBnTensors(*tensors)  # type: ignore[arg-type]
        out, y, bn = _forward(layer, t, x, act, backend)
        ctx.save_for_backward(x, y, bn.affine, bn.norm, t.weight, t.gamma, t.beta)
        ctx.static = (layer, act, backend, bn.values)
        return out

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, y, affine, norm, weight, gamma, beta = ctx.saved_tensors
        layer, act, backend, count = ctx.static
        need_dx, need_dw = ctx.needs_input_grad[3:5]
        g = channels_last_grad(grads[0])
        sums = op.bn_bwd_reduce(g, y, norm, affine, act, None, None, backend)
        coef = backward_coef(layer, gamma, norm, sums, count, backend)
        dx = dw = None
        if need_dx or need_dw:
            dx, dw = _convolve_bwd(
                layer, g, y, x, weight, coef, affine, act, need_dx, need_dw, backend
            )
        return (
            None, None, None,
            dx if need_dx else None,
            like_parameter(dw, weight) if need_dw else None,
            like_parameter(sums[1], gamma), like_parameter(sums[0], beta),
            None, None,
        )  # fmt: skip


def _convolve_bwd(
    layer: ConvBn, g: Tensor, y: Tensor, x: Tensor, weight: Tensor, coef: Tensor, affine: Tensor,
    act: str, need_dx: bool, need_dw: bool, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    w = weight.to(x.dtype)
    if layer.kind == "depthwise":
        dx, dw, _ = op.depthwise_bwd(
            g, y, x, w, layer.stride, layer.padding, coef, affine, act, None, None,
            None, "identity", None, None, need_dx, need_dw, backend,
        )  # fmt: skip
    elif layer.kind == "pointwise":
        dx, dw, _ = op.pointwise_bwd(
            g, y, x, w, coef, affine, act, None, None,
            None, "identity", None, None, None, need_dx, need_dw, backend,
        )  # fmt: skip
    else:
        dx, dw = op.conv2d_bwd(
            g, y, x, w, layer.stride, layer.padding, coef, affine, act, need_dx, need_dw, backend
        )
    return dx, dw
