"""Batch norm between the convolutions: the channels' vectors, and the passes that no product takes.

Activations are [N, H, W, C]; those given from outside (x, y, residual) may be slices of a larger
tensor, the gradient and what is written are dense. Per-channel vectors are fp32 but for the
module's own (weight, bias, running statistics), which may be of any floating type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import triton
import triton.language as tl

from . import tuning
from .common import activate, activate_and_slope, multiple, pixel_offsets, vector
from .walk import Config, Walk, candidates, share

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK_CHANNELS = 128


class Pixels(Protocol):
    """Strides of an activation's pixels; ``dense``: pixel i, through [N, H, W], is at i * w."""

    @property
    def n(self) -> int: ...
    @property
    def h(self) -> int: ...
    @property
    def w(self) -> int: ...
    @property
    def dense(self) -> bool: ...


# ---------------------------------------------------------------- vectors of the channels


@triton.jit
def lerp(b_old, b_new, weight):
    """b_old + weight * (b_new - b_old), from the nearer end: exact at weights 0 and 1, as torch."""
    b_step = b_new - b_old
    b_weight = tl.zeros_like(b_old) + weight
    return tl.where(b_weight < 0.5, b_old + weight * b_step, b_new - (1.0 - weight) * b_step)


@triton.jit
def bn_fold_kernel(
    p_mean, p_var, p_weight, p_bias, p_running_mean, p_running_var, p_affine, p_norm,
    C, eps, momentum, unbias, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """mean, var [C] -> affine [2, C] = (scale, shift), norm [2, C] = (mean, 1 / std).

    With running statistics: running = lerp(running, batch, momentum), in place, where the batch's
    variance is ``unbias`` = count / (count - 1) times the biased one.
    """
    o_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    b_mean = tl.load(p_mean + o_c, mask=m_c, other=0.0).to(tl.float32)
    b_var = tl.load(p_var + o_c, mask=m_c, other=0.0).to(tl.float32)
    b_invstd = 1.0 / tl.sqrt_rn(b_var + eps)
    b_scale = b_invstd
    if p_weight is not None:
        b_scale *= tl.load(p_weight + o_c, mask=m_c, other=0.0).to(tl.float32)
    b_bias = tl.zeros_like(b_mean)
    if p_bias is not None:
        b_bias = tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)
    b_shift = tl.fma(-b_mean, b_scale, b_bias)
    tl.store(p_affine + o_c, b_scale, mask=m_c)
    tl.store(p_affine + C + o_c, b_shift, mask=m_c)
    tl.store(p_norm + o_c, b_mean, mask=m_c)
    tl.store(p_norm + C + o_c, b_invstd, mask=m_c)
    if p_running_mean is not None:
        b_old = tl.load(p_running_mean + o_c, mask=m_c, other=0.0).to(tl.float32)
        b_new = lerp(b_old, b_mean, momentum)
        tl.store(p_running_mean + o_c, b_new.to(p_running_mean.dtype.element_ty), mask=m_c)
        b_old = tl.load(p_running_var + o_c, mask=m_c, other=0.0).to(tl.float32)
        b_new = lerp(b_old, b_var * unbias, momentum)
        tl.store(p_running_var + o_c, b_new.to(p_running_var.dtype.element_ty), mask=m_c)


