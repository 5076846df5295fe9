"""1x1 convolutions backward by kernels/pointwise_bwd.py; see :mod:`effnet_fast.reference`."""

from __future__ import annotations

from torch import Tensor

from effnet_fast.kernels import pointwise_bwd as kernel
from effnet_fast.kernels import reduce, tuning
from effnet_fast.kernels.limits import fits_one_kernel
from effnet_fast.kernels.pointwise import shape_class
from effnet_fast.kernels.pointwise_bwd import Layout, Operands
from effnet_fast.ops.on_triton.common import TYPE_NAMES, dot_precision, pixels
from effnet_fast.ops.shapes import new_acc, new_grads


def pointwise_bwd(
    g: Tensor | None, y: Tensor, x: Tensor, weight: Tensor, coef: Tensor,
    y_affine: Tensor | None, y_act: str, drop_scale: Tensor | None, dpool: Tensor | None,
    in_affine: Tensor | None, in_act: str, in_gate: Tensor | None, in_norm: Tensor | None,
    residual_grad: Tensor | None, need_dx: bool, need_dw: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Backward of pointwise -> (dx, dw, sums); what is not needed is [0]."""
    n, c, h, w = x.shape
    dx, dw = new_grads(x, weight, need_dx, need_dw)
    sums = new_acc(x, 5, n, c) if need_dx and in_affine is not None else new_acc(x, 0)
    if n == 0:
        return dx, dw.zero_(), sums
    by_image = any(v is not None for v in (drop_scale, dpool, in_gate)) or sums.numel() > 0
    layout = Layout(*((n, h * w) if by_image else (1, n * h * w)), (h, w), pixels(x))
    operands = Operands(
        g, y, x, weight.contiguous(), coef, y_affine, drop_scale, dpool, in_affine, in_gate,
        in_norm, residual_grad,
    )  # fmt: skip
    how = (y_act, in_act, dot_precision(x))
    # Not in fp32: operands twice as wide beside the weight gradient spill by the thousand.
    if need_dx and need_dw and x.element_size() == 2 and fits_one_kernel(*weight.shape[:2]):
        _both(operands, layout, dx, dw, sums, how)
        return dx, dw, sums
    if need_dx:
        _dgrad(operands, layout, dx, sums, how)
    if need_dw:
        _wgrad(operands, layout, dw, how)
    return dx, dw, sums


def _config(kind: str, o: Operands, layout: Layout, sums: bool) -> tuple[kernel.Config, int]:
    """Block shapes, and how many programs share a group."""
    k, c = o.weight.shape[:2]
    default = kernel.default_config(kind, layout.rows, c, k, o.x.element_size() * 8, sums)
    key = shape_class(layout.rows, c, k, TYPE_NAMES[o.x.dtype]) + (" sums" if sums else "")
    config = tuning.pick(f"pointwise_{kind}", key, default)
    return config, kernel.parts(kind, layout.groups, layout.rows, c, k, config)


def _first_stage(out: Tensor, programs: int) -> Tensor:
    """Where ``programs`` programs leave their partials of ``out``: itself, if there is but one."""
    return out if programs == 1 else new_acc(out, programs, *out.shape)


def _second_stage(partials: Tensor, out: Tensor, programs: int) -> None:
    if programs > 1:
        reduce.launch_sum(partials, out, programs, out.numel())


def _dgrad(o: Operands, layout: Layout, dx: Tensor, sums: Tensor, how: tuple[str, ...]) -> None:
    config, parts = _config("dgrad", o, layout, sums.numel() > 0)
    partials = _first_stage(sums, parts) if sums.numel() else None
    kernel.launch_pointwise_dgrad(o, layout, dx, partials, parts, *how, config)
    if partials is not None:
        _second_stage(partials, sums, parts)


def _wgrad(o: Operands, layout: Layout, dw: Tensor, how: tuple[str, ...]) -> None:
    config, parts = _config("wgrad", o, layout, False)
    partials = _first_stage(dw, parts)
    kernel.launch_pointwise_wgrad(o, layout, partials, parts, *how, config)
    _second_stage(partials, dw, parts)


def _both(
    o: Operands, layout: Layout, dx: Tensor, dw: Tensor, sums: Tensor, how: tuple[str, ...]
) -> None:
    config, parts = _config("both", o, layout, sums.numel() > 0)
    per_program = -(-layout.groups // max(1, kernel.PROGRAMS["both"] // parts))
    programs = -(-layout.groups // per_program) * parts
    dw_partials = _first_stage(dw, programs)
    partials = _first_stage(sums, parts) if sums.numel() else None
    kernel.launch_pointwise_both(
        o, layout, dx, dw_partials, partials, parts, per_program, *how, config
    )
    _second_stage(dw_partials, dw, programs)
    if partials is not None:
        _second_stage(partials, sums, parts)
