"""The dense k x k convolution of few channels, EfficientNet's stem: an implicit matrix product.

The operand [pixels, C*k*k] (27 taps of the stem, padded to 32) is gathered from the image as it
lies, NCHW or NHWC, and never stored. A thread gathers all taps of its pixel: what depends on the
tap is then known to the compiler, only k row masks and k column masks remain, and the lanes of a
warp read along a row of the image. Every pixel is fetched from memory once and from L1 for its
other taps; the product itself costs little (B0, bf16: 26 MFLOP for 1.1 MB of traffic an image).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl

from . import tuning
from .common import activate, fold_batch_norm

if TYPE_CHECKING:
    from torch import Tensor


class Config(NamedTuple):
    """Block shapes: output pixels, output channels, taps, and the tiles that a program walks."""

    block_m: int
    block_k: int
    block_t: int
    tiles: int
    num_warps: int


@triton.jit
def origins(o_m, P, Q, top, left, stride_n, stride_h, stride_w, STRIDE: tl.constexpr):
    """Row, column and offset (int64) in the image of each output pixel's first tap; as o_m."""
    row = o_m // Q
    n = row // P
    h = (row - n * P) * STRIDE - top
    w = (o_m - row * Q) * STRIDE - left
    offset = n.to(tl.int64) * stride_n + h.to(tl.int64) * stride_h + w.to(tl.int64) * stride_w
    return h, w, offset


@triton.jit
def split_taps(o_t, KERNEL: tl.constexpr):
    """Numbers through [C, k, k] -> (channel, row, column)."""
    c = o_t // (KERNEL * KERNEL)
    tap = o_t - c * (KERNEL * KERNEL)
    kh = tap // KERNEL
    return c, kh, tap - kh * KERNEL


@triton.jit
def load_tap(
    p_pixel, h, w, m_m, H, W, stride_c, stride_h, stride_w,
    TAP: tl.constexpr, KERNEL: tl.constexpr,
):  # fmt: skip
    """The image under one tap of the pixels at (h, w), zero outside: [BLOCK_M]."""
    c: tl.constexpr = TAP // (KERNEL * KERNEL)
    kh: tl.constexpr = TAP // KERNEL % KERNEL
    kw: tl.constexpr = TAP % KERNEL
    o_tap = (
        c * tl.cast(stride_c, tl.int64)
        + kh * tl.cast(stride_h, tl.int64)
        + kw * tl.cast(stride_w, tl.int64)
    )
    # Unsigned comparison makes one test of 0 <= row < H.
    m_h = (h + kh).to(tl.uint32) < tl.cast(H, tl.uint32)
    m_w = (w + kw).to(tl.uint32) < tl.cast(W, tl.uint32)
    return tl.load(p_pixel + o_tap, mask=m_m & m_h & m_w, other=0.0)


