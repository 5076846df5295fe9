"""Squeeze-and-excitation: the sums over an image's pixels, and the gate of two small products.

Gate, pool and their gradients are [N, C] in fp32; the MLP is computed in fp32 whatever its weights
are stored in. With its products' 16 rows of images, tensor cores take three TF32 products for one
of fp32 (an error near 2^-22 of each term), which leaves the loads of the weights as what it costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl

from . import tuning
from .batch_norm import Pixels, affine_of, load_affine, vector_of
from .common import activate, activate_and_slope, multiple, pixel_offsets, vector
from .walk import Config, Walk, candidates, share

if TYPE_CHECKING:
    from torch import Tensor

#: Images of a block of the MLP: the least that a tensor core takes.
IMAGES: tl.constexpr = tl.constexpr(16)
#: Strips of a pool that are added without a loop, so that their loads are in flight together.
_STRIPS = 4


# ---------------------------------------------------------------- sums over the pixels


@triton.jit
def se_pool_kernel(
    p_x, p_affine, p_partials,
    C, H, W, x_n, x_h, x_w, inv_count,
    N, PIXELS, IMAGES_EACH, SPLITS, CHUNK,
    ACT: tl.constexpr, DENSE_X: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x [N, H, W, C] -> partials [SPLITS, N, C], together the mean of act(affine(x))."""
    TYPE: tl.constexpr = p_x.dtype.element_ty
    C = multiple(C, VECTOR)
    x_n, x_h, x_w = multiple(x_n, VECTOR), multiple(x_h, VECTOR), multiple(x_w, VECTOR)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    b_scale, b_shift = load_affine(p_affine, o_c, m_c, C)
    first, last, start, stop = share(N, PIXELS, IMAGES_EACH, SPLITS, CHUNK)
    i_split = tl.program_id(0) % SPLITS
    for image in range(first, last):
        b_sum = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        for p in range(start, stop, BLOCK_P):
            o_p = p + tl.arange(0, BLOCK_P)
            m = (o_p < stop)[:, None] & m_c[None, :]  # [BLOCK_P, BLOCK_C]
            o_x = pixel_offsets(image * PIXELS + o_p, H, W, x_n, x_h, x_w, DENSE_X)
            b_x = tl.load(p_x + o_x[:, None] + o_c[None, :], mask=m, other=0.0).to(tl.float32)
            b_a = activate(affine_of(b_x, b_scale, b_shift), ACT, TYPE)
            b_sum += tl.where(m, b_a, 0.0)
        o_out = (i_split * N + image) * C + o_c
        tl.store(p_partials + o_out, tl.sum(b_sum, 0) * inv_count, mask=m_c)


