"""One MBConv block, from its input to its output, as one differentiable op.

Inference is scheme **c**: three convolutions with batch norm and activation in their epilogues, the
squeeze summed by the depthwise convolution, the gate applied by the projection on load.

Training is schedule **T2**. Only raw convolution outputs are written and saved: E (expand, or the
stem's dense 3x3 for the first block), D (depthwise) and P (project), and with them the block's
input. Batch norm and activation are applied by whoever loads them next::

    forward   x -> E -> D -> squeeze, gate -> P -> out = drop * BN3(P) + x
    backward  g, P -> BN3's sums
              g, P, D -> dZ (the gated map's gradient), dW_project, five sums per (n, c)
              five sums -> SE's gradients, BN2's sums
              dZ, D, E -> dH (BN1's output gradient), dW_depthwise, BN1's sums
              dH, E, x -> dx (+ g), dW_expand

Every arrow is one op of the vocabulary and reads each of its inputs once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from effnet_fast.kernels.limits import fits_one_kernel
from effnet_fast.ops import library as op
from effnet_fast.ops.conv_bn import (
    ConvBn,
    ConvBnTensors,
    Normalization,
    backward_coef,
    channels_last_grad,
    differentiable_once,
    like_parameter,
    normalize,
    wants_grad,
)
from effnet_fast.ops.conv_bn_act import convolve


class MBConv(NamedTuple):
    """A block, less its tensors."""

    expand: ConvBn | None  # a 1x1 convolution, the stem's dense one, or none
    depthwise: ConvBn
    project: ConvBn
    act: str
    residual: bool  # out = ... + x
    backend: str


class MBConvTensors(NamedTuple):
    """What goes with :class:`MBConv`; ``se`` is (w_reduce, b_reduce, w_expand, b_expand)."""

    expand: ConvBnTensors | None
    depthwise: ConvBnTensors
    project: ConvBnTensors
    se: tuple[Tensor, Tensor, Tensor, Tensor] | None


def mbconv(block: MBConv, t: MBConvTensors, x: Tensor, drop_scale: Tensor | None) -> Tensor:
    """The block on ``x`` [N,C,H,W] -> [N,K,P,Q]; checked by the caller.

    ``drop_scale`` [N] in fp32 is stochastic depth: 0, or 1 / survival probability.
    """
    flat = _flatten(t)
    layers = [layer for layer in (block.expand, block.depthwise, block.project) if layer]
    recorded = wants_grad(x, *flat)
    if not recorded and drop_scale is None and not any(layer.batch_stats for layer in layers):
        return _inference(block, t, x)
    out: Tensor = MBConvFn.apply(block, x, drop_scale, *flat)
    return out


def _flatten(t: MBConvTensors) -> tuple[Tensor | None, ...]:
    """19 slots: expand 5, depthwise 5, project 5, se 4; None where there is nothing."""
    return (*(t.expand or (None,) * 5), *t.depthwise, *t.project, *(t.se or (None,) * 4))


def _unflatten(flat: Any) -> MBConvTensors:
    return MBConvTensors(
        None if flat[0] is None else ConvBnTensors(*flat[0:5]),
        ConvBnTensors(*flat[5:10]),
        ConvBnTensors(*flat[10:15]),
        None if flat[15] is None else tuple(flat[15:19]),
    )


def _inference(block: MBConv, t: MBConvTensors, x: Tensor) -> Tensor:
    backend = block.backend
    e = x
    if block.expand is not None and t.expand is not None:
        e, _ = convolve(
            block.expand, t.expand.weight, x, None, "identity", t.expand.batch_norm(), block.act,
            False, backend,
        )  # fmt: skip
    layer = block.depthwise
    d, pool = op.depthwise(
        e, t.depthwise.weight.to(x.dtype), layer.stride, layer.padding, None, "identity",
        t.depthwise.batch_norm(), layer.eps, block.act, "none" if t.se is None else "pool", backend,
    )  # fmt: skip
    gate = None
    if t.se is not None:
        gate = op.se_gate(pool, *t.se, block.act, d.shape[2] * d.shape[3], backend)
    return op.pointwise(
        d, t.project.weight.to(x.dtype), None, "identity", gate, t.project.batch_norm(),
        block.project.eps, "identity", x if block.residual else None, False, backend,
    )[0]  # fmt: skip


def pointwise_bwd(
    g: Tensor | None, y: Tensor, x: Tensor, weight: Tensor, coef: Tensor, y_affine: Tensor | None,
    y_act: str, drop_scale: Tensor | None, dpool: Tensor | None, in_affine: Tensor | None,
    in_act: str, in_gate: Tensor | None, in_norm: Tensor | None, residual_grad: Tensor | None,
    need_dx: bool, need_dw: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The op of that name, as one call or, where no kernel could do both gradients at once, two.

    Two read their operands twice, and the ledger is to show it.
    """
    load = (drop_scale, dpool, in_affine, in_act, in_gate, in_norm)
    head = (g, y, x, weight, coef, y_affine, y_act, *load)
    if not (need_dx and need_dw) or fits_one_kernel(*weight.shape[:2]):
        dx, dw, sums = op.pointwise_bwd(*head, residual_grad, need_dx, need_dw, backend)
        return dx, dw, sums
    dx, _, sums = op.pointwise_bwd(*head, residual_grad, True, False, backend)
    _, dw, _ = op.pointwise_bwd(*head, None, False, True, backend)
    return dx, dw, sums


