"""What the backward products rebuild on load: the gradient of a raw output, and the five sums of
squeeze-and-excitation's backward."""

import triton
import triton.language as tl

from .common import activate_and_slope, pixel_rows


@triton.jit
def rebuilt_gradient(
    p_g, p_y, p_coef, p_affine, p_dpool, drop, i_m, m_r, o_k, m_k, K,
    ACT: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """The gradient of y at rows ``i_m``..., fp32, zero outside: [BLOCK_M, columns of ``o_k``].

    h = (g * drop + dpool) * act'(affine(y)), dy = a * h + b * (y - mean) + c.
    """
    m = m_r[:, None] & m_k[None, :]
    b_y = tl.load(
        pixel_rows(p_y, i_m, 1, 1, 0, 0, K, True, BLOCK_M)[:, None] + o_k[None, :],
        mask=m, other=0.0,
    ).to(tl.float32)  # fmt: skip
    if p_g is not None:
        b_h = tl.load(
            pixel_rows(p_g, i_m, 1, 1, 0, 0, K, True, BLOCK_M)[:, None] + o_k[None, :],
            mask=m, other=0.0,
        ).to(tl.float32) * drop  # fmt: skip
    else:
        b_h = tl.zeros_like(b_y)
    if p_dpool is not None:
        b_h += tl.load(p_dpool + o_k, mask=m_k, other=0.0)[None, :]
    if ACT != "identity":
        b_scale = tl.load(p_affine + o_k, mask=m_k, other=0.0)
        b_shift = tl.load(p_affine + K + o_k, mask=m_k, other=0.0)
        _, b_slope = activate_and_slope(
            b_y * b_scale[None, :] + b_shift[None, :], ACT, p_y.dtype.element_ty
        )
        b_h *= b_slope
    b_a = tl.load(p_coef + o_k, mask=m_k, other=0.0)
    b_b = tl.load(p_coef + K + o_k, mask=m_k, other=0.0)
    b_mean = tl.load(p_coef + 2 * K + o_k, mask=m_k, other=0.0)
    b_c = tl.load(p_coef + 3 * K + o_k, mask=m_k, other=0.0)
    b_dy = b_a[None, :] * b_h + (b_b[None, :] * (b_y - b_mean[None, :]) + b_c[None, :])
    return tl.where(m, b_dy, 0.0)


@triton.jit
def add_five_sums(
    p_sums, fresh, b_da, p_rows, m_r, p_affine, p_norm, o_c, m_c, C, STRIDE,
    ACT: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Add to (or where ``fresh`` start) a program's own five rows of [C], ``STRIDE`` apart, the
    sums of (da*act', act', da*act'*xhat, act'*xhat, da*act) over the tile's rows.

    In memory, which for so little means L2: as values carried through the loop over tiles, in the
    layout of a product's result, they take 5 * C / 4 registers of every thread.
    """
    m = m_r[:, None] & m_c[None, :]
    b_x = tl.load(p_rows[:, None] + o_c[None, :], mask=m, other=0.0).to(tl.float32)
    b_scale = tl.load(p_affine + o_c, mask=m_c, other=0.0)
    b_shift = tl.load(p_affine + C + o_c, mask=m_c, other=0.0)
    b_value, b_slope = activate_and_slope(b_x * b_scale[None, :] + b_shift[None, :], ACT, TYPE)
    b_slope = tl.where(m, b_slope, 0.0)
    _add(p_sums + 4 * STRIDE, fresh, tl.sum(tl.where(m, b_da * b_value, 0.0), 0), o_c, m_c)
    _add(p_sums + 1 * STRIDE, fresh, tl.sum(b_slope, 0), o_c, m_c)
    b_xhat = tl.zeros_like(b_x)
    if p_norm is not None:
        b_mean = tl.load(p_norm + o_c, mask=m_c, other=0.0)
        b_invstd = tl.load(p_norm + C + o_c, mask=m_c, other=0.0)
        b_xhat = (b_x - b_mean[None, :]) * b_invstd[None, :]
    _add(p_sums + 3 * STRIDE, fresh, tl.sum(b_slope * b_xhat, 0), o_c, m_c)
    b_gs = b_da * b_slope
    _add(p_sums, fresh, tl.sum(b_gs, 0), o_c, m_c)
    _add(p_sums + 2 * STRIDE, fresh, tl.sum(b_gs * b_xhat, 0), o_c, m_c)
    tl.debug_barrier()  # another thread may hold the same columns in the next tile


@triton.jit
def _add(p, fresh, b, o, m):
    """p[o] += b by the one program that owns p."""
    b_old = tl.load(p + o, mask=m & (fresh == 0), other=0.0, volatile=True)
    tl.store(p + o, b_old + b, mask=m)
