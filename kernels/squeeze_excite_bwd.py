"""Backward of the squeeze-and-excitation MLP, in two launches.

The first walks the channels and leaves each image's hidden layer and its gradient, [N, R]. The
second owns channels and walks the images in order: the pool's gradient, the sums of the batch norm
before the gate, and the weights' gradients, all [N, C] or [R, C] reductions that no other program
shares. All in fp32; products as in :mod:`squeeze_excite`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl

from . import tuning
from .common import activate_and_slope, multiple, vector
from .squeeze_excite import IMAGES

if TYPE_CHECKING:
    from torch import Tensor


class GateBwdConfig(NamedTuple):
    """Channels of a block of the first launch; images and channels of one of the second."""

    block_k: int
    block_n: int
    block_c: int
    block_r: int
    num_warps: int
    num_stages: int


def default_gate_bwd_config(C: int, R: int) -> GateBwdConfig:
    """Hidden channels by 16 or 32, so that B0's 4 to 48 give several programs an image block."""
    block_k = min(max(triton.next_power_of_2(C), 16), 64)
    block_r = min(max(triton.next_power_of_2(R), 16), 32)
    # 16 bytes a thread of a tile of 16 x 16 too.
    return GateBwdConfig(block_k, 16, min(block_k, 32), block_r, 4 if block_k > 16 else 2, 3)


def gate_bwd_candidates(default: GateBwdConfig, _key: str) -> list[GateBwdConfig]:
    """What the tuner tries beside the default."""
    return [
        GateBwdConfig(block_k, block_n, block_c, block_r, warps, 3)
        for block_k in (64, 128)
        for block_n in (16, 32, 64)
        for block_c in (32, 64)
        for block_r in {16, 32, default.block_r}
        for warps in (4, 8)
    ]


@triton.jit
def load_logit_grad(p_sums, p_gate, o_nc, m, NC):
    """The gradient of the gate's logit: sum of g * act over the pixels, times the slope."""
    b_gate = tl.load(p_gate + o_nc, mask=m, other=0.0)
    return tl.load(p_sums + 4 * NC + o_nc, mask=m, other=0.0) * b_gate * (1.0 - b_gate)


