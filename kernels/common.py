"""What every kernel shares: activations with their slopes, and the addresses of pixels.

Conventions of all kernels here. Activations are NHWC: channels innermost, so that a block's last
axis is channels and loads are 16 bytes wide where C is a multiple of 8 (16-bit types). Arithmetic
is fp32 whatever is stored. ``i_`` program index, ``o_`` offsets, ``m_`` mask, ``p_`` pointers,
``b_`` block of values; shapes stand behind the lines that make them. Every masked load says
``other=0.0``: an operand outside the tensor is zero, and so is its product.
"""

import triton
import triton.language as tl


@triton.jit
def sigmoid(u, TYPE: tl.constexpr):
    """1 / (1 + exp(-u)) of fp32 ``u``, as exact as an activation stored in ``TYPE`` shows.

    For 16-bit types 0.5 + 0.5 tanh(u / 2) by one tanh.approx instead of ex2 and rcp: its relative
    error 2^-11 lies below half a unit of bf16 (2^-9) and at that of fp16 (2^-11), and the special
    function unit, 16 lanes an SM, is what a depthwise kernel that recomputes SiLU for each tap
    waits for.
    """
    if TYPE == tl.float32:
        return 1.0 / (1.0 + tl.exp(-u))
    else:
        half = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [0.5 * u], dtype=tl.float32, is_pure=True, pack=1
        )
        return 0.5 * half + 0.5


@triton.jit
def activate(u, ACT: tl.constexpr, TYPE: tl.constexpr):
    """``act(u)`` of fp32 ``u``; ``TYPE`` is the type that u was stored in."""
    if ACT == "silu":
        return u * sigmoid(u, TYPE)
    elif ACT == "relu":
        return tl.maximum(u, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACT == "relu6":
        return tl.minimum(
            tl.maximum(u, 0.0, propagate_nan=tl.PropagateNan.ALL),
            6.0,
            propagate_nan=tl.PropagateNan.ALL,
        )
    else:
        tl.static_assert(ACT == "identity")
        return u


@triton.jit
def activate_and_slope(u, ACT: tl.constexpr, TYPE: tl.constexpr):
    """``(act(u), act'(u))``; at the kinks of relu (0) and relu6 (0, 6) the slope is 0, as torch."""
    if ACT == "silu":
        s = sigmoid(u, TYPE)
        value = u * s
        return value, s + value * (1.0 - s)
    elif ACT == "relu":
        return activate(u, ACT, TYPE), tl.where(u > 0.0, 1.0, 0.0)
    elif ACT == "relu6":
        return activate(u, ACT, TYPE), tl.where((u > 0.0) & (u < 6.0), 1.0, 0.0)
    else:
        tl.static_assert(ACT == "identity")
        return u, tl.full(u.shape, 1.0, tl.float32)


def vector(*strides: int, most: int = 8) -> int:
    """The VECTOR of kernels that walk these: ``most`` channels (8 are 16 bytes of a 16-bit type) if
    all strides divide by it, or single ones."""
    return 1 if any(stride % most for stride in strides) else most


@triton.jit
def multiple(n, VECTOR: tl.constexpr):
    """``n``, a multiple of ``VECTOR``, said so that the compiler sees it.

    Triton itself only asks whether an argument divides by 16: with 24 or 40 channels it would load
    and store values one by one.
    """
    return n // VECTOR * VECTOR


@triton.jit
def pixel_offsets(o_pixel, H, W, stride_n, stride_h, stride_w, DENSE: tl.constexpr):
    """Element offsets, in int64, of pixels numbered through [N, H, W]; same shape as ``o_pixel``.

    ``DENSE``: the pixels lie ``stride_w`` apart throughout, and two divisions are saved.
    """
    if DENSE:
        return o_pixel.to(tl.int64) * stride_w
    else:
        row = o_pixel // W
        w = o_pixel - row * W
        n = row // H
        h = row - n * H
        return n.to(tl.int64) * stride_n + h.to(tl.int64) * stride_h + w.to(tl.int64) * stride_w


@triton.jit
def pixel_rows(p, first, H, W, stride_n, stride_h, stride_w, DENSE: tl.constexpr, B: tl.constexpr):
    """Pointers [B] to the first channels of pixels ``first`` (int64) .. ``first + B - 1``.

    ``DENSE`` keeps the 64-bit part in the one base: offsets within the block fit in 32.
    """
    if DENSE:
        return p + first * stride_w + tl.arange(0, B) * stride_w
    else:
        o_pixel = first + tl.arange(0, B)
        return p + pixel_offsets(o_pixel, H, W, stride_n, stride_h, stride_w, False)


@triton.jit
def operand(
    p_rows, m_r, p_affine, p_gate, o_c, m_c, C, ACT: tl.constexpr, TYPE: tl.constexpr
):  # fmt: skip
    """A product's left operand, gate * act(affine(x)): [rows, columns of ``o_c``]."""
    b_x = tl.load(p_rows[:, None] + o_c[None, :], mask=m_r[:, None] & m_c[None, :], other=0.0)
    if p_affine is not None or p_gate is not None:
        b_u = b_x.to(tl.float32)
        if p_affine is not None:
            b_scale = tl.load(p_affine + o_c, mask=m_c, other=0.0)
            b_shift = tl.load(p_affine + C + o_c, mask=m_c, other=0.0)
            b_u = activate(b_u * b_scale[None, :] + b_shift[None, :], ACT, TYPE)
        if p_gate is not None:
            b_u *= tl.load(p_gate + o_c, mask=m_c, other=0.0)[None, :]
        b_x = b_u.to(TYPE)
    return b_x


@triton.jit
def fold_batch_norm(p_weight, p_bias, p_mean, p_var, eps, o_c, m_c):
    """(scale, shift) of a batch norm by running statistics, fp32, at channels ``o_c``."""
    mean = tl.load(p_mean + o_c, mask=m_c, other=0.0).to(tl.float32)
    var = tl.load(p_var + o_c, mask=m_c, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt_rn(var + eps)
    if p_weight is not None:
        scale *= tl.load(p_weight + o_c, mask=m_c, other=0.0).to(tl.float32)
    shift = -mean * scale
    if p_bias is not None:
        shift += tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)
    return scale, shift


@triton.jit
def merge_moments(count, mean, m2, other_count, other_mean, other_m2):
    """Chan's formula: mean and sum of squared deviations of two samples together; counts fp32."""
    total = count + other_count
    share = other_count / tl.maximum(total, 1.0)
    delta = other_mean - mean
    return total, mean + delta * share, m2 + other_m2 + delta * delta * count * share
