"""Every op of the library in plain torch: the truth the kernels are tested against.

Shapes and layout. Activations are logical ``[N, C, H, W]`` tensors in channels_last memory
(``[N, H, W, C]`` in bytes); results are always channels_last, inputs may have any strides.
Conventions shared by all ops, forward and backward:

* Arithmetic and reductions run in the accumulation type: fp64 for fp64 inputs, else fp32. Results
  that are activations are rounded once, to the input's type; per-channel results stay fp32 / fp64.
* ``affine`` is ``[2, C]`` = (scale, shift): batch norm as ``scale * x + shift``.
  ``norm`` is ``[2, C]`` = (mean, invstd), so that ``xhat = (x - mean) * invstd``.
* ``stats`` is ``[2, C]`` = (mean, biased variance) of the fp32 accumulators over N, H, W. Moments
  rather than raw sums, because ``sum(x*x)/n - mean**2`` loses everything where ``|mean| >> std``.
* ``padding`` is (top, bottom, left, right). Zeros are padded after the prologue, as a convolution
  of the activated tensor would see them.
* A prologue (``in_*``) is applied to the input on load:  ``a = gate * act(affine(x))``.
  An epilogue (``out_*``) is applied to the accumulator:   ``y = act(bn(acc)) + residual``.
* ``out_bn`` is a batch norm by its running statistics, as a list: (weight, bias, mean, variance) of
  [C] each, weight and bias perhaps None; or empty, for none. It is folded where it is applied, so
  that inference needs no launch for it and keeps no folded copy that could go stale.

Gradients on load. A convolution's raw output ``y`` is followed by batch norm, an activation, and
perhaps a gate or a stochastic-depth factor. The gradient of ``y`` is never stored: every backward
op rebuilds it from ``g``, the gradient behind all of that, while loading::

    h  = (g * gate * drop_scale + dpool) * act'(affine(y))      gradient of the batch norm's output
    dy = a * h + b * (y - mean) + c                             coef = [4, C] = (a, b, mean, c)

With batch statistics over M elements, a = gamma*invstd, b = -a*invstd*mean(h*xhat), c = -a*mean(h);
with running statistics b = c = 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Padding = tuple[int, int, int, int] | list[int]

#: ``depthwise(..., reduce="pool")`` sums over strips of so many output rows: enough strips for one
#: image to fill a GPU, and few enough that ``se_gate`` adds them up as it loads.
POOL_ROWS = 4


def acc_dtype(x: Tensor) -> torch.dtype:
    """The accumulation type for an activation of ``x``'s type."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def activate(u: Tensor, act: str) -> Tensor:
    """``act(u)``; act is "identity", "relu", "relu6" or "silu"."""
    if act == "identity":
        return u
    if act == "silu":
        return F.silu(u)
    if act == "relu6":
        return F.relu6(u)
    if act == "relu":
        return F.relu(u)
    raise ValueError(f"unknown activation {act!r}; known: identity, relu, relu6, silu")


def activate_bwd(g: Tensor, u: Tensor, act: str) -> Tensor:
    """``g * act'(u)``; at the kinks of relu (0) and relu6 (0, 6) the slope is 0, as in torch."""
    if act == "identity":
        return g
    if act == "silu":
        return torch.ops.aten.silu_backward(g, u)
    if act == "relu6":
        return torch.ops.aten.hardtanh_backward(g, u, 0, 6)
    if act == "relu":
        return torch.ops.aten.threshold_backward(g, u, 0)
    raise ValueError(f"unknown activation {act!r}; known: identity, relu, relu6, silu")


def _channels(v: Tensor) -> Tensor:
    """``[C]`` or ``[N, C]`` broadcast against ``[N, C, H, W]``."""
    return v.view(1, -1, 1, 1) if v.dim() == 1 else v[:, :, None, None]


def _samples(v: Tensor) -> Tensor:
    """``[N]`` broadcast against ``[N, C, H, W]``."""
    return v.view(-1, 1, 1, 1)


def _apply_affine(x: Tensor, affine: Tensor | None) -> Tensor:
    return x if affine is None else torch.addcmul(_channels(affine[1]), x, _channels(affine[0]))


def _load(x: Tensor, affine: Tensor | None, act: str, gate: Tensor | None = None) -> Tensor:
    a = activate(_apply_affine(x.to(acc_dtype(x)), affine), act)
    return a if gate is None else a * _channels(gate)