@triton.jit
def se_hidden_bwd_kernel(
    p_sums, p_gate, p_pooled, p_w_reduce, p_b_reduce, p_w_expand, p_hidden, p_du,
    N, C, R,
    ACT: tl.constexpr, VECTOR: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """sums [5, N, C], gate, pooled [N, C] -> hidden [N, R] and du [N, R], of act's argument."""
    C = multiple(C, VECTOR)
    o_n = tl.program_id(0) * IMAGES + tl.arange(0, IMAGES)
    m_n = o_n < N
    o_r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    m_r = o_r < R
    b_u = tl.zeros([IMAGES, BLOCK_R], tl.float32)
    b_dh = tl.zeros([IMAGES, BLOCK_R], tl.float32)
    for k in range(0, C, BLOCK_K):
        o_k = k + tl.arange(0, BLOCK_K)
        m_k = o_k < C
        o_nk = o_n[:, None] * C + o_k[None, :]
        m_nk = m_n[:, None] & m_k[None, :]
        m_rk = m_r[:, None] & m_k[None, :]
        b_pooled = tl.load(p_pooled + o_nk, mask=m_nk, other=0.0)
        b_w = tl.load(p_w_reduce + o_r[:, None] * C + o_k[None, :], mask=m_rk, other=0.0)
        b_u = tl.dot(b_pooled, tl.trans(b_w.to(tl.float32)), b_u, input_precision="tf32x3")
        b_dlogit = load_logit_grad(p_sums, p_gate, o_nk, m_nk, N * C)
        m_kr = m_k[:, None] & m_r[None, :]
        b_w = tl.load(p_w_expand + o_k[:, None] * R + o_r[None, :], mask=m_kr, other=0.0)
        b_dh = tl.dot(b_dlogit, b_w.to(tl.float32), b_dh, input_precision="tf32x3")
    b_bias = tl.load(p_b_reduce + o_r, mask=m_r, other=0.0).to(tl.float32)
    b_hidden, b_slope = activate_and_slope(b_u + b_bias[None, :], ACT, tl.float32)
    o_nr = o_n[:, None] * R + o_r[None, :]
    m_nr = m_n[:, None] & m_r[None, :]
    tl.store(p_hidden + o_nr, b_hidden, mask=m_nr)
    tl.store(p_du + o_nr, b_dh * b_slope, mask=m_nr)


@triton.jit
def se_channels_bwd_kernel(
    p_sums, p_gate, p_pooled, p_w_reduce, p_hidden, p_du,
    p_dpool, p_dw_reduce, p_db_reduce, p_dw_expand, p_db_expand, p_bn_sums,
    N, C, R, inv_count,
    VECTOR: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Per channel block (axis 0): job 0 (axis 1) the images' part, job j the j-th block of R.

    Job 0: dpool [N, C], db_expand [C], bn_sums [2, C] = (sum h, sum h * xhat).
    Job j: dw_reduce [R, C], dw_expand [C, R]; the first channel block also db_reduce [R].
    """
    C = multiple(C, VECTOR)
    i_job = tl.program_id(1)
    o_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    if i_job == 0:
        b_db = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
        b_h = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
        b_hx = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
        for n in range(0, N, BLOCK_N):
            o_n = n + tl.arange(0, BLOCK_N)
            m_n = o_n < N
            b_dpool = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
            for r in range(0, R, BLOCK_R):
                o_r = r + tl.arange(0, BLOCK_R)
                m_r = o_r < R
                m_nr = m_n[:, None] & m_r[None, :]
                m_rc = m_r[:, None] & m_c[None, :]
                b_du = tl.load(p_du + o_n[:, None] * R + o_r[None, :], mask=m_nr, other=0.0)
                b_w = tl.load(p_w_reduce + o_r[:, None] * C + o_c[None, :], mask=m_rc, other=0.0)
                b_dpool = tl.dot(b_du, b_w.to(tl.float32), b_dpool, input_precision="tf32x3")
            b_dpool *= inv_count
            o_nc = o_n[:, None] * C + o_c[None, :]
            m = m_n[:, None] & m_c[None, :]
            tl.store(p_dpool + o_nc, b_dpool, mask=m)
            b_db += load_logit_grad(p_sums, p_gate, o_nc, m, N * C)
            b_gate = tl.load(p_gate + o_nc, mask=m, other=0.0)
            b_h += b_gate * tl.load(p_sums + o_nc, mask=m, other=0.0)
            b_h += b_dpool * tl.load(p_sums + N * C + o_nc, mask=m, other=0.0)
            b_hx += b_gate * tl.load(p_sums + 2 * N * C + o_nc, mask=m, other=0.0)
            b_hx += b_dpool * tl.load(p_sums + 3 * N * C + o_nc, mask=m, other=0.0)
        tl.store(p_db_expand + o_c, tl.sum(b_db, 0), mask=m_c)
        tl.store(p_bn_sums + o_c, tl.sum(b_h, 0), mask=m_c)
        tl.store(p_bn_sums + C + o_c, tl.sum(b_hx, 0), mask=m_c)
    else:
        o_r = (i_job - 1) * BLOCK_R + tl.arange(0, BLOCK_R)
        m_r = o_r < R
        b_dw_reduce = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        b_dw_expand = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        b_db_reduce = tl.zeros([BLOCK_R], tl.float32)
        for n in range(0, N, BLOCK_N):
            o_n = n + tl.arange(0, BLOCK_N)
            m_n = o_n < N
            o_nc = o_n[:, None] * C + o_c[None, :]
            m = m_n[:, None] & m_c[None, :]
            o_rn = o_n[None, :] * R + o_r[:, None]  # [BLOCK_R, BLOCK_N]
            m_rn = m_n[None, :] & m_r[:, None]
            b_du = tl.load(p_du + o_rn, mask=m_rn, other=0.0)
            b_pooled = tl.load(p_pooled + o_nc, mask=m, other=0.0)
            b_dw_reduce = tl.dot(b_du, b_pooled, b_dw_reduce, input_precision="tf32x3")
            b_hidden = tl.load(p_hidden + o_rn, mask=m_rn, other=0.0)
            b_dlogit = load_logit_grad(p_sums, p_gate, o_nc, m, N * C)
            b_dw_expand = tl.dot(b_hidden, b_dlogit, b_dw_expand, input_precision="tf32x3")
            b_db_reduce += tl.sum(b_du, 1)
        m_rc = m_r[:, None] & m_c[None, :]
        tl.store(p_dw_reduce + o_r[:, None] * C + o_c[None, :], b_dw_reduce, mask=m_rc)
        tl.store(p_dw_expand + o_c[None, :] * R + o_r[:, None], b_dw_expand, mask=m_rc)
        if tl.program_id(0) == 0:
            tl.store(p_db_reduce + o_r, b_db_reduce, mask=m_r)


def launch_se_gate_bwd(
    sums: Tensor, gate: Tensor, pooled: Tensor,
    w_reduce: Tensor, b_reduce: Tensor, w_expand: Tensor,
    hidden: Tensor, du: Tensor, dpool: Tensor,
    dw_reduce: Tensor, db_reduce: Tensor, dw_expand: Tensor, db_expand: Tensor, bn_sums: Tensor,
    size: tuple[int, int, int], count: int, act: str, config: GateBwdConfig,
) -> None:  # fmt: skip
    """sums [5, N, C], ``size`` (N, C, R) -> the gradients; hidden, du [N, R] are the workspace."""
    N, C, R = size
    blocks_r = triton.cdiv(R, config.block_r)
    kernel: Any = se_hidden_bwd_kernel[(triton.cdiv(N, IMAGES.value), blocks_r)]
    kernel(
        sums, gate, pooled, w_reduce, b_reduce, w_expand, hidden, du, N, C, R,
        ACT=act, VECTOR=vector(C), BLOCK_K=config.block_k, BLOCK_R=config.block_r,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    kernel = se_channels_bwd_kernel[(triton.cdiv(C, config.block_c), 1 + blocks_r)]
    kernel(
        sums, gate, pooled, w_reduce, hidden, du,
        dpool, dw_reduce, db_reduce, dw_expand, db_expand, bn_sums, N, C, R, 1.0 / count,
        VECTOR=vector(C), BLOCK_N=config.block_n, BLOCK_R=config.block_r, BLOCK_C=config.block_c,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


tuning.register("se_gate_bwd", gate_bwd_candidates)
