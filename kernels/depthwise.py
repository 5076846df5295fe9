"""Depthwise convolution, forward: one program owns strips of four output rows.

A thread computes a patch of 4 x 2 outputs for a few channels. It walks the patch's input one column
at a time: the ``4 + ...`` pixels of a column are loaded, converted and activated once and then meet
every tap that wants them. For k 5, stride 1 that is 48 loads and SiLUs for 8 outputs instead of 200
(k 3: 24 instead of 72), and each tap of the weight is loaded once for each of the patch's two
columns. A patch's rows are the strip's, so that the sums for squeeze-and-excitation need no second
pass and no atomics: a program finishes its strip. The moments for batch norm are kept by thread, as
(count, mean, M2) merged patch by patch by Chan's formula, and meet once at the program's end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl

from . import tuning
from .common import activate, fold_batch_norm, multiple, vector

if TYPE_CHECKING:
    from torch import Tensor

#: Output rows of a strip, and so of a patch; the pool sums are kept by strip.
STRIP_ROWS = 4
#: (k, stride) with unrolled taps; the others share one kernel that loops over them.
UNROLLED = ((3, 1), (3, 2), (5, 1), (5, 2))
#: Programs along the pixels when each leaves a row of partial moments.
MAX_PARTIALS = 1024


class Config(NamedTuple):
    """A tile: ``block_w`` patches of ``columns`` columns side by side, by ``block_c`` channels."""

    columns: int
    block_w: int
    block_c: int
    num_warps: int


@triton.jit
def load_map(p, mask, b_scale, b_shift, HAS_AFFINE: tl.constexpr, ACT: tl.constexpr):
    """act(scale * x + shift) in fp32, and 0 where ``mask`` is not: a convolution pads with 0."""
    b = tl.load(p, mask=mask, other=0.0).to(tl.float32)
    if HAS_AFFINE:
        b = activate(b * b_scale + b_shift, ACT, p.dtype.element_ty)
        b = tl.where(mask, b, 0.0)
    elif ACT != "identity":
        b = activate(b, ACT, p.dtype.element_ty)
    return b


@triton.jit
def convolve_unrolled(
    p_x, p_w, h, first_w, o_w, o_c, m_c, H, W, C, stride_h, stride_w, b_scale, b_shift,
    HAS_AFFINE: tl.constexpr, ACT: tl.constexpr, K: tl.constexpr, S: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The patches whose inputs begin at row ``h`` and columns ``o_w``.

    Returns 8 accumulators [BLOCK_W, BLOCK_C], row after row of the patch. Each column stands in a
    branch of its own, taken unless the whole tile has left the map: within one block of code LLVM
    pairs up the products of distant columns and puts them off, and k 5 spills by the thousand.
    """
    accs = (tl.zeros([o_w.shape[0], o_c.shape[0]], tl.float32),) * (ROWS * COLUMNS)
    for s in tl.static_range(K + (COLUMNS - 1) * S):
        if first_w + s < W:
            w = o_w + s
            m_w = (w >= 0) & (w < W)
            p_pixel = p_x + (h.to(tl.int64) * stride_h + w.to(tl.int64) * stride_w)[:, None]
            p_pixel += o_c[None, :]
            column = ()
            for r in tl.static_range(K + (ROWS - 1) * S):
                m_h = (h + r >= 0) & (h + r < H)
                mask = (m_w & m_h)[:, None] & m_c[None, :]
                if r > 0:
                    p_pixel += stride_h
                column = column + (load_map(p_pixel, mask, b_scale, b_shift, HAS_AFFINE, ACT),)
            for j in tl.static_range(COLUMNS):
                if s - j * S >= 0 and s - j * S < K:
                    p_tap = p_w + (s - j * S) * C + o_c
                    for a in tl.static_range(K):
                        b_w = tl.load(p_tap, mask=m_c, other=0.0).to(tl.float32)[None, :]
                        p_tap += K * C
                        merged = ()
                        for t in tl.static_range(ROWS * COLUMNS):
                            if t % COLUMNS == j:
                                b = accs[t] + column[t // COLUMNS * S + a] * b_w
                                merged = merged + (b,)
                            else:
                                merged = merged + (accs[t],)
                        accs = merged
    return accs


@triton.jit
def convolve_looped(
    p_x, p_w, h, o_w, o_c, m_c, H, W, C, stride_h, stride_w, b_scale, b_shift, k, stride,
    HAS_AFFINE: tl.constexpr, ACT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """As :func:`convolve_unrolled`, tap by tap, for any kernel size and stride."""
    accs = (tl.zeros([o_w.shape[0], o_c.shape[0]], tl.float32),) * (ROWS * COLUMNS)
    for tap in range(k * k):
        a = tap // k
        b = tap - a * k
        b_w = tl.load(p_w + tap * C + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
        merged = ()
        for t in tl.static_range(ROWS * COLUMNS):
            row = h + t // COLUMNS * stride + a
            w = o_w + t % COLUMNS * stride + b
            m_w = (w >= 0) & (w < W) & (row >= 0) & (row < H)
            mask = m_w[:, None] & m_c[None, :]
            o_x = row.to(tl.int64) * stride_h + w.to(tl.int64) * stride_w
            p_pixel = p_x + o_x[:, None] + o_c[None, :]
            b_x = load_map(p_pixel, mask, b_scale, b_shift, HAS_AFFINE, ACT)
            merged = merged + (accs[t] + b_x * b_w,)
        accs = merged
    return accs


@triton.jit
def depthwise_fwd_kernel(
    p_x,  # [N, H, W, C], channels innermost, any other strides
    p_w,  # [k*k, C]
    p_in_affine,  # [2, C] fp32 or None
    p_bn_weight, p_bn_bias, p_bn_mean, p_bn_var,  # [C] or None each; mean None: no batch norm
    p_y,  # [N, P, Q, C]
    p_pool,  # [strips of an image, N, C] fp32 or None: sums over the strip
    p_moments,  # [programs along the strips, 2, C] fp32 (mean, M2) or None
    p_counts,  # [programs along the strips] fp32 or None
    N, C, H, W, P, Q, top, left, eps, stride_n, stride_h, stride_w, k, stride, strips_per_program,
    tap_step,  # 0
    IN_ACT: tl.constexpr, OUT_ACT: tl.constexpr, K: tl.constexpr, S: tl.constexpr,
    VECTOR: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y = act(bn(conv(act(affine(x)), w))); K = 0: ``k`` and ``stride`` at run time.

    ``tap_step``, from one tile's taps to the next's, is 0, but the compiler must not know: it would
    find the k*k addresses before the loop and keep them, 50 registers at k 5, through it.
    """
    C = multiple(C, VECTOR)
    stride_n = multiple(stride_n, VECTOR)
    stride_h = multiple(stride_h, VECTOR)
    stride_w = multiple(stride_w, VECTOR)
    TYPE: tl.constexpr = p_x.dtype.element_ty
    HAS_AFFINE: tl.constexpr = p_in_affine is not None
    c_blocks = tl.cdiv(C, BLOCK_C)
    i_strip = tl.program_id(0) // c_blocks
    i_c = tl.program_id(0) - i_strip * c_blocks
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    b_in_scale = 0.0
    b_in_shift = 0.0
    if HAS_AFFINE:
        b_in_scale = tl.load(p_in_affine + o_c, mask=m_c, other=0.0)[None, :]
        b_in_shift = tl.load(p_in_affine + C + o_c, mask=m_c, other=0.0)[None, :]
    if p_bn_mean is not None:
        b_scale, b_shift = fold_batch_norm(
            p_bn_weight, p_bn_bias, p_bn_mean, p_bn_var, eps, o_c, m_c
        )
        b_scale = b_scale[None, :]
        b_shift = b_shift[None, :]
    if p_moments is not None:
        b_count = tl.zeros([BLOCK_W, 1], tl.float32)
        b_mean = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
        b_m2 = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)

    strips = tl.cdiv(P, ROWS)
    first = i_strip * strips_per_program
    for i in range(first, tl.minimum(first + strips_per_program, N * strips)):
        n = i // strips
        p = (i - n * strips) * ROWS
        p_image = p_x + n.to(tl.int64) * stride_n
        p_strip = p_y + (n.to(tl.int64) * P + p) * Q * C
        if p_pool is not None:
            b_sum = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
        for q in range(0, Q, BLOCK_W * COLUMNS):
            o_q = q + COLUMNS * tl.arange(0, BLOCK_W)
            if K == 0:
                accs = convolve_looped(
                    p_image, p_w, p * stride - top, o_q * stride - left, o_c, m_c, H, W, C,
                    stride_h, stride_w, b_in_scale, b_in_shift, k, stride, HAS_AFFINE, IN_ACT,
                    ROWS, COLUMNS,
                )  # fmt: skip
            else:
                accs = convolve_unrolled(
                    p_image, p_w + q * tap_step, p * S - top, q * S - left, o_q * S - left, o_c,
                    m_c, H, W, C, stride_h, stride_w, b_in_scale, b_in_shift, HAS_AFFINE, IN_ACT,
                    K, S, ROWS, COLUMNS,
                )  # fmt: skip
            if p_moments is not None:
                columns = tl.minimum(tl.maximum(Q - o_q, 0), COLUMNS)
                b_patch = (columns * tl.minimum(P - p, ROWS)).to(tl.float32)[:, None]
                b_total = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
                for t in tl.static_range(ROWS * COLUMNS):
                    m_out = (p + t // COLUMNS < P) & (o_q + t % COLUMNS < Q)
                    b_total += tl.where(m_out[:, None], accs[t], 0.0)
                b_patch_mean = b_total * (1.0 / tl.maximum(b_patch, 1.0))
                for t in tl.static_range(ROWS * COLUMNS):
                    m_out = (p + t // COLUMNS < P) & (o_q + t % COLUMNS < Q)
                    b_away = tl.where(m_out[:, None], accs[t] - b_patch_mean, 0.0)
                    b_m2 += b_away * b_away
                b_share = b_patch / tl.maximum(b_count + b_patch, 1.0)
                b_delta = b_patch_mean - b_mean
                b_mean += b_delta * b_share
                b_m2 += b_delta * b_delta * (b_count * b_share)
                b_count += b_patch
            for t in tl.static_range(ROWS * COLUMNS):
                b_y = accs[t]
                if p_bn_mean is not None:
                    b_y = b_y * b_scale + b_shift
                b_y = activate(b_y, OUT_ACT, TYPE)
                o_column = o_q + t % COLUMNS
                m_out = (p + t // COLUMNS < P) & (o_column < Q)
                if p_pool is not None:
                    b_sum += tl.where(m_out[:, None], b_y, 0.0)
                o_y = (t // COLUMNS * Q + o_column).to(tl.int64)[:, None] * C + o_c[None, :]
                tl.store(p_strip + o_y, b_y.to(TYPE), mask=m_out[:, None] & m_c[None, :])
        if p_pool is not None:
            o_pool = ((i - n * strips).to(tl.int64) * N + n) * C + o_c
            tl.store(p_pool + o_pool, tl.sum(b_sum, 0), mask=m_c)

    if p_moments is not None:
        count = tl.sum(tl.sum(b_count, 1), 0)
        b_merged = tl.sum(b_mean * b_count, 0) / tl.maximum(count, 1.0)  # [BLOCK_C]
        b_delta = b_mean - b_merged[None, :]
        p_own = p_moments + i_strip.to(tl.int64) * 2 * C + o_c
        tl.store(p_own, b_merged, mask=m_c)
        tl.store(p_own + C, tl.sum(b_m2 + b_delta * b_delta * b_count, 0), mask=m_c)
        tl.store(p_counts + i_strip, count, mask=i_c == 0)


def strips_per_program(n: int, p: int, moments: bool) -> int:
    """One strip to a program; with moments as many as keep their partials few."""
    return triton.cdiv(n * triton.cdiv(p, STRIP_ROWS), MAX_PARTIALS) if moments else 1


def programs(n: int, p: int, moments: bool) -> int:
    """Programs along the strips: the length of the partial moments."""
    strips = n * triton.cdiv(p, STRIP_ROWS)
    return triton.cdiv(strips, strips_per_program(n, p, moments))


def block_channels(c: int, most: int) -> int:
    """The largest power of two up to ``most`` that leaves at most an eighth of its lanes idle."""
    size = min(most, triton.next_power_of_2(c))
    while size > 16 and 8 * (triton.cdiv(c, size) * size - c) > c:
        size //= 2
    return size


def default_config(c: int, columns: int, item_size: int) -> Config:
    """The heuristic: 16-byte vectors of channels and one patch of 4 x 2 to a thread.

    ``columns`` is the width of the output. 128 threads, fewer where the map is too small to feed
    them; wide maps prefer few channels (32: half a cache line) and long rows.
    """
    patches = triton.next_power_of_2(triton.cdiv(columns, 2))
    block_c = block_channels(c, 32 if patches >= 16 else 64 if patches >= 8 else 128)
    lanes = max(block_c * item_size // 16, 1)
    block_w = max(min(patches, 128 // lanes), 32 // lanes, 1)
    return Config(2, block_w, block_c, min(max(block_w * lanes // 32, 1), 4))


def candidates(default: Config, key: str) -> list[Config]:
    """Half and twice the patches and channels, with warps to match and with half as many."""
    found = []
    for block_w in (default.block_w // 2, default.block_w, 2 * default.block_w):
        for block_c in (default.block_c // 2, default.block_c, 2 * default.block_c):
            scale = block_w * block_c / (default.block_w * default.block_c)
            for warps in (default.num_warps * scale, default.num_warps * scale / 2):
                if block_w and 8 <= block_c <= 256 and 1 <= warps <= 8:
                    found.append(Config(default.columns, block_w, block_c, int(warps)))
    return found


def launch_depthwise(
    x: Tensor,
    taps: Tensor,
    in_affine: Tensor | None,
    bn: tuple[Tensor | None, Tensor | None, Tensor, Tensor] | None,
    y: Tensor,
    pool: Tensor | None,
    moments: Tensor | None,
    counts: Tensor | None,
    kernel: int,
    stride: int,
    top: int,
    left: int,
    strides: tuple[int, int, int],
    in_act: str,
    eps: float,
    out_act: str,
    config: Config,
) -> None:
    """x [N,C,H,W] (``strides`` of N, H, W), taps [k*k,C] -> y [N,C,P,Q] dense channels_last.

    ``pool`` [strips,N,C] fp32 gets the sums over each strip of y before it is rounded; ``moments``
    [programs,2,C] and ``counts`` [programs] fp32 every program's (mean, M2) of the raw sums and
    number of pixels.
    """
    n, c, h, w = x.shape
    p, q = y.shape[2:]
    unrolled = (kernel, stride) in UNROLLED
    bn_weight, bn_bias, bn_mean, bn_var = bn or (None, None, None, None)
    along = programs(n, p, moments is not None)
    launch: Any = depthwise_fwd_kernel[(along * triton.cdiv(c, config.block_c),)]
    launch(
        x, taps, in_affine, bn_weight, bn_bias, bn_mean, bn_var, y, pool, moments, counts,
        n, c, h, w, p, q, top, left, eps, *strides, kernel, stride,
        strips_per_program(n, p, moments is not None), 0, IN_ACT=in_act, OUT_ACT=out_act,
        K=kernel if unrolled else 0, S=stride if unrolled else 0,
        VECTOR=vector(c, *strides, most=16 // x.element_size()),
        ROWS=STRIP_ROWS, COLUMNS=config.columns, BLOCK_W=config.block_w, BLOCK_C=config.block_c,
        num_warps=config.num_warps,
    )  # fmt: skip


tuning.register("depthwise", candidates)