@triton.jit
def gather_patches(
    p_x, h, w, offset, m_m, H, W, stride_c, stride_h, stride_w,
    FIRST: tl.constexpr, TAPS: tl.constexpr, KERNEL: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """The image under the taps from ``FIRST`` of the pixels at (h, w): [BLOCK_M, BLOCK_T].

    Zero outside the image and behind the last tap. One load for each tap, joined by twos: a block
    load of [BLOCK_M, BLOCK_T] would leave to the compiler which axis goes across the threads
    (Triton 3.6 chooses the taps: twice the instructions). Joined as integers: where a product's
    operand comes straight from a reshape, Triton 3.7 for sm_100 lays out shared memory for the
    joined tensor's six axes and aborts.
    """
    TYPE: tl.constexpr = p_x.dtype.element_ty
    BITS: tl.constexpr = tl.int32 if tl.float32 == TYPE else tl.int16
    parts = ()
    for i in tl.static_range(BLOCK_T):
        if FIRST + i < TAPS:
            part = load_tap(
                p_x + offset, h, w, m_m, H, W, stride_c, stride_h, stride_w, FIRST + i, KERNEL
            ).to(BITS, bitcast=True)
        else:
            part = tl.zeros(h.shape, BITS)
        # Triton knows no starred expression, and mypy no tuple that grows.
        parts = parts + (part,)
    for level in tl.static_range(1, 8):
        if BLOCK_T >> level > 0:
            pairs = ()
            for i in tl.static_range(BLOCK_T >> level):
                pair = tl.join(parts[i], parts[i + (BLOCK_T >> level)])
                pairs = pairs + (pair,)
            parts = pairs
    joined = tl.reshape(parts[0], [h.shape[0], BLOCK_T])  # type: ignore[misc]
    return joined.to(TYPE, bitcast=True)


@triton.jit
def load_weight(
    p_w, o_t, o_k, K, stride_k, stride_c, stride_h, stride_w,
    TAPS: tl.constexpr, KERNEL: tl.constexpr,
):  # fmt: skip
    """[K, C, k, k] of any strides -> [BLOCK_T, BLOCK_K]."""
    c, kh, kw = split_taps(o_t, KERNEL)
    o_tap = c * stride_c + kh * stride_h + kw * stride_w
    m = (o_t < TAPS)[:, None] & (o_k < K)[None, :]
    return tl.load(p_w + o_tap[:, None] + o_k[None, :] * stride_k, mask=m, other=0.0)


@triton.jit
def conv2d_kernel(
    p_x,  # [N, C, H, W], any strides
    p_w,  # [K, C, k, k], any strides
    p_bn_weight, p_bn_bias, p_bn_mean, p_bn_var,  # [K] or None each; mean None: no batch norm
    p_y,  # [N, P, Q, K]
    p_moments,  # [programs, 2, K] fp32 (mean, M2) or None
    p_counts,  # [programs] fp32 or None
    M, K, H, W, P, Q, top, left, eps, tiles,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    w_stride_k, w_stride_c, w_stride_h, w_stride_w,
    TAPS: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, ACT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """y = act(bn(conv(x, w))); M = N*P*Q pixels, TAPS = C*k*k; moments are of the raw sums."""
    i_m = tl.program_id(0)
    o_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    m_k = o_k < K
    o_t = tl.arange(0, BLOCK_T)
    if TAPS <= BLOCK_T:
        b_w = load_weight(
            p_w, o_t, o_k, K, w_stride_k, w_stride_c, w_stride_h, w_stride_w, TAPS, KERNEL
        )  # [BLOCK_T, BLOCK_K]
    if p_bn_mean is not None:
        b_scale, b_shift = fold_batch_norm(
            p_bn_weight, p_bn_bias, p_bn_mean, p_bn_var, eps, o_k, m_k
        )
    b_mean = tl.zeros([BLOCK_K], tl.float32)
    b_m2 = tl.zeros([BLOCK_K], tl.float32)
    count = 0.0
    for i in range(tiles):
        o_m = (i_m * tiles + i) * BLOCK_M + tl.arange(0, BLOCK_M)
        m_m = o_m < M
        h, w, offset = origins(
            o_m, P, Q, top, left, x_stride_n, x_stride_h, x_stride_w, STRIDE
        )  # [BLOCK_M]
        b_y = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
        for first in tl.static_range(0, TAPS, BLOCK_T):
            b_x = gather_patches(
                p_x, h, w, offset, m_m, H, W, x_stride_c, x_stride_h, x_stride_w,
                first, TAPS, KERNEL, BLOCK_T,
            )  # fmt: skip
            if TAPS > BLOCK_T:
                b_w = load_weight(
                    p_w, first + o_t, o_k, K, w_stride_k, w_stride_c, w_stride_h, w_stride_w,
                    TAPS, KERNEL,
                )  # fmt: skip
            b_y = tl.dot(b_x, b_w, b_y, input_precision=PRECISION)
        if p_moments is not None:
            # This tile's moments, merged into those so far by Chan's formula; rows behind the last
            # pixel are zero in b_y and count for nothing.
            tile = tl.minimum(tl.maximum(M - (i_m * tiles + i) * BLOCK_M, 0), BLOCK_M).to(
                tl.float32
            )
            b_tile_mean = tl.sum(b_y, 0) / tl.maximum(tile, 1.0)
            b_away = tl.where(m_m[:, None], b_y - b_tile_mean[None, :], 0.0)
            b_delta = b_tile_mean - b_mean
            share = tile / tl.maximum(count + tile, 1.0)
            b_mean += b_delta * share
            b_m2 += tl.sum(b_away * b_away, 0) + b_delta * b_delta * (count * share)
            count += tile
        if p_bn_mean is not None:
            b_y = b_y * b_scale[None, :] + b_shift[None, :]
        b_y = activate(b_y, ACT, p_x.dtype.element_ty)
        o_y = o_m.to(tl.int64)[:, None] * K + o_k[None, :]
        tl.store(p_y + o_y, b_y.to(p_y.dtype.element_ty), mask=m_m[:, None] & m_k[None, :])
    if p_moments is not None:
        p_own = p_moments + i_m.to(tl.int64) * 2 * K + o_k
        tl.store(p_own, b_mean, mask=m_k)
        tl.store(p_own + K, b_m2, mask=m_k)
        tl.store(p_counts + i_m, count)


def programs(pixels: int, config: Config) -> int:
    """How many programs share the pixels: the length of the partial results."""
    return triton.cdiv(pixels, config.block_m * config.tiles)


def default_config(pixels: int, taps: int, channels: int, item_size: int, stats: bool) -> Config:
    """The heuristic.

    128 pixels to 4 warps are one pixel to a thread, with its 32 taps the thread's own. A program
    walks up to 8 tiles, which share the set-up (weights, batch norm), while 8 programs are left for
    each of 132 SMs; with statistics as many as keep the programs at 1024 or below. fp32 products
    hold their operands in registers: 64 channels of them would spill.
    """
    block_m = 128
    block_k = min(max(triton.next_power_of_2(channels), 16), 128 // item_size)
    block_t = min(max(triton.next_power_of_2(taps), 16), 32)
    tiles = min(max(pixels // (block_m * 8 * 132), 1), 8)
    if stats:
        tiles = max(tiles, triton.cdiv(pixels, 1024 * block_m))
    return Config(block_m, block_k, block_t, tiles, 4)


def candidates(default: Config, key: str) -> list[Config]:
    """Tiles of one pixel to a thread and of two, and more of them to a program."""
    return [
        default._replace(block_m=block_m, num_warps=num_warps, tiles=tiles)
        for block_m, num_warps in ((64, 2), (128, 4), (256, 8), (256, 4))
        for tiles in sorted({default.tiles, 2 * default.tiles, 4 * default.tiles})
    ]


def launch_conv2d(
    x: Tensor,
    weight: Tensor,
    bn: list[Tensor | None],
    y: Tensor,
    moments: Tensor | None,
    counts: Tensor | None,
    stride: int,
    top: int,
    left: int,
    eps: float,
    act: str,
    precision: str,
    config: Config,
) -> None:
    """x [N,C,H,W], weight [K,C,k,k] -> y [N,K,P,Q] dense channels_last.

    ``bn`` is empty or (weight?, bias?, mean, variance), [K] each, applied before ``act``.
    ``moments`` [programs, 2, K] and ``counts`` [programs] in fp32 get every program's (mean, M2)
    of the raw sums and its number of pixels.
    """
    n, k, p, q = y.shape
    pixels, taps = n * p * q, weight.shape[1] * weight.shape[2] * weight.shape[3]
    bn_weight, bn_bias, bn_mean, bn_var = bn or (None,) * 4
    kernel: Any = conv2d_kernel[(programs(pixels, config), triton.cdiv(k, config.block_k))]
    kernel(
        x, weight, bn_weight, bn_bias, bn_mean, bn_var, y, moments, counts,
        pixels, k, x.shape[2], x.shape[3], p, q, top, left, eps, config.tiles,
        *x.stride(), *weight.stride(),
        TAPS=taps, KERNEL=weight.shape[2], STRIDE=stride, ACT=act, PRECISION=precision,
        BLOCK_M=config.block_m, BLOCK_K=config.block_k,
        BLOCK_T=config.block_t, num_warps=config.num_warps, num_stages=1,
    )  # fmt: skip


tuning.register("conv2d", candidates)
