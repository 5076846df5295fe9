"""1x1 convolution as a matrix product: y[M, K] = epilogue(prologue(x)[M, C] . w[K, C]^T).

M rows are pixels, R of them in each of G groups: a group is an image where a gate [N, C] or a pool
goes with it, else the whole batch is one. A program owns BLOCK_K outputs and walks some tiles of
BLOCK_M rows of one group, so that its statistics leave it once. Programs of the same rows are
neighbours: the first reads them from memory, the others from L2.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from . import tuning
from .common import (
    activate,
    fold_batch_norm,
    merge_moments,
    multiple,
    operand,
    pixel_rows,
    vector,
)

#: Programs that a launch aims at: eight for each of an H100's 132 SMs.
PROGRAMS = 1056


class Config(NamedTuple):
    """Block shapes of the product: rows, outputs, inputs."""

    block_m: int
    block_k: int
    block_c: int
    num_warps: int
    num_stages: int


def shape_class(rows: int, channels: int, outputs: int, dtype: str) -> str:
    """The key of a shape in the tuning table."""
    sizes = (("r", rows), ("c", channels), ("k", outputs))
    return " ".join(f"{name}{triton.next_power_of_2(size)}" for name, size in sizes) + f" {dtype}"


def default_config(rows: int, channels: int, outputs: int, bits: int) -> Config:
    """Blocks for R = ``rows`` a group; ``bits`` of the stored type.

    64 x 128 or 128 x 64 outputs by 8 warps: 32 accumulators a thread. On sm_90 that takes 127 to
    237 registers by prologue and epilogue; 128 x 128 spills. fp32 tiles are a quarter of the
    others: their operands are twice as wide, and their products run on the CUDA cores or as TF32.
    """
    wide = bits == 16
    block_k = min(max(triton.next_power_of_2(outputs), 16), 128 if wide else 64)
    tall = min(128, 8192 // block_k) if wide else 32
    block_m = min(max(triton.next_power_of_2(rows), 16), tall)
    block_c = min(max(triton.next_power_of_2(channels), 16), 64 if wide else 32)
    return Config(block_m, block_k, block_c, 8 if block_m * block_k >= 8192 else 4, 3)


def candidates(default: Config, key: str) -> list[Config]:
    """What is worth measuring: tiles up to twice the default's, with more or fewer stages."""
    found = []
    for m in (64, 128, 256):
        for k in {32, 64, 128, 256, default.block_k}:
            for c in {32, 64, default.block_c}:
                if m * k <= 32768 and k <= 2 * default.block_k and c <= 2 * default.block_c:
                    found += [
                        Config(m, k, c, warps, stages)
                        for warps in ((4,) if m * k <= 4096 else (4, 8))
                        for stages in (2, 3, 4)
                    ]
    return found


for _op in ("pointwise", "pointwise_pool"):
    tuning.register(_op, candidates)


