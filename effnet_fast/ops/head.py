"""The network's head up to the classifier: 1x1 convolution, batch norm, activation, global mean.

In inference one pass that stores no map; in training the raw output is written once and read by
``se_pool``, and its gradient is rebuilt from the pooled gradient on load.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from effnet_fast.ops import library as op
from effnet_fast.ops.conv_bn import (
    ConvBn,
    ConvBnTensors,
    backward_coef,
    differentiable_once,
    like_parameter,
    normalize,
    wants_grad,
)
from effnet_fast.ops.mbconv import pointwise_bwd


def conv_bn_act_pool(layer: ConvBn, t: ConvBnTensors, x: Tensor, act: str, backend: str) -> Tensor:
    """``mean_hw(act(bn(conv1x1(x))))``: [N,C,H,W] -> [N,K] of x's type; checked by the caller."""
    if wants_grad(x, *t) or layer.batch_stats:
        # Cast here, not in the Function: torch.compile of torch 2.11 loses the gradient of an
        # output that went through a cast to its own type, without a word.
        pooled: Tensor = ConvBnActPoolFn.apply(layer, act, backend, x, *t)
    else:
        pooled = op.pointwise_pool(x, t.weight.to(x.dtype), t.batch_norm(), layer.eps, act, backend)
    return pooled.to(x.dtype)


class ConvBnActPoolFn(torch.autograd.Function):
    """apply(layer, act, backend, x, weight, gamma, beta, running_mean, running_var) -> [N,K]
    in the accumulation type."""

    @staticmethod
    def forward(
        ctx: Any, layer: ConvBn, act: str, backend: str, x: Tensor, *tensors: Tensor | None
    ) -> Tensor:
        t = ConvBnTensors(*tensors)  # type: ignore[arg-type]
        y, stats = op.pointwise(
            x, t.weight.to(x.dtype), None, "identity", None, [], layer.eps, "identity", None,
            layer.batch_stats, backend,
        )  # fmt: skip
        bn = normalize(layer, t, y, stats, backend)
        ctx.save_for_backward(x, y, bn.affine, bn.norm, t.weight, t.gamma, t.beta)
        ctx.static = (layer, act, backend, bn.values)
        return op.se_pool(y, bn.affine, act, backend)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, y, affine, norm, weight, gamma, beta = ctx.saved_tensors
        layer, act, backend, count = ctx.static
        need_dx, need_dw = ctx.needs_input_grad[3:5]
        dpool = grads[0] / (y.shape[2] * y.shape[3])
        sums = op.bn_bwd_reduce(None, y, norm, affine, act, None, dpool, backend)
        coef = backward_coef(layer, gamma, norm, sums, count, backend)
        dx = dw = None
        if need_dx or need_dw:
            dx, dw, _ = pointwise_bwd(
                None, y, x, weight.to(x.dtype), coef, affine, act, None, dpool,
                None, "identity", None, None, None, need_dx, need_dw, backend,
            )  # fmt: skip
        return (
            None, None, None,
            dx if need_dx else None,
            like_parameter(dw, weight) if need_dw else None,
            like_parameter(sums[1], gamma), like_parameter(sums[0], beta),
            None, None,
        )  # fmt: skip