class MBConvFn(torch.autograd.Function):
    """apply(block, x, drop_scale, *19 tensors of _flatten) -> out."""

    @staticmethod
    def forward(
        ctx: Any, block: MBConv, x: Tensor, drop_scale: Tensor | None, *flat: Tensor | None
    ) -> Tensor:
        t = _unflatten(flat)
        act, backend = block.act, block.backend
        e, bn1, e_act = x, None, "identity"
        if block.expand is not None and t.expand is not None:
            layer, e_act = block.expand, act
            e, stats = convolve(
                layer, t.expand.weight, x, None, "identity", [], "identity", layer.batch_stats,
                backend,
            )  # fmt: skip
            bn1 = normalize(layer, t.expand, e, stats, backend)
        layer = block.depthwise
        affine1 = None if bn1 is None else bn1.affine
        d, stats = convolve(
            layer, t.depthwise.weight, e, affine1, e_act, [], "identity", layer.batch_stats,
            backend,
        )  # fmt: skip
        bn2 = normalize(layer, t.depthwise, d, stats, backend)
        pooled = gate = None
        if t.se is not None:
            pooled = op.se_pool(d, bn2.affine, act, backend)
            gate = op.se_gate(pooled.unsqueeze(0), *t.se, act, 1, backend)
        layer = block.project
        p, stats = op.pointwise(
            d, t.project.weight.to(x.dtype), bn2.affine, act, gate, [], layer.eps, "identity", None,
            layer.batch_stats, backend,
        )  # fmt: skip
        bn3 = normalize(layer, t.project, p, stats, backend)
        ctx.save_for_backward(
            x, None if e is x else e, d, p, drop_scale, pooled, gate,
            *(None, None) if bn1 is None else bn1[:2], *bn2[:2], *bn3[:2], *flat,
        )  # fmt: skip
        ctx.block = block
        ctx.counts = (0 if bn1 is None else bn1.values, bn2.values, bn3.values)
        residual = x if block.residual else None
        return op.bn_residual(p, bn3.affine, "identity", None, drop_scale, residual, backend)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        x, e, d, p, drop_scale, pooled, gate = saved[:7]
        bn1, bn2, bn3 = (
            Normalization(saved[7 + 2 * i], saved[8 + 2 * i], ctx.counts[i]) for i in range(3)
        )
        t, block = _unflatten(saved[13:]), ctx.block
        act, backend = block.act, block.backend
        g = channels_last_grad(grads[0])
        need_x, need = ctx.needs_input_grad[1], ctx.needs_input_grad[3:]
        need_expand = need_x or any(need[0:5])
        need_depthwise = need_expand or any(need[5:10]) or any(need[15:19])
        out: list[Tensor | None] = [None] * 19

        sums = op.bn_bwd_reduce(g, p, bn3.norm, None, "identity", drop_scale, None, backend)
        out[11], out[12] = sums[1], sums[0]
        coef = backward_coef(block.project, t.project.gamma, bn3.norm, sums, bn3.values, backend)
        dz = dh = dx = None
        if need_depthwise or need[10]:
            dz, out[10], sums = pointwise_bwd(
                g, p, d, t.project.weight.to(x.dtype), coef, None, "identity", drop_scale, None,
                bn2.affine, act, gate, bn2.norm, None, need_depthwise, need[10], backend,
            )  # fmt: skip
        if need_depthwise:
            dpool = None
            if t.se is None:
                sums = torch.stack((sums[0].sum(0), sums[2].sum(0)))
            else:
                dpool, out[15], out[16], out[17], out[18], sums = op.se_gate_bwd(
                    sums, gate, pooled, t.se[0], t.se[1], t.se[2], act, d.shape[2] * d.shape[3],
                    backend,
                )  # fmt: skip
            out[6], out[7] = sums[1], sums[0]
            layer = block.depthwise
            coef = backward_coef(layer, t.depthwise.gamma, bn2.norm, sums, bn2.values, backend)
        if need_expand or need[5]:
            e_act = "identity" if block.expand is None else act
            skip = g if block.residual and block.expand is None and need_expand else None
            dh, out[5], sums = op.depthwise_bwd(
                dz, d, x if e is None else e, t.depthwise.weight.to(x.dtype), layer.stride,
                layer.padding, coef, bn2.affine, act, gate, dpool, bn1.affine, e_act, bn1.norm,
                skip, need_expand, need[5], backend,
            )  # fmt: skip
            dx = dh
        if need_expand and block.expand is not None and t.expand is not None:
            out[1], out[2] = sums[1], sums[0]
            coef = backward_coef(block.expand, t.expand.gamma, bn1.norm, sums, bn1.values, backend)
            if need_x or need[0]:
                w = t.expand.weight.to(x.dtype)
                if block.expand.kind == "pointwise":
                    dx, out[0], _ = pointwise_bwd(
                        dh, e, x, w, coef, None, "identity", None, None, None, "identity", None,
                        None, g if block.residual else None, need_x, need[0], backend,
                    )  # fmt: skip
                else:
                    dx, out[0] = op.conv2d_bwd(
                        dh, e, x, w, block.expand.stride, block.expand.padding, coef, None,
                        "identity", need_x, need[0], backend,
                    )  # fmt: skip
        grads_out = [
            like_parameter(v, p) if n else None
            for v, p, n in zip(out, saved[13:], need, strict=True)
        ]
        return None, dx if need_x else None, None, *grads_out
