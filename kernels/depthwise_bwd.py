"""Depthwise convolution, backward: the gradients of input and weight in one pass.

A program owns strips of input rows, a thread patches of 4 x 2 input pixels. The output gradient
that these pixels see is rebuilt one column at a time from ``g`` and ``y``; each value then meets
the pixels of the patch once for dx (times the tap) and once for dw (times the activated input): the
same pairs, so dw is complete when every pixel has had its turn. At k 5, stride 1 a pixel costs 6
rebuilt values instead of 25; at k 3, 3 instead of 9.

Patches begin where (row + top) and (column + left) are multiples of the stride, so which taps reach
which pixel from which output is known when the kernel is compiled, and no tap is tested.

The k*k sums of dw stay in the registers of the thread until the program ends, and only then cross
threads. That is what sets the width of a thread: 4 channels at k 3, 2 at k 5 (8- and 4-byte
loads in 16-bit types; a warp still reads 64 bytes and more in one piece). With 8 channels the sums
of k 5 alone would be 200 of the 255 registers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl

from . import tuning
from .common import activate, activate_and_slope, multiple, vector
from .depthwise import UNROLLED, block_channels

if TYPE_CHECKING:
    from torch import Tensor

#: Input rows and columns of a patch, multiples of every unrolled stride.
PATCH_ROWS = 4
PATCH_COLUMNS = 2
#: Programs in all: a few for each multiprocessor; more only add partial sums.
PROGRAMS = 1024


class Config(NamedTuple):
    """A tile is ``block_w`` patches side by side by ``block_c`` channels."""

    block_w: int
    block_c: int
    num_warps: int


class Epilogue(NamedTuple):
    """What stands between y and g, for the gradient of y to be rebuilt on load."""

    coef: Tensor
    affine: Tensor | None
    act: str
    gate: Tensor | None
    dpool: Tensor | None


@triton.jit
def load_channels(p, o_c, m_c):
    """[1, BLOCK_C] in fp32."""
    return tl.load(p + o_c, mask=m_c, other=0.0)[None, :]


@triton.jit
def load_coefficients(p_coef, p_y_affine, p_gate, p_dpool, n, o_c, m_c, C):
    """What :func:`rebuild` needs of image ``n``: coef's a is folded into gate and dpool."""
    b_gate = load_channels(p_coef, o_c, m_c)
    b_dpool = 0.0
    b_scale = 0.0
    b_shift = 0.0
    if p_dpool is not None:
        b_dpool = b_gate * load_channels(p_dpool + n.to(tl.int64) * C, o_c, m_c)
    if p_gate is not None:
        b_gate *= load_channels(p_gate + n.to(tl.int64) * C, o_c, m_c)
    b_slope = load_channels(p_coef + C, o_c, m_c)
    b_mean = load_channels(p_coef + 2 * C, o_c, m_c)
    b_constant = load_channels(p_coef + 3 * C, o_c, m_c)
    if p_y_affine is not None:
        b_scale = load_channels(p_y_affine, o_c, m_c)
        b_shift = load_channels(p_y_affine + C, o_c, m_c)
    return b_gate, b_dpool, b_slope, b_mean, b_constant, b_scale, b_shift


@triton.jit
def rebuild(p_g, p_y, o_y, mask, coefficients, HAS_AFFINE: tl.constexpr, ACT: tl.constexpr):
    """dy = a * (g * gate + dpool) * act'(affine(y)) + b * (y - mean) + c; 0 outside ``mask``."""
    b_gate, b_dpool, b_slope, b_mean, b_constant, b_scale, b_shift = coefficients
    b_y = tl.load(p_y + o_y, mask=mask, other=0.0).to(tl.float32)
    b_h = tl.load(p_g + o_y, mask=mask, other=0.0).to(tl.float32) * b_gate + b_dpool
    if ACT != "identity":
        b_u = b_y
        if HAS_AFFINE:
            b_u = b_y * b_scale + b_shift
        _, b_act_slope = activate_and_slope(b_u, ACT, p_y.dtype.element_ty)
        b_h *= b_act_slope
    return tl.where(mask, b_h + (b_slope * (b_y - b_mean) + b_constant), 0.0)


