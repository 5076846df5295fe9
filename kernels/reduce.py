"""Second stages of the reductions: the partials of a first stage's programs, in fixed order.

A first-stage kernel lets each of its T programs walk many tiles and store one partial; T stays
around 1024 at most, so that this stage is small. Nothing is added atomically anywhere: the result
does not depend on which program finishes first, and two runs agree in every bit.

Both kernels read whole columns of [T, L] in blocks of about 4096 fp32, which puts four 16-byte
loads of a thread in flight: with so little to read, latency is what the stage costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

#: Columns from which rows of 64 fill the machine: 132 SMs, twice.
_WIDE = 2 * 132 * 64


@triton.jit
def sum_kernel(
    p_in, p_out, T, L, VECTOR: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """p_in [T, L] -> p_out [L], both fp32: out[l] = sum over t of in[t, l]."""
    if VECTOR:
        L = L // 4 * 4  # a multiple of 4, said so that the compiler sees it: 16-byte loads
    o_l = tl.program_id(0).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    m_l = o_l < L
    b_sum = tl.zeros([BLOCK_T, BLOCK_L], tl.float32)
    for t in range(0, T, BLOCK_T):
        o_t = t + tl.arange(0, BLOCK_T)
        o_in = o_t.to(tl.int64)[:, None] * L + o_l[None, :]  # [BLOCK_T, BLOCK_L]
        b_sum += tl.load(p_in + o_in, mask=(o_t < T)[:, None] & m_l[None, :], other=0.0)
    tl.store(p_out + o_l, tl.sum(b_sum, 0), mask=m_l)


@triton.jit
def merge_moments_kernel(
    p_in, p_count, p_out, T, C, VECTOR: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """p_in [T, 2, C] = (mean, M2) over p_count [T] elements each -> p_out [2, C] = (mean, var).

    Chan's formula for T parts at once, in two passes over them:
    mean = m + sum n_t (mean_t - m) / n, with the first part's mean for m, so that nothing large is
    summed, and n var = sum M2_t + n_t (mean_t - mean)^2.
    """
    if VECTOR:
        C = C // 4 * 4
    o_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    p_mean = p_in + o_c
    m_first = m_c & (tl.load(p_count + tl.zeros_like(o_c)) > 0.0)
    b_first = tl.load(p_mean, mask=m_first, other=0.0)  # [BLOCK_C]
    b_n = tl.zeros([BLOCK_T], tl.float32)
    b_sum = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    for t in range(0, T, BLOCK_T):
        o_t = t + tl.arange(0, BLOCK_T)
        b_count = tl.load(p_count + o_t, mask=o_t < T, other=0.0)
        m = (b_count > 0.0)[:, None] & m_c[None, :]
        o_mean = o_t.to(tl.int64)[:, None] * 2 * C
        b_mean = tl.load(p_mean[None, :] + o_mean, mask=m, other=0.0)
        b_n += b_count
        b_sum += b_count[:, None] * (b_mean - b_first[None, :])
    n = tl.maximum(tl.sum(b_n, 0), 1.0)
    b_merged = b_first + tl.sum(b_sum, 0) / n  # [BLOCK_C]
    b_m2 = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    for t in range(0, T, BLOCK_T):
        o_t = t + tl.arange(0, BLOCK_T)
        b_count = tl.load(p_count + o_t, mask=o_t < T, other=0.0)
        m = (b_count > 0.0)[:, None] & m_c[None, :]
        o_mean = o_t.to(tl.int64)[:, None] * 2 * C
        b_away = tl.load(p_mean[None, :] + o_mean, mask=m, other=0.0) - b_merged[None, :]
        b_m2 += tl.load(p_mean[None, :] + o_mean + C, mask=m, other=0.0)
        b_m2 += b_count[:, None] * (b_away * b_away)
    tl.store(p_out + o_c, b_merged, mask=m_c)
    tl.store(p_out + C + o_c, tl.sum(b_m2, 0) / n, mask=m_c)


def _block_t(T: int, L: int) -> int:
    """Rows of a block: 4, 16, 64 or 256, the least that covers T; 64 where columns abound."""
    most = 64 if L >= _WIDE else 256
    return next(rows for rows in (4, 16, 64, 256) if rows >= min(T, most))


def launch_sum(partials: Tensor, out: Tensor, T: int, L: int) -> None:
    """partials [T, L] -> out [L] = the sum over T; fp32, contiguous."""
    block_t = _block_t(T, L)
    block_l = min(4096 // block_t, 256)
    kernel: Any = sum_kernel[(triton.cdiv(L, block_l),)]
    kernel(
        partials, out, T, L, VECTOR=L % 4 == 0,
        BLOCK_T=block_t, BLOCK_L=block_l, num_warps=4,
    )  # fmt: skip


def launch_merge_moments(partials: Tensor, counts: Tensor, out: Tensor, T: int, C: int) -> None:
    """partials [T, 2, C] = (mean, M2), counts [T] (0: ignored) -> out [2, C] = (mean, M2 / n)."""
    block_t = max(_block_t(T, C), 16)
    block_c = min(4096 // block_t, 64)
    kernel: Any = merge_moments_kernel[(triton.cdiv(C, block_c),)]
    kernel(
        partials, counts, out, T, C, VECTOR=C % 4 == 0,
        BLOCK_T=block_t, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip
