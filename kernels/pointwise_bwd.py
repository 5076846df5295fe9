"""Backward of the 1x1 convolution y = a . w^T: da = dy . w, dw = dy^T . a, dy rebuilt on load.

Three kernels. Where the weight gradient [K, C] stays in the registers of one program, ``both``
reads g, y and x once for the two products. Elsewhere ``dgrad`` and ``wgrad`` tile K and C.

Rows are those of :mod:`.pointwise`: R pixels in each of G groups, a group being an image where a
vector of its own goes with it (gate, dpool, drop_scale, and the five sums).
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import tuning
from .common import multiple, operand, pixel_rows, vector
from .gradient import add_five_sums, rebuilt_gradient
from .limits import ONE_KERNEL_WEIGHTS
from .pointwise import Config

#: Programs that a launch aims at, by kernel. One for each SM of an H100 where each leaves a whole
#: weight gradient behind.
PROGRAMS = {"dgrad": 1056, "wgrad": 528, "both": 132}


class Operands(NamedTuple):
    """What every kernel reads; None where there is nothing. M = G * R rows."""

    g: Any  # [M, K] gradient behind batch norm, or None
    y: Any  # [M, K] raw output
    x: Any  # [M, C] input, perhaps sliced out of a larger tensor
    weight: Any  # [K, C]
    coef: Any  # [4, K]
    y_affine: Any  # [2, K]
    drop_scale: Any  # [G]
    dpool: Any  # [G, K]
    in_affine: Any  # [2, C]
    in_gate: Any  # [G, C]
    in_norm: Any  # [2, C]
    residual_grad: Any  # [M, C]


class Layout(NamedTuple):
    """The rows, and where x's pixels lie."""

    groups: int
    rows: int  # of a group
    size: tuple[int, int]  # H, W
    x_pixels: tuple[int, int, int, bool]  # strides n, h, w in elements; dense


def _block(size: int, most: int) -> int:
    return min(max(triton.next_power_of_2(size), 16), most)


def default_config(
    kind: str, rows: int, channels: int, outputs: int, bits: int, sums: bool
) -> Config:
    """Blocks of kernel ``kind``; ``bits`` of the stored type; ``sums``: with a prologue's five.

    Chosen by what ptxas needs on sm_90 in bf16: 172 to 255 registers without a spill. The sums'
    per-channel vectors cost C / 4 registers each in the layout of a product, so that they halve
    the tile.
    """
    wide = bits == 16
    if kind == "both":
        k, c = _block(outputs, ONE_KERNEL_WEIGHTS), _block(channels, ONE_KERNEL_WEIGHTS)
        if sums:
            tall = max(32, 2048 // c) if c <= 128 and wide else 16  # 8 channels to a thread or more
            return Config(_block(rows, tall), k, c, 8, 2)
        m = _block(rows, 64 if max(k, c) <= 128 and wide else 32)
        return Config(m, k, c, 8 if k * c > 4096 else 4, 2)
    if kind == "wgrad":
        k, c = _block(outputs, 128 if wide else 64), _block(channels, 64)
        return Config(_block(rows, 64 if wide else 32), k, c, 8 if k * c > 4096 else 4, 2)
    c = _block(channels, 128 if wide and not sums else 64)
    m = _block(rows, 64 if wide else 32)
    return Config(m, _block(outputs, 64 if wide else 32), c, 8 if m * c >= 4096 else 4, 2)


def candidates(default: Config, key: str) -> list[Config]:
    """What is worth measuring: half and double blocks, either number of warps."""
    del key
    return [
        default._replace(block_m=m, num_warps=warps, num_stages=stages)
        for m in {max(default.block_m // 2, 16), default.block_m, 2 * default.block_m}
        for warps in (4, 8)
        for stages in (1, 2, 3)
    ]


for _kind in PROGRAMS:
    tuning.register(f"pointwise_{_kind}", candidates)


def parts(kind: str, groups: int, rows: int, channels: int, outputs: int, config: Config) -> int:
    """Programs that share a group's rows, for ``dgrad`` and ``both``; for ``wgrad`` all rows."""
    columns = 1
    if kind != "both":
        columns = triton.cdiv(channels, config.block_c)
    if kind == "wgrad":
        columns *= triton.cdiv(outputs, config.block_k)
    tiles = triton.cdiv(rows, config.block_m)
    if kind == "wgrad":
        tiles, groups = groups * tiles, 1
    return max(1, min(tiles, PROGRAMS[kind] // (columns * groups)))


@triton.jit
def pointwise_dgrad_kernel(
    p_g, p_y, p_x, p_w, p_coef, p_y_affine, p_drop, p_dpool, p_affine, p_norm, p_residual,
    p_dx, p_sums,
    R, K, C, G, PARTS, H, W, x_n, x_h, x_w,
    Y_ACT: tl.constexpr, IN_ACT: tl.constexpr, X_DENSE: tl.constexpr,
    VECTOR_C: tl.constexpr, VECTOR_K: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """g, y [M, K], w [K, C] -> dx [M, C]; with a prologue also sums [PARTS, 5, G, C] from x."""
    C, K, x_w = multiple(C, VECTOR_C), multiple(K, VECTOR_K), multiple(x_w, VECTOR_C)
    columns = tl.cdiv(C, BLOCK_C)
    i_c = tl.program_id(0) % columns
    i_part = (tl.program_id(0) // columns) % PARTS
    i_group = tl.program_id(0) // (columns * PARTS)
    tiles = tl.cdiv(R, BLOCK_M)
    per_part = tl.cdiv(tiles, PARTS)
    first = i_part * per_part
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    drop = 1.0
    if p_drop is not None:
        drop = tl.load(p_drop + i_group)
    if p_dpool is not None:
        p_dpool += tl.cast(i_group, tl.int64) * K
    if p_sums is not None:
        p_sums += (i_part.to(tl.int64) * 5 * G + i_group) * C
    for i_tile in range(first, tl.minimum(first + per_part, tiles)):
        m_r = i_tile * BLOCK_M + tl.arange(0, BLOCK_M) < R
        i_m = tl.cast(i_group, tl.int64) * R + i_tile * BLOCK_M
        b_da = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        for i_k in range(0, K, BLOCK_K):
            o_k = i_k + tl.arange(0, BLOCK_K)
            m_k = o_k < K
            b_dy = rebuilt_gradient(
                p_g, p_y, p_coef, p_y_affine, p_dpool, drop, i_m, m_r, o_k, m_k, K, Y_ACT, BLOCK_M
            )
            m_w = m_k[:, None] & m_c[None, :]
            b_w = tl.load(p_w + o_k[:, None] * C + o_c[None, :], mask=m_w, other=0.0)
            b_da = tl.dot(b_dy.to(b_w.dtype), b_w, b_da, input_precision=PRECISION)
        if p_sums is not None:
            p_rows = pixel_rows(p_x, i_m, H, W, x_n, x_h, x_w, X_DENSE, BLOCK_M)
            add_five_sums(
                p_sums, i_tile == first, b_da, p_rows, m_r, p_affine, p_norm, o_c, m_c, C,
                tl.cast(G, tl.int64) * C, IN_ACT, p_dx.dtype.element_ty,
            )  # fmt: skip
        m = m_r[:, None] & m_c[None, :]
        if p_residual is not None:
            p_rows = pixel_rows(p_residual, i_m, 1, 1, 0, 0, C, True, BLOCK_M)
            b_da += tl.load(p_rows[:, None] + o_c[None, :], mask=m, other=0.0)
        p_rows = pixel_rows(p_dx, i_m, 1, 1, 0, 0, C, True, BLOCK_M)
        tl.store(p_rows[:, None] + o_c[None, :], b_da.to(p_dx.dtype.element_ty), mask=m)


@triton.jit
def pointwise_wgrad_kernel(
    p_g, p_y, p_x, p_coef, p_y_affine, p_drop, p_dpool, p_affine, p_gate, p_dw,
    R, K, C, G, PARTS, H, W, x_n, x_h, x_w,
    Y_ACT: tl.constexpr, IN_ACT: tl.constexpr, X_DENSE: tl.constexpr,
    VECTOR_C: tl.constexpr, VECTOR_K: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """g, y [M, K], x [M, C] -> dw [PARTS, K, C] in fp32; a program walks its share of all rows."""
    C, K, x_w = multiple(C, VECTOR_C), multiple(K, VECTOR_K), multiple(x_w, VECTOR_C)
    columns, rows = tl.cdiv(C, BLOCK_C), tl.cdiv(K, BLOCK_K)
    i_c = tl.program_id(0) % columns
    i_k = (tl.program_id(0) // columns) % rows
    i_part = tl.program_id(0) // (columns * rows)
    tiles = tl.cdiv(R, BLOCK_M)
    per_part = tl.cdiv(G * tiles, PARTS)
    first = i_part * per_part
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    o_k = i_k * BLOCK_K + tl.arange(0, BLOCK_K)
    m_k = o_k < K
    b_dw = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    for i_tile in range(first, tl.minimum(first + per_part, G * tiles)):
        i_group = i_tile // tiles
        i_r = (i_tile - i_group * tiles) * BLOCK_M
        m_r = i_r + tl.arange(0, BLOCK_M) < R
        i_m = tl.cast(i_group, tl.int64) * R + i_r
        drop = 1.0
        if p_drop is not None:
            drop = tl.load(p_drop + i_group)
        p_dpool_n = p_dpool
        if p_dpool is not None:
            p_dpool_n = p_dpool + tl.cast(i_group, tl.int64) * K
        p_gate_n = p_gate
        if p_gate is not None:
            p_gate_n = p_gate + tl.cast(i_group, tl.int64) * C
        b_dy = rebuilt_gradient(
            p_g, p_y, p_coef, p_y_affine, p_dpool_n, drop, i_m, m_r, o_k, m_k, K, Y_ACT, BLOCK_M
        )
        b_a = operand(
            pixel_rows(p_x, i_m, H, W, x_n, x_h, x_w, X_DENSE, BLOCK_M), m_r,
            p_affine, p_gate_n, o_c, m_c, C, IN_ACT, p_x.dtype.element_ty,
        )  # fmt: skip
        b_dw = tl.dot(tl.trans(b_dy.to(b_a.dtype)), b_a, b_dw, input_precision=PRECISION)
    o_dw = i_part.to(tl.int64) * K * C + o_k[:, None] * C + o_c[None, :]
    tl.store(p_dw + o_dw, b_dw, mask=m_k[:, None] & m_c[None, :])


@triton.jit
def pointwise_both_kernel(
    p_g, p_y, p_x, p_w, p_coef, p_y_affine, p_drop, p_dpool, p_affine, p_gate, p_norm, p_residual,
    p_dx, p_dw, p_sums,
    R, K, C, G, PARTS, GROUPS, H, W, x_n, x_h, x_w,
    Y_ACT: tl.constexpr, IN_ACT: tl.constexpr, X_DENSE: tl.constexpr,
    VECTOR_C: tl.constexpr, VECTOR_K: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dgrad and wgrad at once, K <= BLOCK_K and C <= BLOCK_C; dw [programs, K, C].

    A program walks its share of the tiles of GROUPS groups, one after another.
    """
    C, K, x_w = multiple(C, VECTOR_C), multiple(K, VECTOR_K), multiple(x_w, VECTOR_C)
    TYPE: tl.constexpr = p_dx.dtype.element_ty
    i_part = tl.program_id(0) % PARTS
    first_group = tl.program_id(0) // PARTS * GROUPS
    tiles = tl.cdiv(R, BLOCK_M)
    per_part = tl.cdiv(tiles, PARTS)
    first = i_part * per_part
    o_c = tl.arange(0, BLOCK_C)
    m_c = o_c < C
    o_k = tl.arange(0, BLOCK_K)
    m_k = o_k < K
    o_w = o_k[:, None] * C + o_c[None, :]
    m_w = m_k[:, None] & m_c[None, :]
    b_w = tl.load(p_w + o_w, mask=m_w, other=0.0)
    b_dw = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    for i_group in range(first_group, tl.minimum(first_group + GROUPS, G)):
        drop = 1.0
        if p_drop is not None:
            drop = tl.load(p_drop + i_group)
        p_dpool_n = p_dpool
        if p_dpool is not None:
            p_dpool_n = p_dpool + tl.cast(i_group, tl.int64) * K
        p_gate_n = p_gate
        if p_gate is not None:
            p_gate_n = p_gate + tl.cast(i_group, tl.int64) * C
        p_sums_n = p_sums
        if p_sums is not None:
            p_sums_n = p_sums + (tl.cast(i_part, tl.int64) * 5 * G + i_group) * C
        for i_tile in range(first, tl.minimum(first + per_part, tiles)):
            m_r = i_tile * BLOCK_M + tl.arange(0, BLOCK_M) < R
            i_m = tl.cast(i_group, tl.int64) * R + i_tile * BLOCK_M
            b_dy = rebuilt_gradient(
                p_g, p_y, p_coef, p_y_affine, p_dpool_n, drop, i_m, m_r, o_k, m_k, K, Y_ACT, BLOCK_M
            ).to(TYPE)
            p_rows = pixel_rows(p_x, i_m, H, W, x_n, x_h, x_w, X_DENSE, BLOCK_M)
            b_a = operand(p_rows, m_r, p_affine, p_gate_n, o_c, m_c, C, IN_ACT, TYPE)
            b_dw = tl.dot(tl.trans(b_dy), b_a, b_dw, input_precision=PRECISION)
            b_da = tl.dot(b_dy, b_w, input_precision=PRECISION)
            if p_sums is not None:
                add_five_sums(
                    p_sums_n, i_tile == first, b_da, p_rows, m_r, p_affine, p_norm, o_c, m_c, C,
                    tl.cast(G, tl.int64) * C, IN_ACT, TYPE,
                )  # fmt: skip
            m = m_r[:, None] & m_c[None, :]
            if p_residual is not None:
                p_rows = pixel_rows(p_residual, i_m, 1, 1, 0, 0, C, True, BLOCK_M)
                b_da += tl.load(p_rows[:, None] + o_c[None, :], mask=m, other=0.0)
            p_rows = pixel_rows(p_dx, i_m, 1, 1, 0, 0, C, True, BLOCK_M)
            tl.store(p_rows[:, None] + o_c[None, :], b_da.to(TYPE), mask=m)
    tl.store(p_dw + tl.program_id(0).to(tl.int64) * K * C + o_w, b_dw, mask=m_w)


def _constants(o, layout, y_act, in_act, precision, config):
    k, c = o.weight.shape[:2]
    return {
        "Y_ACT": y_act, "IN_ACT": in_act, "X_DENSE": layout.x_pixels[3],
        "VECTOR_C": vector(c, *layout.x_pixels[:3]), "VECTOR_K": vector(k), "PRECISION": precision,
        "BLOCK_M": config.block_m, "BLOCK_K": config.block_k, "BLOCK_C": config.block_c,
        "num_warps": config.num_warps, "num_stages": config.num_stages,
    }  # fmt: skip


def launch_pointwise_dgrad(
    o: Operands, layout: Layout, dx, sums, n_parts, y_act, in_act, precision, config
):  # fmt: skip
    """dx [M, C]; sums [n_parts, 5, G, C] or None."""
    k, c = o.weight.shape[:2]
    pointwise_dgrad_kernel[(layout.groups * n_parts * triton.cdiv(c, config.block_c),)](
        o.g, o.y, o.x, o.weight, o.coef, o.y_affine, o.drop_scale, o.dpool, o.in_affine, o.in_norm,
        o.residual_grad, dx, sums,
        layout.rows, k, c, layout.groups, n_parts, *layout.size, *layout.x_pixels[:3],
        **_constants(o, layout, y_act, in_act, precision, config),
    )  # fmt: skip


def launch_pointwise_wgrad(
    o: Operands, layout: Layout, dw, n_parts, y_act, in_act, precision, config
):  # fmt: skip
    """dw [n_parts, K, C] in fp32."""
    k, c = o.weight.shape[:2]
    tiles = triton.cdiv(c, config.block_c) * triton.cdiv(k, config.block_k)
    pointwise_wgrad_kernel[(n_parts * tiles,)](
        o.g, o.y, o.x, o.coef, o.y_affine, o.drop_scale, o.dpool, o.in_affine, o.in_gate, dw,
        layout.rows, k, c, layout.groups, n_parts, *layout.size, *layout.x_pixels[:3],
        **_constants(o, layout, y_act, in_act, precision, config),
    )  # fmt: skip


def launch_pointwise_both(
    o: Operands, layout: Layout, dx, dw, sums, n_parts, per_program,
    y_act, in_act, precision, config,
):  # fmt: skip
    """dx [M, C]; dw [programs, K, C] in fp32; sums [n_parts, 5, G, C] or None.

    Programs: ``n_parts`` for each ``per_program`` groups.
    """
    k, c = o.weight.shape[:2]
    pointwise_both_kernel[(triton.cdiv(layout.groups, per_program) * n_parts,)](
        *o, dx, dw, sums,
        layout.rows, k, c, layout.groups, n_parts, per_program, *layout.size, *layout.x_pixels[:3],
        **_constants(o, layout, y_act, in_act, precision, config),
    )  # fmt: skip
