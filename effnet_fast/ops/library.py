"""The op vocabulary as registered torch operators, ``torch.ops.effnet_fast.*``.

Each op reads each of its tensor arguments once and writes each result once, so the bytes of its
arguments are its traffic. What an op computes is said in :mod:`effnet_fast.reference`, whose
functions have the same names and arguments. Here are the schemas, the shapes of the results (the
fake kernels that torch.compile, export and FakeTensor use) and the way from an op to a backend:
the last argument, ``backend``, is what :func:`effnet_fast.backends.requested` returned when the
forward pass began, so that compiled graphs and the backward thread keep it; "auto" is decided for
each op by itself.

These are building blocks without checks: :mod:`effnet_fast.ops` holds the public functions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from effnet_fast.backends import choose
from effnet_fast.ops.shapes import (
    new_acc,
    new_conv_map,
    new_excitation_grads,
    new_grads,
    new_like,
    new_map,
    new_norm_pair,
)
from effnet_fast.reference import POOL_ROWS

_LIBRARY = torch.library.Library("effnet_fast", "DEF")
#: Where each backend's functions are; they have the names and arguments of those in reference.
_MODULES = {
    "cuda": "effnet_fast.ops.on_cuda",
    "triton": "effnet_fast.ops.on_triton",
    "cpu": "effnet_fast.ops.on_cpu",
    "reference": "effnet_fast.reference",
}


@cache
def _implementation(backend: str) -> ModuleType:
    """The functions of ``backend``, imported when an op first needs them."""
    return import_module(_MODULES[backend])


def _define(schema: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """Register an op: its schema (less ``str backend``) and its shapes; returns the callable."""
    name, rest = schema.split("(", 1)
    arguments, returns = rest.split(") ->")
    _LIBRARY.define(f"{name}({arguments}, str backend) ->{returns}")

    def run(*args: Any) -> Any:
        device = next(a for a in args if isinstance(a, Tensor)).device
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):  # Triton launches on the current one
                return run(*args)
        implementation = getattr(_implementation(choose(name, args[-1], *args[:-1])), name)
        if torch.is_autocast_enabled(device.type):  # the types are ours to choose, not its
            with torch.autocast(device.type, enabled=False):
                return implementation(*args[:-1])
        return implementation(*args[:-1])

    def run_fake(*args: Any) -> Any:
        return fake(*args[:-1])

    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"effnet_fast::{name}", run_fake, lib=_LIBRARY)
    op: Callable[..., Any] = getattr(torch.ops.effnet_fast, name).default
    return op


# ---------------------------------------------------------------- shapes of the results


def _conv2d(x, weight, stride, padding, out_bn, eps, out_act, stats):  # type: ignore[no-untyped-def]
    y = new_conv_map(x, weight, stride, padding)
    return y, new_acc(x, 2, weight.shape[0]) if stats else new_acc(x, 0)


def _pointwise(x, weight, *rest):  # type: ignore[no-untyped-def]
    y = new_map(x, x.shape[0], weight.shape[0], x.shape[2], x.shape[3])
    return y, new_acc(x, 2, weight.shape[0]) if rest[-1] else new_acc(x, 0)


def _depthwise(x, weight, stride, padding, *rest):  # type: ignore[no-untyped-def]
    y = new_conv_map(x, weight, stride, padding)
    n, c, p, _ = y.shape
    strips = (p + POOL_ROWS - 1) // POOL_ROWS
    reduced = {"stats": (2, c), "pool": (strips, n, c), "none": (0,)}[rest[-1]]
    return y, new_acc(x, *reduced)


def _pointwise_bwd(g, y, x, weight, *rest):  # type: ignore[no-untyped-def]
    in_affine, need_dx, need_dw = rest[5], rest[-2], rest[-1]
    sums = (5, *x.shape[:2]) if need_dx and in_affine is not None else (0,)
    return *new_grads(x, weight, need_dx, need_dw), new_acc(x, *sums)


def _depthwise_bwd(g, y, x, weight, *rest):  # type: ignore[no-untyped-def]
    in_affine, in_norm, need_dx, need_dw = rest[7], rest[9], rest[-2], rest[-1]
    sums = (2, x.shape[1]) if need_dx and in_affine is not None and in_norm is not None else (0,)
    return *new_grads(x, weight, need_dx, need_dw), new_acc(x, *sums)


# ---------------------------------------------------------------- the vocabulary

conv2d = _define(
    "conv2d(Tensor x, Tensor weight, SymInt stride, SymInt[] padding,"
    " Tensor?[] out_bn, float eps, str out_act, bool stats) -> (Tensor, Tensor)",
    _conv2d,
)
pointwise = _define(
    "pointwise(Tensor x, Tensor weight, Tensor? in_affine, str in_act, Tensor? in_gate,"
    " Tensor?[] out_bn, float eps, str out_act, Tensor? residual, bool stats) -> (Tensor, Tensor)",
    _pointwise,
)
pointwise_pool = _define(
    "pointwise_pool(Tensor x, Tensor weight, Tensor?[] out_bn, float eps, str out_act) -> Tensor",
    lambda x, weight, *rest: new_acc(x, x.shape[0], weight.shape[0]),
)
depthwise = _define(
    "depthwise(Tensor x, Tensor weight, SymInt stride, SymInt[] padding, Tensor? in_affine,"
    " str in_act, Tensor?[] out_bn, float eps, str out_act, str reduce) -> (Tensor, Tensor)",
    _depthwise,
)
se_pool = _define(
    "se_pool(Tensor x, Tensor? affine, str act) -> Tensor",
    lambda x, *rest: new_acc(x, *x.shape[:2]),
)
se_gate = _define(
    "se_gate(Tensor pool, Tensor w_reduce, Tensor b_reduce, Tensor w_expand, Tensor b_expand,"
    " str act, SymInt count) -> Tensor",
    lambda pool, *rest: pool.new_empty(pool.shape[1:]),
)
bn_fold = _define(
    "bn_fold(Tensor? weight, Tensor? bias, Tensor mean, Tensor var, float eps,"
    " ScalarType acc) -> (Tensor, Tensor)",
    lambda weight, bias, mean, var, eps, acc: new_norm_pair(mean, mean.shape[0], acc),
)
bn_finalize = _define(
    "bn_finalize(Tensor stats, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean,"
    " Tensor(b!)? running_var, SymInt count, float momentum, float eps) -> (Tensor, Tensor)",
    lambda stats, *rest: new_norm_pair(stats, stats.shape[1], stats.dtype),
)
bn_residual = _define(
    "bn_residual(Tensor x, Tensor? affine, str act, Tensor? gate, Tensor? drop_scale,"
    " Tensor? residual) -> Tensor",
    lambda x, *rest: new_like(x),
)
bn_bwd_reduce = _define(
    "bn_bwd_reduce(Tensor? g, Tensor y, Tensor norm, Tensor? affine, str act, Tensor? drop_scale,"
    " Tensor? dpool) -> Tensor",
    lambda g, y, *rest: new_acc(y, 2, y.shape[1]),
)
bn_bwd_coef = _define(
    "bn_bwd_coef(Tensor sums, Tensor norm, Tensor? weight, SymInt count, bool batch_stats)"
    " -> Tensor",
    lambda sums, norm, *rest: new_acc(norm, 4, norm.shape[1]),
)
bn_residual_bwd = _define(
    "bn_residual_bwd(Tensor g, Tensor y, Tensor? coef, Tensor? affine, str act, Tensor? gate,"
    " Tensor? drop_scale, Tensor? dpool) -> Tensor",
    lambda g, y, *rest: new_like(y),
)
se_bwd_reduce = _define(
    "se_bwd_reduce(Tensor g, Tensor x, Tensor? affine, str act, Tensor? norm) -> Tensor",
    lambda g, x, *rest: new_acc(x, 5, *x.shape[:2]),
)
se_gate_bwd = _define(
    "se_gate_bwd(Tensor sums, Tensor gate, Tensor pooled, Tensor w_reduce, Tensor b_reduce,"
    " Tensor w_expand, str act, SymInt hw) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    lambda sums, gate, pooled, w_reduce, b_reduce, w_expand, *rest: new_excitation_grads(
        gate, w_reduce, w_expand
    ),
)
conv2d_bwd = _define(
    "conv2d_bwd(Tensor g, Tensor y, Tensor x, Tensor weight, SymInt stride, SymInt[] padding,"
    " Tensor coef, Tensor? y_affine, str y_act, bool need_dx, bool need_dw) -> (Tensor, Tensor)",
    lambda g, y, x, weight, *rest: new_grads(x, weight, *rest[-2:]),
)
pointwise_bwd = _define(
    "pointwise_bwd(Tensor? g, Tensor y, Tensor x, Tensor weight, Tensor coef, Tensor? y_affine,"
    " str y_act, Tensor? drop_scale, Tensor? dpool, Tensor? in_affine, str in_act,"
    " Tensor? in_gate, Tensor? in_norm, Tensor? residual_grad, bool need_dx, bool need_dw)"
    " -> (Tensor, Tensor, Tensor)",
    _pointwise_bwd,
)
depthwise_bwd = _define(
    "depthwise_bwd(Tensor g, Tensor y, Tensor x, Tensor weight, SymInt stride, SymInt[] padding,"
    " Tensor coef, Tensor? y_affine, str y_act, Tensor? gate, Tensor? dpool, Tensor? in_affine,"
    " str in_act, Tensor? in_norm, Tensor? residual_grad, bool need_dx, bool need_dw)"
    " -> (Tensor, Tensor, Tensor)",
    _depthwise_bwd,
)