@triton.jit
def load_input(p_x, mask, p_in_affine, o_c, m_c, C, ACT: tl.constexpr):
    """The convolution's operand, act(affine(x)); 0 outside ``mask``."""
    b_x = tl.load(p_x, mask=mask, other=0.0).to(tl.float32)
    if p_in_affine is not None:
        b_scale = load_channels(p_in_affine, o_c, m_c)
        b_x = b_x * b_scale + load_channels(p_in_affine + C, o_c, m_c)
    return tl.where(mask, activate(b_x, ACT, p_x.dtype.element_ty), 0.0)


@triton.jit
def replaced(values, INDEX: tl.constexpr, value, LENGTH: tl.constexpr):
    """The tuple ``values`` with ``value`` at INDEX."""
    changed = ()
    for t in tl.static_range(LENGTH):
        if t == INDEX:
            changed = changed + (value,)
        else:
            changed = changed + (values[t],)
    return changed


@triton.jit
def add_pairs(
    accs, dws, b_dy, b_x, p_w, o_c, m_c, C, f: tl.constexpr, K: tl.constexpr, S: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, NEED_DX: tl.constexpr, NEED_DW: tl.constexpr,
):  # fmt: skip
    """One column of dy, ``f`` outputs behind the patch's own, against every pixel it touches."""
    for j in tl.static_range(COLUMNS):
        if j - f * S >= 0 and j - f * S < K:
            for a in tl.static_range(K):
                if NEED_DX:
                    b_w = tl.load(p_w + (a * K + j - f * S) * C + o_c, mask=m_c, other=0.0)
                    b_w = b_w.to(tl.float32)[None, :]
                if NEED_DW:
                    b_dw = dws[a * K + j - f * S]
                for i in tl.static_range(ROWS):
                    if (i - a) % S == 0:
                        b_pair = b_dy[(i - a) // S + (K - 1) // S]
                        if NEED_DX:
                            b_acc = accs[i * COLUMNS + j] + b_pair * b_w
                            accs = replaced(accs, i * COLUMNS + j, b_acc, ROWS * COLUMNS)
                        if NEED_DW:
                            b_dw += b_pair * b_x[i * COLUMNS + j]
                if NEED_DW:
                    dws = replaced(dws, a * K + j - f * S, b_dw, K * K)
    return accs, dws


@triton.jit
def store_input_gradient(
    p_x, p_in_affine, p_in_norm, p_residual_grad, p_dx, o_dx, b_da, sums, mask, o_c, m_c, C,
    ACT: tl.constexpr,
):  # fmt: skip
    """dx of one pixel per lane; returns the sums (h, h * xhat) with these pixels added."""
    if p_in_norm is not None:
        b_x = tl.load(p_x, mask=mask, other=0.0).to(tl.float32)
        b_u = b_x * load_channels(p_in_affine, o_c, m_c)
        b_u += load_channels(p_in_affine + C, o_c, m_c)
        _, b_slope = activate_and_slope(b_u, ACT, p_x.dtype.element_ty)
        b_da = tl.where(mask, b_da * b_slope, 0.0)
        b_xhat = b_x - load_channels(p_in_norm, o_c, m_c)
        b_xhat *= load_channels(p_in_norm + C, o_c, m_c)
        sums = (sums[0] + b_da, sums[1] + b_da * b_xhat)
    if p_residual_grad is not None:
        b_da += tl.load(p_residual_grad + o_dx, mask=mask, other=0.0).to(tl.float32)
    tl.store(p_dx + o_dx, b_da.to(p_dx.dtype.element_ty), mask=mask)
    return sums


@triton.jit
def depthwise_bwd_kernel(
    p_g, p_y,  # [N, P, Q, C]
    p_x,  # [N, H, W, C], channels innermost, any other strides
    p_w,  # [k*k, C]
    p_coef,  # [4, C] fp32
    p_y_affine,  # [2, C] fp32 or None
    p_gate, p_dpool,  # [N, C] fp32 or None
    p_in_affine, p_in_norm,  # [2, C] fp32 or None; in_norm: undo in_act and sum
    p_residual_grad,  # [N, H, W, C] or None
    p_dx,  # [N, H, W, C] or None
    p_dw,  # [programs along the strips, k*k, C] fp32 or None
    p_sums,  # [programs along the strips, 2, C] fp32 or None
    N, C, H, W, P, Q, top, left, stride_n, stride_h, stride_w, strips_per_program,
    tap_step,  # 0, as in the forward kernel
    parts_stride,  # from one program's part of dw or sums to the next's
    Y_ACT: tl.constexpr, IN_ACT: tl.constexpr, K: tl.constexpr, S: tl.constexpr,
    VECTOR: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx, and this program's part of dw and of (sum h, sum h * xhat); K and S of UNROLLED."""
    C = multiple(C, VECTOR)
    stride_n = multiple(stride_n, VECTOR)
    stride_h = multiple(stride_h, VECTOR)
    stride_w = multiple(stride_w, VECTOR)
    Y_AFFINE: tl.constexpr = p_y_affine is not None
    NEED_DX: tl.constexpr = p_dx is not None
    NEED_DW: tl.constexpr = p_dw is not None
    BEHIND: tl.constexpr = (K - 1) // S  # outputs before the patch's own that still reach it
    c_blocks = tl.cdiv(C, BLOCK_C)
    i_strip = tl.program_id(0) // c_blocks
    i_c = tl.program_id(0) - i_strip * c_blocks
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    b_zero = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
    sums = (b_zero, b_zero)
    dws = (b_zero,) * (K * K)

    # Rows u and columns v count from the padding's edge, rounded down to a multiple of the stride.
    strips = tl.cdiv(H + top % S, ROWS)
    first = i_strip * strips_per_program
    for i_own in range(first, tl.minimum(first + strips_per_program, N * strips)):
        n = i_own // strips
        p = top // S + (i_own - n * strips) * (ROWS // S)
        h = p * S - top
        p_x_image = p_x + n.to(tl.int64) * stride_n
        for v in range(0, W + left % S, BLOCK_W * COLUMNS):
            q = (left // S * S + v) // S
            o_q = q + tl.arange(0, BLOCK_W) * (COLUMNS // S)
            o_w = o_q * S - left
            coefficients = load_coefficients(p_coef, p_y_affine, p_gate, p_dpool, n, o_c, m_c, C)
            b_x = ()
            if NEED_DW:
                for t in tl.static_range(ROWS * COLUMNS):
                    row = h + t // COLUMNS
                    w = o_w + t % COLUMNS
                    mask = ((w >= 0) & (w < W) & (row >= 0) & (row < H))[:, None] & m_c[None, :]
                    o_x = row.to(tl.int64) * stride_h + w.to(tl.int64) * stride_w
                    p_pixel = p_x_image + o_x[:, None] + o_c[None, :]
                    b = load_input(p_pixel, mask, p_in_affine, o_c, m_c, C, IN_ACT)
                    b_x = b_x + (b,)
            accs = (b_zero,) * (ROWS * COLUMNS)
            for f in tl.static_range(BEHIND + 1 + (COLUMNS - 1) // S):
                if q + f - BEHIND < Q:
                    o_column = o_q + f - BEHIND
                    m_column = (o_column >= 0) & (o_column < Q)
                    o_y = (n.to(tl.int64) * P + p - BEHIND) * Q + o_column
                    o_y = o_y[:, None] * C + o_c[None, :]
                    b_dy = ()
                    for e in tl.static_range(BEHIND + 1 + (ROWS - 1) // S):
                        row = p + e - BEHIND
                        mask = (m_column & (row >= 0) & (row < P))[:, None] & m_c[None, :]
                        b = rebuild(p_g, p_y, o_y, mask, coefficients, Y_AFFINE, Y_ACT)
                        b_dy = b_dy + (b,)
                        o_y += tl.cast(Q, tl.int64) * C
                    accs, dws = add_pairs(
                        accs, dws, b_dy, b_x, p_w + v * tap_step, o_c, m_c, C, f - BEHIND, K, S,
                        ROWS, COLUMNS, NEED_DX, NEED_DW,
                    )  # fmt: skip
            if NEED_DX:
                for j in tl.static_range(COLUMNS):
                    # From the bottom up, by steps: were these addresses found as those of x above
                    # are, the compiler would keep all of them from there to here.
                    row = h + ROWS - 1
                    w = o_w + j
                    o_x = row.to(tl.int64) * stride_h + w.to(tl.int64) * stride_w
                    o_dx = (n.to(tl.int64) * H + row) * W + w
                    p_pixel = p_x_image + o_x[:, None] + o_c[None, :]
                    o_dx = o_dx[:, None] * C + o_c[None, :]
                    for i in tl.static_range(ROWS):
                        mask = (w >= 0) & (w < W) & (row >= 0) & (row < H)
                        sums = store_input_gradient(
                            p_pixel, p_in_affine, p_in_norm, p_residual_grad, p_dx, o_dx,
                            accs[(ROWS - 1 - i) * COLUMNS + j], sums,
                            mask[:, None] & m_c[None, :], o_c, m_c, C, IN_ACT,
                        )  # fmt: skip
                        row -= 1
                        p_pixel -= stride_h
                        o_dx -= tl.cast(W, tl.int64) * C

    if NEED_DW:
        p_own = p_dw + i_strip.to(tl.int64) * parts_stride + o_c
        for t in tl.static_range(K * K):
            tl.store(p_own + t * C, tl.sum(dws[t], 0), mask=m_c)
    if p_sums is not None:
        p_own = p_sums + i_strip.to(tl.int64) * parts_stride + o_c
        tl.store(p_own, tl.sum(sums[0], 0), mask=m_c)
        tl.store(p_own + C, tl.sum(sums[1], 0), mask=m_c)


@triton.jit
def rebuild_for_tap(
    p_g, p_y, n, o_u, o_v, tap, P, Q, C, k, stride, m_pixel, o_c, m_c, coefficients,
    HAS_AFFINE: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    """The dy that padded rows ``o_u``, columns ``o_v`` see through ``tap``; 0 where there is none.

    [BLOCK_W, BLOCK_C]; here whether the stride divides is found out at run time.
    """
    a = tap // k
    o_row = o_u - a
    o_column = o_v - (tap - a * k)
    mask = m_pixel & (o_row >= 0) & (o_row % stride == 0) & (o_row // stride < P)
    mask &= (o_column >= 0) & (o_column % stride == 0) & (o_column // stride < Q)
    o_y = (n.to(tl.int64) * P + o_row // stride) * Q + o_column // stride
    o_y = o_y[:, None] * C + o_c[None, :]
    m_y = mask[:, None] & m_c[None, :]
    return rebuild(p_g, p_y, o_y, m_y, coefficients, HAS_AFFINE, ACT)


@triton.jit
def depthwise_bwd_looped_kernel(
    p_g, p_y, p_x, p_w, p_coef, p_y_affine, p_gate, p_dpool, p_in_affine, p_in_norm,
    p_residual_grad, p_dx, p_dw, p_sums,  # all as above
    N, C, H, W, P, Q, top, left, stride_n, stride_h, stride_w, tiles_per_program,
    parts_stride, k, stride,
    Y_ACT: tl.constexpr, IN_ACT: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """As :func:`depthwise_bwd_kernel` for any kernel size and stride, tap by tap; slow."""
    C = multiple(C, VECTOR)
    stride_n = multiple(stride_n, VECTOR)
    stride_h = multiple(stride_h, VECTOR)
    stride_w = multiple(stride_w, VECTOR)
    Y_AFFINE: tl.constexpr = p_y_affine is not None
    c_blocks = tl.cdiv(C, BLOCK_C)
    i_tile = tl.program_id(0) // c_blocks
    i_c = tl.program_id(0) - i_tile * c_blocks
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    tiles = tl.cdiv(H * W, BLOCK_W)
    first = i_tile * tiles_per_program
    last = tl.minimum(first + tiles_per_program, N * tiles)
    b_zero = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
    sums = (b_zero, b_zero)
    if p_dx is not None:
        for i_own in range(first, last):
            n = i_own // tiles
            o_pixel = (i_own - n * tiles) * BLOCK_W + tl.arange(0, BLOCK_W)
            o_h = o_pixel // W
            o_w = o_pixel - o_h * W
            m_pixel = o_h < H
            coefficients = load_coefficients(p_coef, p_y_affine, p_gate, p_dpool, n, o_c, m_c, C)
            b_da = b_zero
            for tap in range(k * k):
                b_w = tl.load(p_w + tap * C + o_c, mask=m_c, other=0.0).to(tl.float32)
                b_dy = rebuild_for_tap(
                    p_g, p_y, n, o_h + top, o_w + left, tap, P, Q, C, k, stride, m_pixel,
                    o_c, m_c, coefficients, Y_AFFINE, Y_ACT,
                )  # fmt: skip
                b_da += b_dy * b_w[None, :]
            o_x = o_h.to(tl.int64) * stride_h + o_w.to(tl.int64) * stride_w
            o_x = n.to(tl.int64) * stride_n + o_x[:, None] + o_c[None, :]
            o_dx = n.to(tl.int64) * H * W + o_pixel
            sums = store_input_gradient(
                p_x + o_x, p_in_affine, p_in_norm, p_residual_grad, p_dx,
                o_dx[:, None] * C + o_c[None, :], b_da, sums, m_pixel[:, None] & m_c[None, :],
                o_c, m_c, C, IN_ACT,
            )  # fmt: skip
    if p_dw is not None:
        for tap in range(k * k):
            b_dw = b_zero
            for i_own in range(first, last):
                n = i_own // tiles
                o_pixel = (i_own - n * tiles) * BLOCK_W + tl.arange(0, BLOCK_W)
                o_h = o_pixel // W
                o_w = o_pixel - o_h * W
                m_pixel = o_h < H
                coefficients = load_coefficients(
                    p_coef, p_y_affine, p_gate, p_dpool, n, o_c, m_c, C
                )
                o_x = o_h.to(tl.int64) * stride_h + o_w.to(tl.int64) * stride_w
                o_x = n.to(tl.int64) * stride_n + o_x[:, None] + o_c[None, :]
                mask = m_pixel[:, None] & m_c[None, :]
                b_x = load_input(p_x + o_x, mask, p_in_affine, o_c, m_c, C, IN_ACT)
                b_dw += b_x * rebuild_for_tap(
                    p_g, p_y, n, o_h + top, o_w + left, tap, P, Q, C, k, stride, m_pixel,
                    o_c, m_c, coefficients, Y_AFFINE, Y_ACT,
                )  # fmt: skip
            p_own = p_dw + i_tile.to(tl.int64) * parts_stride + tap * C + o_c
            tl.store(p_own, tl.sum(b_dw, 0), mask=m_c)
    if p_sums is not None:
        p_own = p_sums + i_tile.to(tl.int64) * parts_stride + o_c
        tl.store(p_own, tl.sum(sums[0], 0), mask=m_c)
        tl.store(p_own + C, tl.sum(sums[1], 0), mask=m_c)


class Walk(NamedTuple):
    """How strips of input rows, or tiles of input pixels, are dealt out to programs."""

    programs: int
    per_program: int


def walk(n: int, c: int, h: int, w: int, top: int, k: int, stride: int, config: Config) -> Walk:
    """About :data:`PROGRAMS` programs over strips and channels, none without a strip."""
    unrolled = (k, stride) in UNROLLED
    image = triton.cdiv(h + top % stride, PATCH_ROWS)
    items = n * (image if unrolled else triton.cdiv(h * w, config.block_w))
    each = triton.cdiv(items, max(PROGRAMS // triton.cdiv(c, config.block_c), 1))
    return Walk(triton.cdiv(items, each), each)


def default_config(k: int, stride: int, c: int, h: int, w: int) -> Config:
    """The heuristic: 4 channels and one patch of 4 x 2 to a thread, 2 channels for k 5.

    Where the taps are looped over, 8 channels of one pixel. 128 threads, fewer where the input map
    [h, w] is too small.
    """
    if (k, stride) in UNROLLED:
        channels, items = 4 if k == 3 else 2, triton.cdiv(w + 1, PATCH_COLUMNS)
    else:
        channels, items = 8, h * w
    items = triton.next_power_of_2(items)
    block_c = block_channels(c, 32 if items >= 8 else 64)
    lanes = max(block_c // channels, 1)
    block_w = max(min(items, 128 // lanes), 32 // lanes, 1)
    return Config(block_w, block_c, min(max(block_w * lanes // 32, 1), 4))


def candidates(default: Config, key: str) -> list[Config]:
    """Half and twice the patches and channels, with warps to match and twice as many."""
    found = []
    for block_w in (default.block_w // 2, default.block_w, 2 * default.block_w):
        for block_c in (default.block_c // 2, default.block_c, 2 * default.block_c):
            scale = block_w * block_c / (default.block_w * default.block_c)
            for warps in (default.num_warps * scale, default.num_warps * scale * 2):
                if block_w and 8 <= block_c <= 256 and 1 <= warps <= 8:
                    found.append(Config(block_w, block_c, int(warps)))
    return found


def launch_depthwise_bwd(
    g: Tensor,
    y: Tensor,
    x: Tensor,
    taps: Tensor,
    epilogue: Epilogue,
    in_affine: Tensor | None,
    in_act: str,
    in_norm: Tensor | None,
    residual_grad: Tensor | None,
    dx: Tensor | None,
    dw: Tensor | None,
    sums: Tensor | None,
    parts_stride: int,
    kernel: int,
    stride: int,
    top: int,
    left: int,
    strides: tuple[int, int, int],
    config: Config,
) -> None:
    """g and y [N,C,P,Q], x [N,C,H,W] (``strides`` of N, H, W), taps [k*k,C] -> dx [N,C,H,W].

    All maps but x dense channels_last. ``dw`` [programs,k*k,C] and ``sums`` [programs,2,C] fp32 get
    each program's part (:func:`walk` says how many), ``parts_stride`` elements from one program's
    to the next's; ``sums`` and ``in_norm`` go together.
    """
    n, c, h, w = x.shape
    p, q = y.shape[2:]
    along, each = walk(n, c, h, w, top, kernel, stride, config)
    grid = (along * triton.cdiv(c, config.block_c),)
    arguments = (
        g, y, x, taps, epilogue.coef, epilogue.affine, epilogue.gate, epilogue.dpool,
        in_affine, in_norm, residual_grad, dx, dw, sums,
        n, c, h, w, p, q, top, left, *strides, each,
    )  # fmt: skip
    block: dict[str, Any] = {
        "Y_ACT": epilogue.act, "IN_ACT": in_act,
        "VECTOR": vector(c, *strides, most=16 // x.element_size()),
        "BLOCK_W": config.block_w, "BLOCK_C": config.block_c, "num_warps": config.num_warps,
    }  # fmt: skip
    if (kernel, stride) in UNROLLED:
        unrolled: Any = depthwise_bwd_kernel[grid]
        unrolled(
            *arguments,
            0,
            parts_stride,
            K=kernel,
            S=stride,
            ROWS=PATCH_ROWS,
            COLUMNS=PATCH_COLUMNS,
            **block,
        )
    else:
        looped: Any = depthwise_bwd_looped_kernel[grid]
        looped(*arguments, parts_stride, kernel, stride, **block)


tuning.register("depthwise_bwd", candidates)
