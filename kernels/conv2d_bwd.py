"""Backward of the dense k x k convolution: the weight's gradient, and the image's where asked for.

The gradient of the raw output is rebuilt on load from ``g`` and ``y`` (see reference.py). The
weight's gradient gathers patches as the forward pass does and keeps [taps, K] in registers over all
tiles of a program. The image's gradient, which training does not need, gathers: each pixel visits
the taps and takes those whose output exists, so that nothing is added atomically.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from . import tuning
from .common import activate_and_slope
from .conv2d import Config, candidates, gather_patches, origins, programs, split_taps

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["default_config", "launch_conv2d_dw", "launch_conv2d_dx", "programs"]

#: Blocks of the image's gradient, which is too rare to tune: pixels, outputs, channels.
DX_BLOCKS = (64, 16, 16)


@triton.jit
def load_output_grad(
    p_g, p_y, p_coef, p_affine, o_m, m_m, o_k, K, ACT: tl.constexpr
):  # fmt: skip
    """dy = a h + b (y - mean) + c with h = g act'(affine(y)), zero outside: [BLOCK_M, BLOCK_K].

    p_g, p_y [M, K]; p_coef [4, K] and p_affine [2, K] (or None) in fp32.
    """
    m_k = o_k < K
    m = m_m[:, None] & m_k[None, :]
    o_y = o_m.to(tl.int64)[:, None] * K + o_k[None, :]
    b_h = tl.load(p_g + o_y, mask=m, other=0.0).to(tl.float32)
    b_y = tl.load(p_y + o_y, mask=m, other=0.0).to(tl.float32)
    if ACT != "identity":
        b_u = b_y
        if p_affine is not None:
            b_scale = tl.load(p_affine + o_k, mask=m_k, other=0.0)
            b_shift = tl.load(p_affine + K + o_k, mask=m_k, other=0.0)
            b_u = b_y * b_scale[None, :] + b_shift[None, :]
        _, b_slope = activate_and_slope(b_u, ACT, p_y.dtype.element_ty)
        b_h = b_h * b_slope
    b_a = tl.load(p_coef + o_k, mask=m_k, other=0.0)
    b_b = tl.load(p_coef + K + o_k, mask=m_k, other=0.0)
    b_mean = tl.load(p_coef + 2 * K + o_k, mask=m_k, other=0.0)
    b_c = tl.load(p_coef + 3 * K + o_k, mask=m_k, other=0.0)
    b_dy = b_a[None, :] * b_h + b_b[None, :] * (b_y - b_mean[None, :]) + b_c[None, :]
    return tl.where(m, b_dy, 0.0)


@triton.jit
def conv2d_dw_kernel(
    p_g, p_y,  # [N, P, Q, K]
    p_x,  # [N, C, H, W], any strides
    p_coef,  # [4, K]
    p_affine,  # [2, K] or None
    p_partial,  # [programs, K, TAPS] fp32
    M, K, H, W, P, Q, top, left, tiles,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    FIRST: tl.constexpr, TAPS: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    ACT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """partial[i, k, t] = sum over program i's pixels of dy[m, k] x[m under tap t]."""
    i_m = tl.program_id(0)
    o_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    b_dw = tl.zeros([BLOCK_T, BLOCK_K], tl.float32)
    for i in range(tiles):
        o_m = (i_m * tiles + i) * BLOCK_M + tl.arange(0, BLOCK_M)
        m_m = o_m < M
        h, w, offset = origins(
            o_m, P, Q, top, left, x_stride_n, x_stride_h, x_stride_w, STRIDE
        )  # [BLOCK_M]
        b_x = gather_patches(
            p_x, h, w, offset, m_m, H, W, x_stride_c, x_stride_h, x_stride_w,
            FIRST, TAPS, KERNEL, BLOCK_T,
        )  # [BLOCK_M, BLOCK_T]  # fmt: skip
        b_dy = load_output_grad(p_g, p_y, p_coef, p_affine, o_m, m_m, o_k, K, ACT)
        b_dw = tl.dot(tl.trans(b_x), b_dy.to(b_x.dtype), b_dw, input_precision=PRECISION)
    o_t = FIRST + tl.arange(0, BLOCK_T)
    o_dw = i_m.to(tl.int64) * K * TAPS + o_k[None, :] * TAPS + o_t[:, None]
    tl.store(p_partial + o_dw, b_dw, mask=(o_t < TAPS)[:, None] & (o_k < K)[None, :])