def parts(groups: int, rows: int, outputs: int, config: Config) -> int:
    """Programs that share a group's rows."""
    columns = groups * triton.cdiv(outputs, config.block_k)
    return max(1, min(triton.cdiv(rows, config.block_m), PROGRAMS // max(columns, 1)))


@triton.jit
def product_tile(
    p_rows, m_r, p_w, o_k, m_k, p_affine, p_gate, C,
    IN_ACT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The fp32 accumulator [BLOCK_M, BLOCK_K] of the pixels at ``p_rows``; p_gate: the group's."""
    TYPE: tl.constexpr = p_w.dtype.element_ty
    b_acc = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for i_c in range(0, C, BLOCK_C):
        o_c = i_c + tl.arange(0, BLOCK_C)
        m_c = o_c < C
        b_x = operand(p_rows, m_r, p_affine, p_gate, o_c, m_c, C, IN_ACT, TYPE)
        m_w = m_c[:, None] & m_k[None, :]
        b_w = tl.load(p_w + o_k[None, :] * C + o_c[:, None], mask=m_w, other=0.0)
        b_acc = tl.dot(b_x, b_w, b_acc, input_precision=PRECISION)
    return b_acc


@triton.jit
def pointwise_fwd_kernel(
    p_x, p_w, p_affine, p_gate, p_bn_weight, p_bn_bias, p_bn_mean, p_bn_var, p_residual,
    p_y, p_partials, p_counts,
    R, K, C, PARTS, H, W, x_n, x_h, x_w, r_n, r_h, r_w, eps,
    IN_ACT: tl.constexpr, OUT_ACT: tl.constexpr, X_DENSE: tl.constexpr, R_DENSE: tl.constexpr,
    VECTOR_C: tl.constexpr, VECTOR_K: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x [M, C], w [K, C], gate [G, C] -> y [M, K]; partials [G * PARTS, 2, K], counts [G * PARTS].

    p_partials is None without statistics, p_bn_mean without an epilogue, p_residual without one.
    VECTOR_C divides C and x's strides, VECTOR_K divides K and the residual's.
    """
    C, K = multiple(C, VECTOR_C), multiple(K, VECTOR_K)
    x_w, r_w = multiple(x_w, VECTOR_C), multiple(r_w, VECTOR_K)
    columns = tl.cdiv(K, BLOCK_K)
    i_k = tl.program_id(0) % columns
    i_part = tl.program_id(0) // columns
    i_group = i_part // PARTS
    tiles = tl.cdiv(R, BLOCK_M)
    per_part = tl.cdiv(tiles, PARTS)
    first = (i_part % PARTS) * per_part
    o_k = i_k * BLOCK_K + tl.arange(0, BLOCK_K)
    m_k = o_k < K
    if p_gate is not None:
        p_gate += tl.cast(i_group, tl.int64) * C
    if p_bn_mean is not None:
        b_scale, b_shift = fold_batch_norm(
            p_bn_weight, p_bn_bias, p_bn_mean, p_bn_var, eps, o_k, m_k
        )
    count = 0.0
    b_mean = tl.zeros((BLOCK_K,), tl.float32)
    b_m2 = tl.zeros((BLOCK_K,), tl.float32)
    for i_tile in range(first, tl.minimum(first + per_part, tiles)):
        o_r = i_tile * BLOCK_M + tl.arange(0, BLOCK_M)
        m_r = o_r < R
        i_m = tl.cast(i_group, tl.int64) * R + i_tile * BLOCK_M
        p_rows = pixel_rows(p_x, i_m, H, W, x_n, x_h, x_w, X_DENSE, BLOCK_M)
        b_y = product_tile(
            p_rows, m_r, p_w, o_k, m_k, p_affine, p_gate, C, IN_ACT, PRECISION,
            BLOCK_M, BLOCK_K, BLOCK_C,
        )  # fmt: skip
        if p_partials is not None:
            rows = tl.minimum(R - i_tile * BLOCK_M, BLOCK_M).to(tl.float32)
            b_tile_mean = tl.sum(tl.where(m_r[:, None], b_y, 0.0), 0) / rows
            b_deviation = tl.where(m_r[:, None], b_y - b_tile_mean[None, :], 0.0)
            b_tile_m2 = tl.sum(b_deviation * b_deviation, 0)
            count, b_mean, b_m2 = merge_moments(count, b_mean, b_m2, rows, b_tile_mean, b_tile_m2)
        if p_bn_mean is not None:
            b_y = b_y * b_scale[None, :] + b_shift[None, :]
        b_y = activate(b_y, OUT_ACT, p_x.dtype.element_ty)
        m_y = m_r[:, None] & m_k[None, :]
        if p_residual is not None:
            p_rows = pixel_rows(p_residual, i_m, H, W, r_n, r_h, r_w, R_DENSE, BLOCK_M)
            b_y += tl.load(p_rows[:, None] + o_k[None, :], mask=m_y, other=0.0)
        p_rows = pixel_rows(p_y, i_m, H, W, 0, 0, K, True, BLOCK_M)
        tl.store(p_rows[:, None] + o_k[None, :], b_y.to(p_y.dtype.element_ty), mask=m_y)
    if p_partials is not None:
        p_partials += i_part.to(tl.int64) * 2 * K
        tl.store(p_partials + o_k, b_mean, mask=m_k)
        tl.store(p_partials + K + o_k, b_m2, mask=m_k)
        tl.store(p_counts + i_part, count)


@triton.jit
def pointwise_pool_kernel(
    p_x, p_w, p_bn_weight, p_bn_bias, p_bn_mean, p_bn_var, p_pooled,
    R, K, C, H, W, x_n, x_h, x_w, eps,
    OUT_ACT: tl.constexpr, X_DENSE: tl.constexpr, VECTOR_C: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x [N, R, C], w [K, C] -> pooled [N, K], the mean over R; a program walks one image."""
    C, x_w = multiple(C, VECTOR_C), multiple(x_w, VECTOR_C)
    columns = tl.cdiv(K, BLOCK_K)
    i_k = tl.program_id(0) % columns
    i_n = (tl.program_id(0) // columns).to(tl.int64)
    o_k = i_k * BLOCK_K + tl.arange(0, BLOCK_K)
    m_k = o_k < K
    b_scale, b_shift = fold_batch_norm(p_bn_weight, p_bn_bias, p_bn_mean, p_bn_var, eps, o_k, m_k)
    b_sum = tl.zeros((BLOCK_K,), tl.float32)
    for i_r in range(0, R, BLOCK_M):
        o_r = i_r + tl.arange(0, BLOCK_M)
        m_r = o_r < R
        b_y = product_tile(
            pixel_rows(p_x, i_n * R + i_r, H, W, x_n, x_h, x_w, X_DENSE, BLOCK_M), m_r, p_w, o_k,
            m_k, None, None, C, "identity", PRECISION, BLOCK_M, BLOCK_K, BLOCK_C,
        )  # fmt: skip
        b_y = activate(b_y * b_scale[None, :] + b_shift[None, :], OUT_ACT, p_x.dtype.element_ty)
        b_sum += tl.sum(tl.where(m_r[:, None], b_y, 0.0), 0)
    tl.store(p_pooled + i_n * K + o_k, b_sum / R, mask=m_k)


def launch_pointwise_fwd(
    x, weight, affine, gate, bn, eps, residual, y, partials, counts,
    groups, rows, n_parts, size, x_pixels, residual_pixels, in_act, out_act, precision, config,
):  # fmt: skip
    """bn: () or (weight, bias, mean, var); size: (H, W); *_pixels: strides (n, h, w) and dense,

    of the result where there is no residual.
    """
    k, c = weight.shape[:2]
    grid = (groups * n_parts * triton.cdiv(k, config.block_k),)
    pointwise_fwd_kernel[grid](
        x, weight, affine, gate, *(bn or (None,) * 4), residual, y, partials, counts,
        rows, k, c, n_parts, *size, *x_pixels[:3], *residual_pixels[:3], eps,
        IN_ACT=in_act, OUT_ACT=out_act, X_DENSE=x_pixels[3], R_DENSE=residual_pixels[3],
        VECTOR_C=vector(c, *x_pixels[:3]), VECTOR_K=vector(k, *residual_pixels[:3]),
        PRECISION=precision,
        BLOCK_M=config.block_m, BLOCK_K=config.block_k, BLOCK_C=config.block_c,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


def launch_pointwise_pool(x, weight, bn, eps, pooled, size, x_pixels, out_act, precision, config):
    """x [N, C, H, W] -> pooled [N, K]; bn: (weight, bias, mean, var)."""
    k, c = weight.shape[:2]
    grid = (pooled.shape[0] * triton.cdiv(k, config.block_k),)
    pointwise_pool_kernel[grid](
        x, weight, *bn, pooled, size[0] * size[1], k, c, *size, *x_pixels[:3], eps,
        OUT_ACT=out_act, X_DENSE=x_pixels[3], VECTOR_C=vector(c, *x_pixels[:3]),
        PRECISION=precision,
        BLOCK_M=config.block_m, BLOCK_K=config.block_k, BLOCK_C=config.block_c,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