@triton.jit
def se_bwd_reduce_kernel(
    p_g, p_x, p_affine, p_norm, p_partials,
    C, H, W, x_n, x_h, x_w,
    N, PIXELS, IMAGES_EACH, SPLITS, CHUNK,
    ACT: tl.constexpr, DENSE_X: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """g, x [N, H, W, C] -> partials [SPLITS, 5, N, C]: g*act', act', g*act'*xhat, act'*xhat, g*act.

    Without a norm, xhat and the sums with it are 0.
    """
    C = multiple(C, VECTOR)
    x_n, x_h, x_w = multiple(x_n, VECTOR), multiple(x_h, VECTOR), multiple(x_w, VECTOR)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    b_scale, b_shift = load_affine(p_affine, o_c, m_c, C)
    b_mean, b_invstd = load_affine(p_norm, o_c, m_c, C)
    first, last, start, stop = share(N, PIXELS, IMAGES_EACH, SPLITS, CHUNK)
    i_split = tl.program_id(0) % SPLITS
    for image in range(first, last):
        b_gs = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        b_s, b_gsx, b_sx, b_ga = b_gs, b_gs, b_gs, b_gs
        for p in range(start, stop, BLOCK_P):
            o_p = p + tl.arange(0, BLOCK_P)
            m = (o_p < stop)[:, None] & m_c[None, :]
            o_pixel = image * PIXELS + o_p
            o_x = pixel_offsets(o_pixel, H, W, x_n, x_h, x_w, DENSE_X)[:, None] + o_c[None, :]
            b_x = tl.load(p_x + o_x, mask=m, other=0.0).to(tl.float32)
            o_g = o_pixel.to(tl.int64)[:, None] * C + o_c[None, :]
            b_g = tl.load(p_g + o_g, mask=m, other=0.0).to(tl.float32)
            b_a, b_slope = activate_and_slope(affine_of(b_x, b_scale, b_shift), ACT, tl.float32)
            b_slope = tl.where(m, b_slope, 0.0)
            b_gs += b_g * b_slope
            b_s += b_slope
            b_ga += b_g * b_a
            if p_norm is not None:
                b_away = b_x - b_mean[None, :]
                b_gsx += b_g * b_slope * b_away
                b_sx += b_slope * b_away
        p_own = p_partials + (i_split * 5 * N + image) * C + o_c
        tl.store(p_own, tl.sum(b_gs, 0), mask=m_c)
        tl.store(p_own + N * C, tl.sum(b_s, 0), mask=m_c)
        tl.store(p_own + 4 * N * C, tl.sum(b_ga, 0), mask=m_c)
        b_gsx_sum = tl.zeros([BLOCK_C], tl.float32)
        b_sx_sum = b_gsx_sum
        if p_norm is not None:
            b_gsx_sum = tl.sum(b_gsx, 0) * b_invstd
            b_sx_sum = tl.sum(b_sx, 0) * b_invstd
        tl.store(p_own + 2 * N * C, b_gsx_sum, mask=m_c)
        tl.store(p_own + 3 * N * C, b_sx_sum, mask=m_c)


# ---------------------------------------------------------------- the MLP


class GateConfig(NamedTuple):
    """Block shapes of the MLP: squeezed channels, hidden channels, gate channels."""

    block_k: int
    block_r: int
    block_c: int
    num_warps: int
    num_stages: int


def gate_class(N: int, C: int, R: int, dtype: str) -> str:
    """The key of an MLP in the tuning table."""
    return f"n{triton.next_power_of_2(N)} c{C} r{R} {dtype}"


def default_gate_config(C: int, R: int, bits: int) -> GateConfig:
    """Gate channels few, for many programs; ``bits`` of a weight, of which a block has 4 or 8 KiB.

    Eight warps: the operands of three products take a thread of four 255 registers, and spill; so
    do tiles of 16 channels, which Triton lays out by way of local memory.
    """
    block_r = min(max(triton.next_power_of_2(R), 16), 64)
    block_k = min(max(triton.next_power_of_2(C), 32), 64 if bits == 16 else 32)
    return GateConfig(block_k, block_r, min(max(triton.next_power_of_2(C), 32), 64), 8, 3)


def gate_candidates(default: GateConfig, _key: str) -> list[GateConfig]:
    """What the tuner tries beside the default."""
    return [
        GateConfig(block_k, default.block_r, block_c, warps, stages)
        for block_k in (64, 128, 256)
        for block_c in (32, 64, 128)
        for warps in (4, 8)
        for stages in (2, 3, 4)
    ]


@triton.jit
def load_pooled(p_pool, o_nc, m, T, NC, inv_count, STRIPS: tl.constexpr, LOOP: tl.constexpr):
    """The sum over T strips of pool [T, N, C] at ``o_nc``, times inv_count; strips in order."""
    b_sum = tl.load(p_pool + o_nc, mask=m, other=0.0)
    for t in tl.static_range(1, STRIPS):
        b_sum += tl.load(p_pool + t * NC + o_nc, mask=m & (t < T), other=0.0)
    if LOOP:
        for t in range(STRIPS, T):
            b_sum += tl.load(p_pool + t * NC + o_nc, mask=m, other=0.0)
    return b_sum * inv_count


@triton.jit
def se_gate_kernel(
    p_pool, p_w_reduce, p_b_reduce, p_w_expand, p_b_expand, p_gate,
    T, N, C, R, inv_count,
    ACT: tl.constexpr, STRIPS: tl.constexpr, LOOP: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """pool [T, N, C], w_reduce [R, C], w_expand [C, R] -> gate [N, C].

    A program owns 16 images and BLOCK_C gates, and computes its images' hidden layer for itself:
    that costs R * C weights from L2 and saves a launch, and the wait between the two.
    """
    C = multiple(C, VECTOR)
    o_n = tl.program_id(0) * IMAGES + tl.arange(0, IMAGES)
    m_n = o_n < N
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    b_logit = tl.zeros([IMAGES, BLOCK_C], tl.float32)
    for r in range(0, R, BLOCK_R):
        o_r = r + tl.arange(0, BLOCK_R)
        m_r = o_r < R
        b_u = tl.zeros([IMAGES, BLOCK_R], tl.float32)
        for k in range(0, C, BLOCK_K):
            o_k = k + tl.arange(0, BLOCK_K)
            m_k = o_k < C
            b_pooled = load_pooled(
                p_pool, o_n[:, None] * C + o_k[None, :], m_n[:, None] & m_k[None, :],
                T, N * C, inv_count, STRIPS, LOOP,
            )  # fmt: skip
            b_w = tl.load(
                p_w_reduce + o_r[:, None] * C + o_k[None, :],
                mask=m_r[:, None] & m_k[None, :], other=0.0,
            ).to(tl.float32)  # fmt: skip
            b_u = tl.dot(b_pooled, tl.trans(b_w), b_u, input_precision="tf32x3")
        b_bias = tl.load(p_b_reduce + o_r, mask=m_r, other=0.0).to(tl.float32)
        b_hidden = activate(b_u + b_bias[None, :], ACT, tl.float32)
        b_w = tl.load(
            p_w_expand + o_c[:, None] * R + o_r[None, :],
            mask=m_c[:, None] & m_r[None, :], other=0.0,
        ).to(tl.float32)  # fmt: skip
        b_logit = tl.dot(b_hidden, tl.trans(b_w), b_logit, input_precision="tf32x3")
    b_bias = tl.load(p_b_expand + o_c, mask=m_c, other=0.0).to(tl.float32)
    b_gate = 1.0 / (1.0 + tl.exp(-(b_logit + b_bias[None, :])))
    o_gate = o_n[:, None] * C + o_c[None, :]
    tl.store(p_gate + o_gate, b_gate, mask=m_n[:, None] & m_c[None, :])


# ---------------------------------------------------------------- launchers


def launch_se_pool(
    x: Tensor, affine: Tensor | None, partials: Tensor, size: tuple[int, int, int],
    x_pixels: Pixels, act: str, walk: Walk, config: Config,
) -> None:  # fmt: skip
    """x [N, C, H, W], ``size`` (C, H, W) -> partials [splits, N, C] that add up to the mean."""
    kernel: Any = se_pool_kernel[(walk.walkers, triton.cdiv(size[0], config.block_c))]
    kernel(
        x, affine, partials, *size, x_pixels.n, x_pixels.h, x_pixels.w,
        1.0 / (size[1] * size[2]), *walk,
        ACT=act, DENSE_X=x_pixels.dense, VECTOR=vector_of(size[0], x_pixels),
        BLOCK_P=config.block_p, BLOCK_C=config.block_c, num_warps=config.num_warps,
    )  # fmt: skip


def launch_se_bwd_reduce(
    g: Tensor, x: Tensor, affine: Tensor | None, norm: Tensor | None, partials: Tensor,
    size: tuple[int, int, int], x_pixels: Pixels, act: str, walk: Walk, config: Config,
) -> None:  # fmt: skip
    """g, x [N, C, H, W] -> partials [splits, 5, N, C]."""
    kernel: Any = se_bwd_reduce_kernel[(walk.walkers, triton.cdiv(size[0], config.block_c))]
    kernel(
        g, x, affine, norm, partials, *size, x_pixels.n, x_pixels.h, x_pixels.w, *walk,
        ACT=act, DENSE_X=x_pixels.dense, VECTOR=vector_of(size[0], x_pixels),
        BLOCK_P=config.block_p, BLOCK_C=config.block_c, num_warps=config.num_warps,
    )  # fmt: skip


def launch_se_gate(
    pool: Tensor, w_reduce: Tensor, b_reduce: Tensor, w_expand: Tensor, b_expand: Tensor,
    gate: Tensor, size: tuple[int, int, int, int], count: int, act: str, config: GateConfig,
) -> None:  # fmt: skip
    """pool [T, N, C], ``size`` (T, N, C, R) -> gate [N, C]."""
    T, N, C, _ = size
    kernel: Any = se_gate_kernel[(triton.cdiv(N, IMAGES.value), triton.cdiv(C, config.block_c))]
    kernel(
        pool, w_reduce, b_reduce, w_expand, b_expand, gate, *size, 1.0 / count,
        ACT=act, STRIPS=min(triton.next_power_of_2(T), _STRIPS), LOOP=T > _STRIPS,
        VECTOR=vector(C),
        BLOCK_K=config.block_k, BLOCK_R=config.block_r, BLOCK_C=config.block_c,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


for _op in ("se_pool", "se_bwd_reduce"):
    tuning.register(_op, candidates)
tuning.register("se_gate", gate_candidates)