@triton.jit
def bn_bwd_coef_kernel(
    p_sums, p_norm, p_weight, p_coef, C, inv_count,
    BATCH_STATS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """sums [2, C] = (sum h, sum h * xhat), norm [2, C] -> coef [4, C] = (a, b, mean, c)."""
    o_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    b_invstd = tl.load(p_norm + C + o_c, mask=m_c, other=0.0)
    b_a = b_invstd
    if p_weight is not None:
        b_a *= tl.load(p_weight + o_c, mask=m_c, other=0.0).to(tl.float32)
    b_b = tl.zeros_like(b_a)
    b_shift = b_b
    if BATCH_STATS:
        b_mean_h = tl.load(p_sums + o_c, mask=m_c, other=0.0) * inv_count
        b_mean_hx = tl.load(p_sums + C + o_c, mask=m_c, other=0.0) * inv_count
        b_b = -b_a * b_invstd * b_mean_hx
        b_shift = -b_a * b_mean_h
    tl.store(p_coef + o_c, b_a, mask=m_c)
    tl.store(p_coef + C + o_c, b_b, mask=m_c)
    tl.store(p_coef + 2 * C + o_c, tl.load(p_norm + o_c, mask=m_c, other=0.0), mask=m_c)
    tl.store(p_coef + 3 * C + o_c, b_shift, mask=m_c)


# ---------------------------------------------------------------- passes over activations


@triton.jit
def load_vector(p_v, o, m, ABSENT: tl.constexpr):
    """The fp32 vector at ``p_v``; where there is none ABSENT, which the compiler folds away.

    A function that returns None compiles on some versions of Triton (3.7) and not on others (3.6).
    """
    b_v = tl.full(o.shape, ABSENT, tl.float32)
    if p_v is not None:
        b_v = tl.load(p_v + o, mask=m, other=0.0)
    return b_v


@triton.jit
def load_scalar(p_v, i, ABSENT: tl.constexpr):
    """The fp32 at ``p_v + i``; where there is none ABSENT."""
    v = ABSENT
    if p_v is not None:
        v = tl.load(p_v + i)
    return v


@triton.jit
def affine_of(b_x, b_scale, b_shift):
    """scale * x + shift per channel, rounded once."""
    return tl.fma(b_x, b_scale[None, :], b_shift[None, :])


@triton.jit
def load_affine(p_affine, o_c, m_c, C):
    """(scale, shift); (1, 0) where there is none."""
    b_shift = tl.zeros(o_c.shape, tl.float32)
    if p_affine is not None:
        b_shift = tl.load(p_affine + C + o_c, mask=m_c, other=0.0)
    return load_vector(p_affine, o_c, m_c, 1.0), b_shift


@triton.jit
def bn_residual_kernel(
    p_x, p_affine, p_gate, p_drop, p_residual, p_out,
    C, H, W, x_n, x_h, x_w, r_n, r_h, r_w,
    IMAGES, PIXELS, IMAGES_EACH, SPLITS, CHUNK,
    ACT: tl.constexpr, DENSE_X: tl.constexpr, DENSE_R: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x [N, H, W, C] -> out = act(affine(x)) * gate [N, C] * drop [N] + residual, dense."""
    TYPE: tl.constexpr = p_x.dtype.element_ty
    C = multiple(C, VECTOR)
    x_n, x_h, x_w = multiple(x_n, VECTOR), multiple(x_h, VECTOR), multiple(x_w, VECTOR)
    r_n, r_h, r_w = multiple(r_n, VECTOR), multiple(r_h, VECTOR), multiple(r_w, VECTOR)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    b_scale, b_shift = load_affine(p_affine, o_c, m_c, C)
    first, last, start, stop = share(IMAGES, PIXELS, IMAGES_EACH, SPLITS, CHUNK)
    for image in range(first, last):
        b_drop = load_scalar(p_drop, image, 1.0)
        b_gate = load_vector(p_gate, image * C + o_c, m_c, 1.0)
        for p in range(start, stop, BLOCK_P):
            o_p = p + tl.arange(0, BLOCK_P)
            m = (o_p < stop)[:, None] & m_c[None, :]  # [BLOCK_P, BLOCK_C]
            o_pixel = image * PIXELS + o_p
            o_x = pixel_offsets(o_pixel, H, W, x_n, x_h, x_w, DENSE_X)[:, None] + o_c[None, :]
            b_x = tl.load(p_x + o_x, mask=m, other=0.0).to(tl.float32)
            b_y = activate(affine_of(b_x, b_scale, b_shift), ACT, TYPE)
            if p_gate is not None:
                b_y *= b_gate[None, :]
            if p_drop is not None:
                b_y *= b_drop
            if p_residual is not None:
                o_r = pixel_offsets(o_pixel, H, W, r_n, r_h, r_w, DENSE_R)[:, None] + o_c[None, :]
                b_y += tl.load(p_residual + o_r, mask=m, other=0.0).to(tl.float32)
            o_out = o_pixel.to(tl.int64)[:, None] * C + o_c[None, :]
            tl.store(p_out + o_out, b_y.to(TYPE), mask=m)


@triton.jit
def output_grad(
    p_g, o_g, m, b_y, b_scale, b_shift, b_gate, b_drop, b_dpool, POOLED: tl.constexpr,
    ACT: tl.constexpr,
):  # fmt: skip
    """h = (g * gate * drop + dpool) * act'(affine(y)); 0 where masked. [BLOCK_P, BLOCK_C]

    The slope is exact whatever the type: a pass over two activations has the special function
    unit's time for it, and an error that a channel's elements share would not average out of sums.
    """
    b_h = tl.zeros_like(b_y)
    if p_g is not None:
        b_h = tl.load(p_g + o_g, mask=m, other=0.0).to(tl.float32)
        b_h *= b_gate[None, :]
        b_h *= b_drop
    if POOLED:
        b_h = tl.where(m, b_h + b_dpool[None, :], 0.0)
    if ACT != "identity":
        _, b_slope = activate_and_slope(affine_of(b_y, b_scale, b_shift), ACT, tl.float32)
        b_h *= b_slope
    return b_h


@triton.jit
def bn_bwd_reduce_kernel(
    p_g, p_y, p_norm, p_affine, p_drop, p_dpool, p_partials,
    C, H, W, y_n, y_h, y_w,
    IMAGES, PIXELS, IMAGES_EACH, SPLITS, CHUNK,
    ACT: tl.constexpr, DENSE_Y: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """g, y [N, H, W, C] -> partials [walkers, 2, C] of (sum h, sum h * xhat)."""
    C = multiple(C, VECTOR)
    y_n, y_h, y_w = multiple(y_n, VECTOR), multiple(y_h, VECTOR), multiple(y_w, VECTOR)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    b_scale, b_shift = load_affine(p_affine, o_c, m_c, C)
    b_mean = tl.load(p_norm + o_c, mask=m_c, other=0.0)
    b_one = tl.full(o_c.shape, 1.0, tl.float32)
    b_h_sum = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    b_hx_sum = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    first, last, start, stop = share(IMAGES, PIXELS, IMAGES_EACH, SPLITS, CHUNK)
    for image in range(first, last):
        b_drop = load_scalar(p_drop, image, 1.0)
        b_dpool = load_vector(p_dpool, image * C + o_c, m_c, 0.0)
        for p in range(start, stop, BLOCK_P):
            o_p = p + tl.arange(0, BLOCK_P)
            m = (o_p < stop)[:, None] & m_c[None, :]
            o_pixel = image * PIXELS + o_p
            o_y = pixel_offsets(o_pixel, H, W, y_n, y_h, y_w, DENSE_Y)[:, None] + o_c[None, :]
            b_y = tl.load(p_y + o_y, mask=m, other=0.0).to(tl.float32)
            o_g = o_pixel.to(tl.int64)[:, None] * C + o_c[None, :]
            b_h = output_grad(
                p_g, o_g, m, b_y, b_scale, b_shift, b_one, b_drop, b_dpool, p_dpool is not None, ACT
            )
            b_h_sum += b_h
            b_hx_sum += b_h * (b_y - b_mean[None, :])
    b_invstd = tl.load(p_norm + C + o_c, mask=m_c, other=0.0)
    p_own = p_partials + tl.program_id(0).to(tl.int64) * 2 * C + o_c
    tl.store(p_own, tl.sum(b_h_sum, 0), mask=m_c)
    tl.store(p_own + C, tl.sum(b_hx_sum, 0) * b_invstd, mask=m_c)


@triton.jit
def bn_residual_bwd_kernel(
    p_g, p_y, p_coef, p_affine, p_gate, p_drop, p_dpool, p_out,
    C, H, W, y_n, y_h, y_w,
    IMAGES, PIXELS, IMAGES_EACH, SPLITS, CHUNK,
    ACT: tl.constexpr, DENSE_Y: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """g, y [N, H, W, C] -> out = a * h + b * (y - mean) + c, or h without coef; dense."""
    TYPE: tl.constexpr = p_y.dtype.element_ty
    C = multiple(C, VECTOR)
    y_n, y_h, y_w = multiple(y_n, VECTOR), multiple(y_h, VECTOR), multiple(y_w, VECTOR)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    b_scale, b_shift = load_affine(p_affine, o_c, m_c, C)
    if p_coef is not None:
        b_a, b_b = load_affine(p_coef, o_c, m_c, C)
        b_mean, b_add = load_affine(p_coef + 2 * C, o_c, m_c, C)
    first, last, start, stop = share(IMAGES, PIXELS, IMAGES_EACH, SPLITS, CHUNK)
    for image in range(first, last):
        b_drop = load_scalar(p_drop, image, 1.0)
        b_gate = load_vector(p_gate, image * C + o_c, m_c, 1.0)
        b_dpool = load_vector(p_dpool, image * C + o_c, m_c, 0.0)
        for p in range(start, stop, BLOCK_P):
            o_p = p + tl.arange(0, BLOCK_P)
            m = (o_p < stop)[:, None] & m_c[None, :]
            o_pixel = image * PIXELS + o_p
            o_y = pixel_offsets(o_pixel, H, W, y_n, y_h, y_w, DENSE_Y)[:, None] + o_c[None, :]
            b_y = tl.load(p_y + o_y, mask=m, other=0.0).to(tl.float32)
            o_out = o_pixel.to(tl.int64)[:, None] * C + o_c[None, :]
            b_dy = output_grad(
                p_g, o_out, m, b_y, b_scale, b_shift, b_gate, b_drop, b_dpool,
                p_dpool is not None, ACT,
            )  # fmt: skip
            if p_coef is not None:
                b_away = b_y - b_mean[None, :]
                b_dy = b_a[None, :] * b_dy + b_b[None, :] * b_away + b_add[None, :]
            tl.store(p_out + o_out, b_dy.to(TYPE), mask=m)


# ---------------------------------------------------------------- launchers


def launch_bn_fold(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None,
    running: tuple[Tensor, Tensor] | None, affine: Tensor, norm: Tensor,
    C: int, eps: float, momentum: float, unbias: float,
) -> None:  # fmt: skip
    """mean, var [C] -> affine, norm [2, C]; ``running`` (mean, variance) [C] is moved in place."""
    running_mean, running_var = running or (None, None)
    kernel: Any = bn_fold_kernel[(triton.cdiv(C, _BLOCK_CHANNELS),)]
    kernel(
        mean, var, weight, bias, running_mean, running_var, affine, norm,
        C, eps, momentum, unbias, BLOCK_C=_BLOCK_CHANNELS, num_warps=4,
    )  # fmt: skip


def launch_bn_bwd_coef(
    sums: Tensor, norm: Tensor, weight: Tensor | None, coef: Tensor, C: int, count: int,
    batch_stats: bool,
) -> None:  # fmt: skip
    """sums, norm [2, C] -> coef [4, C]."""
    kernel: Any = bn_bwd_coef_kernel[(triton.cdiv(C, _BLOCK_CHANNELS),)]
    kernel(
        sums, norm, weight, coef, C, 1.0 / max(count, 1),
        BATCH_STATS=batch_stats, BLOCK_C=_BLOCK_CHANNELS, num_warps=4,
    )  # fmt: skip


def vector_of(C: int, *maps: Pixels) -> int:
    """What divides the channels and the strides of every pixel: 8 or 1."""
    return vector(C, *(v for m in maps for v in ((m.w,) if m.dense else (m.n, m.h, m.w))))


def launch_bn_residual(
    x: Tensor, affine: Tensor | None, gate: Tensor | None, drop: Tensor | None,
    residual: Tensor | None, out: Tensor, size: tuple[int, int, int],
    x_pixels: Pixels, residual_pixels: Pixels, act: str, walk: Walk, config: Config,
) -> None:  # fmt: skip
    """x, residual [N, C, H, W], ``size`` (C, H, W) -> out."""
    kernel: Any = bn_residual_kernel[(walk.walkers, triton.cdiv(size[0], config.block_c))]
    a, r = x_pixels, residual_pixels
    kernel(
        x, affine, gate, drop, residual, out, *size, a.n, a.h, a.w, r.n, r.h, r.w, *walk,
        ACT=act, DENSE_X=a.dense, DENSE_R=r.dense, VECTOR=vector_of(size[0], a, r),
        BLOCK_P=config.block_p, BLOCK_C=config.block_c, num_warps=config.num_warps,
    )  # fmt: skip


def launch_bn_bwd_reduce(
    g: Tensor | None, y: Tensor, norm: Tensor, affine: Tensor | None, drop: Tensor | None,
    dpool: Tensor | None, partials: Tensor, size: tuple[int, int, int],
    y_pixels: Pixels, act: str, walk: Walk, config: Config,
) -> None:  # fmt: skip
    """g, y [N, C, H, W] -> partials [walkers, 2, C]."""
    kernel: Any = bn_bwd_reduce_kernel[(walk.walkers, triton.cdiv(size[0], config.block_c))]
    kernel(
        g, y, norm, affine, drop, dpool, partials, *size, y_pixels.n, y_pixels.h, y_pixels.w, *walk,
        ACT=act, DENSE_Y=y_pixels.dense, VECTOR=vector_of(size[0], y_pixels),
        BLOCK_P=config.block_p, BLOCK_C=config.block_c, num_warps=config.num_warps,
    )  # fmt: skip


def launch_bn_residual_bwd(
    g: Tensor, y: Tensor, coef: Tensor | None, affine: Tensor | None, gate: Tensor | None,
    drop: Tensor | None, dpool: Tensor | None, out: Tensor, size: tuple[int, int, int],
    y_pixels: Pixels, act: str, walk: Walk, config: Config,
) -> None:  # fmt: skip
    """g, y [N, C, H, W] -> out."""
    kernel: Any = bn_residual_bwd_kernel[(walk.walkers, triton.cdiv(size[0], config.block_c))]
    kernel(
        g, y, coef, affine, gate, drop, dpool, out, *size,
        y_pixels.n, y_pixels.h, y_pixels.w, *walk,
        ACT=act, DENSE_Y=y_pixels.dense, VECTOR=vector_of(size[0], y_pixels),
        BLOCK_P=config.block_p, BLOCK_C=config.block_c, num_warps=config.num_warps,
    )  # fmt: skip


for _op in ("bn_residual", "bn_bwd_reduce", "bn_residual_bwd"):
    tuning.register(_op, candidates)