@triton.jit
def conv2d_dx_kernel(
    p_g, p_y,  # [N, P, Q, K]
    p_w,  # [K, C, k, k], any strides
    p_coef,  # [4, K]
    p_affine,  # [2, K] or None
    p_dx,  # [N, H, W, C]
    pixels, C, K, H, W, P, Q, top, left,
    w_stride_k, w_stride_c, w_stride_h, w_stride_w,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, ACT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx[n, h, w, c] = sum over k and the taps of dy[n, (h+top-kh)/S, (w+left-kw)/S, k] w."""
    o_pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    row = o_pixel // W
    n = row // H
    h = row - n * H + top
    w = o_pixel - row * W + left
    b_dx = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for tap in range(KERNEL * KERNEL):
        _, kh, kw = split_taps(tap, KERNEL)
        p = (h - kh) // STRIDE
        q = (w - kw) // STRIDE
        m_m = (h >= kh) & (w >= kw) & (p < P) & (q < Q) & (o_pixel < pixels)
        m_m &= (p * STRIDE == h - kh) & (q * STRIDE == w - kw)
        o_m = (n * P + p) * Q + q
        p_tap = p_w + kh * w_stride_h + kw * w_stride_w
        for k in range(0, K, BLOCK_K):
            o_k = k + tl.arange(0, BLOCK_K)
            b_dy = load_output_grad(p_g, p_y, p_coef, p_affine, o_m, m_m, o_k, K, ACT)
            o_w = o_k[:, None] * w_stride_k + o_c[None, :] * w_stride_c
            b_w = tl.load(p_tap + o_w, mask=(o_k < K)[:, None] & m_c[None, :], other=0.0)
            b_dx = tl.dot(b_dy.to(b_w.dtype), b_w, b_dx, input_precision=PRECISION)
    o_dx = o_pixel.to(tl.int64)[:, None] * C + o_c[None, :]
    m = (o_pixel < pixels)[:, None] & m_c[None, :]
    tl.store(p_dx + o_dx, b_dx.to(p_dx.dtype.element_ty), mask=m)


def default_config(pixels: int, taps: int, channels: int, item_size: int) -> Config:
    """The heuristic for the weight's gradient: at most 1024 programs, 128 pixels to a tile."""
    block_m = 128
    block_k = min(max(triton.next_power_of_2(channels), 16), 128 // item_size)
    block_t = min(max(triton.next_power_of_2(taps), 16), 32)
    return Config(block_m, block_k, block_t, max(triton.cdiv(pixels, 1024 * block_m), 1), 4)


def launch_conv2d_dw(
    g: Tensor,
    y: Tensor,
    x: Tensor,
    coef: Tensor,
    affine: Tensor | None,
    partials: Tensor,
    kernel_size: int,
    stride: int,
    top: int,
    left: int,
    act: str,
    precision: str,
    config: Config,
) -> None:
    """g, y [N,K,P,Q] dense channels_last, x [N,C,H,W] -> partials [programs, K, C*k*k] fp32.

    One launch for the stem's 27 taps; each ``block_t`` taps more are another.
    """
    n, k, p, q = y.shape
    _, c, h, w = x.shape
    pixels, taps = n * p * q, c * kernel_size * kernel_size
    kernel: Any = conv2d_dw_kernel[(programs(pixels, config), triton.cdiv(k, config.block_k))]
    for first in range(0, taps, config.block_t):
        kernel(
            g, y, x, coef, affine, partials,
            pixels, k, h, w, p, q, top, left, config.tiles, *x.stride(),
            FIRST=first, TAPS=taps, KERNEL=kernel_size, STRIDE=stride, ACT=act,
            PRECISION=precision,
            BLOCK_M=config.block_m, BLOCK_K=config.block_k, BLOCK_T=config.block_t,
            num_warps=config.num_warps, num_stages=1,
        )  # fmt: skip


def launch_conv2d_dx(
    g: Tensor,
    y: Tensor,
    weight: Tensor,
    coef: Tensor,
    affine: Tensor | None,
    dx: Tensor,
    stride: int,
    top: int,
    left: int,
    act: str,
    precision: str,
) -> None:
    """g, y [N,K,P,Q] and weight [K,C,k,k] -> dx [N,C,H,W]; g, y, dx dense channels_last."""
    n, c, h, w = dx.shape
    _, k, p, q = y.shape
    block_m, block_k, block_c = DX_BLOCKS
    kernel: Any = conv2d_dx_kernel[(triton.cdiv(n * h * w, block_m), triton.cdiv(c, block_c))]
    kernel(
        g, y, weight, coef, affine, dx,
        n * h * w, c, k, h, w, p, q, top, left, *weight.stride(),
        KERNEL=weight.shape[2], STRIDE=stride, ACT=act, PRECISION=precision,
        BLOCK_M=block_m, BLOCK_K=block_k, BLOCK_C=block_c, num_warps=4, num_stages=1,
    )  # fmt: skip


tuning.register("conv2d_bwd", candidates)