def running_statistics(
    out_bn: list[Tensor | None],
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    """(weight, bias, mean, variance) of an ``out_bn`` that is not empty."""
    weight, bias, mean, var = out_bn
    assert mean is not None
    assert var is not None
    return weight, bias, mean, var


def _epilogue(y: Tensor, out_bn: list[Tensor | None], eps: float, act: str) -> Tensor:
    if not out_bn:
        return activate(y, act)
    affine, _ = bn_fold(*running_statistics(out_bn), eps, y.dtype)
    return activate(_apply_affine(y, affine), act)


def _store(y: Tensor, like: Tensor) -> Tensor:
    """Round to ``like``'s type, in canonical channels_last strides."""
    y = y.to(like.dtype)
    _, c, h, w = y.shape
    if y.stride() == (h * w * c, 1, w * c, c):
        return y
    out = torch.empty_like(y, memory_format=torch.channels_last)
    return out.copy_(y)


def _moments(y: Tensor) -> Tensor:
    if y.numel() == 0:
        return y.new_zeros(2, y.shape[1])
    var, mean = torch.var_mean(y, dim=(0, 2, 3), correction=0)
    return torch.stack((mean, var))


def _convolve(a: Tensor, weight: Tensor, stride: int, padding: Padding, groups: int) -> Tensor:
    top, bottom, left, right = padding
    w = weight.to(a.dtype)
    if top == bottom and left == right:
        return F.conv2d(a, w, None, stride, (top, left), 1, groups)
    return F.conv2d(F.pad(a, (left, right, top, bottom)), w, None, stride, 0, 1, groups)


def _convolve_bwd(
    dy: Tensor, a: Tensor, weight: Tensor, stride: int, padding: Padding, groups: int,
    need_dx: bool, need_dw: bool,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    top, bottom, left, right = padding
    same = top == bottom and left == right
    padded = a if same else F.pad(a, (left, right, top, bottom))
    pad = [top, left] if same else [0, 0]
    da, dw, _ = torch.ops.aten.convolution_backward(
        dy, padded, weight.to(a.dtype), None, [stride] * 2, pad, [1, 1], False, [0, 0], groups,
        [need_dx, need_dw, False],
    )  # fmt: skip
    if da is not None and not same:
        da = da[:, :, top : top + a.shape[2], left : left + a.shape[3]]
    return da, None if dw is None else dw.contiguous()


def _bn_output_grad(
    g: Tensor | None, y: Tensor, affine: Tensor | None, act: str,
    gate: Tensor | None = None, drop_scale: Tensor | None = None, dpool: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``h`` of the module docstring, in the accumulation type."""
    acc = acc_dtype(y)
    h = torch.zeros_like(y, dtype=acc) if g is None else g.to(acc)
    if gate is not None:
        h = h * _channels(gate)
    if drop_scale is not None:
        h = h * _samples(drop_scale)
    if dpool is not None:
        h = h + _channels(dpool)
    if act != "identity":
        h = activate_bwd(h, _apply_affine(y.to(acc), affine), act)
    return h


def _bn_input_grad(h: Tensor, y: Tensor, coef: Tensor) -> Tensor:
    a, b, mean, c = (_channels(v) for v in coef)
    return a * h + b * (y.to(h.dtype) - mean) + c


def _xhat(y: Tensor, norm: Tensor) -> Tensor:
    return (y.to(norm.dtype) - _channels(norm[0])) * _channels(norm[1])


def _bn_sums(h: Tensor, y: Tensor, norm: Tensor) -> Tensor:
    return torch.stack((h.sum((0, 2, 3)), (h * _xhat(y, norm)).sum((0, 2, 3))))


def _empty(like: Tensor) -> Tensor:
    return torch.empty(0, dtype=acc_dtype(like), device=like.device)


# ---------------------------------------------------------------- convolutions, forward


def conv2d(
    x: Tensor, weight: Tensor, stride: int, padding: Padding,
    out_bn: list[Tensor | None], eps: float, out_act: str, stats: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Dense k x k convolution (the stem). x [N,C,H,W], weight [K,C,k,k] -> y [N,K,P,Q], stats."""
    y = _convolve(x.to(acc_dtype(x)), weight, stride, padding, 1)
    moments = _moments(y) if stats else _empty(x)
    return _store(_epilogue(y, out_bn, eps, out_act), x), moments


def pointwise(
    x: Tensor, weight: Tensor, in_affine: Tensor | None, in_act: str, in_gate: Tensor | None,
    out_bn: list[Tensor | None], eps: float, out_act: str, residual: Tensor | None, stats: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """1x1 convolution. x [N,C,H,W], weight [K,C,1,1], in_gate [N,C] -> y [N,K,H,W], stats."""
    a = _load(x, in_affine, in_act, in_gate)
    y = _convolve(a, weight, 1, (0, 0, 0, 0), 1)
    moments = _moments(y) if stats else _empty(x)
    y = _epilogue(y, out_bn, eps, out_act)
    return _store(y if residual is None else y + residual, x), moments


def pointwise_pool(
    x: Tensor, weight: Tensor, out_bn: list[Tensor | None], eps: float, out_act: str
) -> Tensor:
    """The head: 1x1 convolution, BN, activation, mean over H, W -> [N,K]; no map is stored."""
    y = _convolve(x.to(acc_dtype(x)), weight, 1, (0, 0, 0, 0), 1)
    return _epilogue(y, out_bn, eps, out_act).mean((2, 3))


def _pool_strips(y: Tensor) -> Tensor:
    strips = y.split(POOL_ROWS, dim=2)
    return torch.stack([strip.sum((2, 3)) for strip in strips])


def depthwise(
    x: Tensor, weight: Tensor, stride: int, padding: Padding, in_affine: Tensor | None, in_act: str,
    out_bn: list[Tensor | None], eps: float, out_act: str, reduce: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Depthwise convolution. x [N,C,H,W], weight [C,1,k,k] -> y [N,C,P,Q], and by ``reduce``:

    "stats" the moments [2,C] of the raw output; "pool" the sums [T,N,C] of y over strips of
    :data:`POOL_ROWS` rows, T = ceil(P / POOL_ROWS), for ``se_gate``; "none" [0].
    """
    y = _convolve(_load(x, in_affine, in_act), weight, stride, padding, x.shape[1])
    moments = _moments(y) if reduce == "stats" else _empty(x)
    y = _epilogue(y, out_bn, eps, out_act)
    return _store(y, x), _pool_strips(y) if reduce == "pool" else moments


# ---------------------------------------------------------------- squeeze-and-excitation, forward


def se_pool(x: Tensor, affine: Tensor | None, act: str) -> Tensor:
    """Squeeze: mean over H and W of ``act(affine(x))`` -> [N,C]."""
    return _load(x, affine, act).mean((2, 3))


def _se_hidden(pooled: Tensor, w_reduce: Tensor, b_reduce: Tensor) -> Tensor:
    return F.linear(pooled, w_reduce.to(pooled.dtype).flatten(1), b_reduce.to(pooled.dtype))


def se_gate(
    pool: Tensor, w_reduce: Tensor, b_reduce: Tensor, w_expand: Tensor, b_expand: Tensor, act: str,
    count: int,
) -> Tensor:  # fmt: skip
    """Excitation: pool [T,N,C], w_reduce [R,C,1,1], w_expand [C,R,1,1] -> gate [N,C] in (0, 1).

    The squeezed map is the sum of ``pool`` over T, divided by ``count``: the strips of a depthwise
    convolution and P*Q, or the mean of ``se_pool`` as [1,N,C] and 1.
    """
    pooled = pool.sum(0) / count
    hidden = activate(_se_hidden(pooled, w_reduce, b_reduce), act)
    w, b = w_expand.to(pooled.dtype).flatten(1), b_expand.to(pooled.dtype)
    return torch.sigmoid(F.linear(hidden, w, b))


# ---------------------------------------------------------------- batch norm, forward


def bn_fold(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float,
    acc: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Mean and biased variance [C] -> (affine, norm) in the accumulation type ``acc``."""
    mean = mean.to(acc)
    invstd = torch.rsqrt(var.to(acc) + eps)
    scale = invstd if weight is None else invstd * weight.to(acc)
    shift = -mean * scale if bias is None else bias.to(acc) - mean * scale
    return torch.stack((scale, shift)), torch.stack((mean, invstd))


def bn_finalize(
    stats: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
    running_var: Tensor | None, count: int, momentum: float, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Batch moments over ``count`` elements -> (affine, norm); updates the running statistics.

    ``running = (1 - momentum) * running + momentum * batch``, with the unbiased variance, as in
    torch. An empty batch (count 0) leaves them as they are.
    """
    if count > 0 and running_mean is not None and running_var is not None:
        unbiased = stats[1] * (count / max(count - 1, 1))
        running_mean.lerp_(stats[0].to(running_mean.dtype), momentum)
        running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    return bn_fold(weight, bias, stats[0], stats[1], eps, stats.dtype)


def bn_residual(
    x: Tensor, affine: Tensor | None, act: str, gate: Tensor | None, drop_scale: Tensor | None,
    residual: Tensor | None,
) -> Tensor:  # fmt: skip
    """The one elementwise pass: ``act(affine(x)) * gate[N,C] * drop_scale[N] + residual``."""
    y = _load(x, affine, act, gate)
    if drop_scale is not None:
        y = y * _samples(drop_scale)
    if residual is not None:
        y = y + residual
    return _store(y.clone() if y is x else y, x)


# ---------------------------------------------------------------- batch norm, backward


def bn_bwd_reduce(
    g: Tensor | None, y: Tensor, norm: Tensor, affine: Tensor | None, act: str,
    drop_scale: Tensor | None, dpool: Tensor | None,
) -> Tensor:  # fmt: skip
    """(sum h, sum h*xhat) over N, H, W -> [2,C]: the gradients of beta and gamma."""
    return _bn_sums(_bn_output_grad(g, y, affine, act, None, drop_scale, dpool), y, norm)


def bn_bwd_coef(
    sums: Tensor, norm: Tensor, weight: Tensor | None, count: int, batch_stats: bool
) -> Tensor:
    """Sums over ``count`` elements -> coef [4,C] of the module docstring."""
    mean, invstd = norm[0], norm[1]
    a = invstd if weight is None else invstd * weight.to(norm.dtype)
    if not batch_stats:
        zero = torch.zeros_like(a)
        return torch.stack((a, zero, mean, zero))
    mean_h, mean_hx = sums[0] / max(count, 1), sums[1] / max(count, 1)
    return torch.stack((a, -a * invstd * mean_hx, mean, -a * mean_h))


def bn_residual_bwd(
    g: Tensor, y: Tensor, coef: Tensor | None, affine: Tensor | None, act: str,
    gate: Tensor | None, drop_scale: Tensor | None, dpool: Tensor | None,
) -> Tensor:  # fmt: skip
    """The gradient of ``y``, written out: where no convolution follows that could rebuild it."""
    h = _bn_output_grad(g, y, affine, act, gate, drop_scale, dpool)
    return _store((h.clone() if h is g else h) if coef is None else _bn_input_grad(h, y, coef), y)


# ---------------------------------------------------------------- squeeze-and-excitation, backward


def _se_sums(g: Tensor, x: Tensor, affine: Tensor | None, act: str, norm: Tensor | None) -> Tensor:
    u = _apply_affine(x.to(g.dtype), affine)
    gs, slope = activate_bwd(g, u, act), activate_bwd(torch.ones_like(u), u, act)
    xhat = torch.zeros_like(u) if norm is None else _xhat(x, norm)
    terms = (gs, slope, gs * xhat, slope * xhat, g * activate(u, act))
    return torch.stack([t.sum((2, 3)) for t in terms])


def se_bwd_reduce(
    g: Tensor, x: Tensor, affine: Tensor | None, act: str, norm: Tensor | None
) -> Tensor:
    """Five sums over H, W -> [5,N,C]: g*act', act', g*act'*xhat, act'*xhat, g*act.

    ``g`` is the gradient of the gated tensor. Everything that the gate's gradient and the batch
    norm before it need is linear in these, so that neither costs another pass (xhat = 0 without
    ``norm``).
    """
    return _se_sums(g.to(acc_dtype(x)), x, affine, act, norm)


def se_gate_bwd(
    sums: Tensor, gate: Tensor, pooled: Tensor, w_reduce: Tensor, b_reduce: Tensor,
    w_expand: Tensor, act: str, hw: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Backward of se_gate, and the batch norm sums that depend on it.

    sums [5,N,C] of se_bwd_reduce, hw = H*W -> dpool [N,C] (already divided by hw: the gradient that
    each element of the squeezed map receives), dw_reduce, db_reduce, dw_expand, db_expand (in the
    weights' shapes), and bn_sums [2,C] = (sum h, sum h*xhat) of the batch norm before the gate.
    """
    d_logit = sums[4] * gate * (1 - gate)
    u = _se_hidden(pooled, w_reduce, b_reduce)
    hidden = activate(u, act)
    d_u = activate_bwd(d_logit @ w_expand.to(gate.dtype).flatten(1), u, act)
    dpool = d_u @ w_reduce.to(gate.dtype).flatten(1) / hw
    dw_reduce = (d_u.t() @ pooled).view(w_reduce.shape)
    dw_expand = (d_logit.t() @ hidden).view(w_expand.shape)
    bn_sums = torch.stack(
        ((gate * sums[0] + dpool * sums[1]).sum(0), (gate * sums[2] + dpool * sums[3]).sum(0))
    )
    return dpool, dw_reduce, d_u.sum(0), dw_expand, d_logit.sum(0), bn_sums


# ---------------------------------------------------------------- convolutions, backward


def conv2d_bwd(
    g: Tensor, y: Tensor, x: Tensor, weight: Tensor, stride: int, padding: Padding, coef: Tensor,
    y_affine: Tensor | None, y_act: str, need_dx: bool, need_dw: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Backward of conv2d: dx like x, dw like weight in the accumulation type; [0] if not needed."""
    dy = _bn_input_grad(_bn_output_grad(g, y, y_affine, y_act), y, coef)
    dx, dw = _convolve_bwd(
        dy, x.to(dy.dtype), weight, stride, padding, 1, need_dx, need_dw
    )  # fmt: skip
    return _empty(x).to(x.dtype) if dx is None else _store(dx, x), _empty(x) if dw is None else dw


def pointwise_bwd(
    g: Tensor | None, y: Tensor, x: Tensor, weight: Tensor, coef: Tensor,
    y_affine: Tensor | None, y_act: str, drop_scale: Tensor | None, dpool: Tensor | None,
    in_affine: Tensor | None, in_act: str, in_gate: Tensor | None, in_norm: Tensor | None,
    residual_grad: Tensor | None, need_dx: bool, need_dw: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Backward of pointwise -> (dx, dw, sums); what is not needed is [0].

    dx [N,C,H,W] is the gradient of the product's operand (before in_gate and in_act are undone: the
    depthwise backward does that on load) plus ``residual_grad``. With a prologue, ``sums`` [5,N,C]
    are those of se_bwd_reduce, from the same pass.
    """
    dy = _bn_input_grad(_bn_output_grad(g, y, y_affine, y_act, None, drop_scale, dpool), y, coef)
    a = _load(x, in_affine, in_act, in_gate)
    da, dw = _convolve_bwd(dy, a, weight, 1, (0, 0, 0, 0), 1, need_dx, need_dw)
    sums = dx = None
    if da is not None:
        sums = None if in_affine is None else _se_sums(da, x, in_affine, in_act, in_norm)
        dx = _store(da if residual_grad is None else da + residual_grad, x)
    return (
        _empty(x).to(x.dtype) if dx is None else dx,
        _empty(x) if dw is None else dw,
        _empty(x) if sums is None else sums,
    )


def depthwise_bwd(
    g: Tensor, y: Tensor, x: Tensor, weight: Tensor, stride: int, padding: Padding, coef: Tensor,
    y_affine: Tensor | None, y_act: str, gate: Tensor | None, dpool: Tensor | None,
    in_affine: Tensor | None, in_act: str, in_norm: Tensor | None, residual_grad: Tensor | None,
    need_dx: bool, need_dw: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Backward of depthwise, input and weight gradient in one pass -> (dx, dw, sums).

    With a prologue, dx is the gradient ``h`` of the *first* batch norm's output (in_act undone) and
    sums [2,C] its (sum h, sum h*xhat); without one, dx is the gradient of x plus ``residual_grad``.
    """
    dy = _bn_input_grad(_bn_output_grad(g, y, y_affine, y_act, gate, None, dpool), y, coef)
    a = _load(x, in_affine, in_act)
    da, dw = _convolve_bwd(dy, a, weight, stride, padding, x.shape[1], need_dx, need_dw)
    sums = dx = None
    if da is not None:
        if in_affine is not None and in_norm is not None:
            da = activate_bwd(da, _apply_affine(x.to(da.dtype), in_affine), in_act)
            sums = _bn_sums(da, x, in_norm)
        dx = _store(da if residual_grad is None else da + residual_grad, x)
    return (
        _empty(x).to(x.dtype) if dx is None else dx,
        _empty(x) if dw is None else dw,
        _empty(x) if sums is None else sums,
    )
