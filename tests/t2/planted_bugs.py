"""Bugs that a kernel could have, as edits of kernels/*.py, each with the tests that must see it."""

from __future__ import annotations

from tests.t2.plant import Job

F32 = "triton-torch.float32"


def forward(test: str, *cases: str) -> list[str]:
    """Node ids of tests/ops/test_forward.py, in fp32."""
    return [f"tests/ops/test_forward.py::{test}[{case}-{F32}]" for case in cases]


def backward(test: str, *cases: str) -> list[str]:
    """Node ids of tests/ops/test_backward.py, in fp32."""
    return [f"tests/ops/test_backward.py::{test}[{case}-{F32}]" for case in cases]


def few_programs(*ops: str) -> list[str]:
    """Node ids of tests/ops/test_few_programs.py, in fp32."""
    return [
        f"tests/ops/test_few_programs.py::test_many_tiles_to_a_program[{op}-{F32}]" for op in ops
    ]


DEPTHWISE = forward("test_depthwise_training", "odd-tall", "stride2-even")
DEPTHWISE_POOL = forward("test_depthwise_inference", "silu-odd-tall")
DEPTHWISE_BWD = backward("test_depthwise_bwd", "prologue-odd-tall", "prologue-stride2-even")
DEPTHWISE_BWD_PLAIN = backward("test_depthwise_bwd", "plain-odd-tall")
POINTWISE = forward("test_pointwise_training", "odd")
PROJECT = forward("test_pointwise_inference", "project-odd")
POOL = forward("test_pointwise_pool", "odd")
PROJECT_BWD = backward("test_pointwise_bwd_project", "odd")
EXPAND_BWD = backward("test_pointwise_bwd_expand", "odd")
STEM = forward("test_stem", "(3, 33, 21)-same")
STEM_BWD = backward("test_stem_bwd", "(3, 33, 21)-same")
SE = forward("test_se_pool_and_gate", "odd-tall")
SE_BWD = backward("test_se_bwd_reduce", "odd-tall")
GATE_BWD = backward("test_se_gate_bwd", "silu-17-130-9")
RESIDUAL = forward("test_bn_residual", "odd-tall")
FINALIZE = forward("test_bn_finalize", "0.1-odd-tall")
ON_LOAD = backward("test_gradient_on_load", "odd-tall")
MANY_TILES = few_programs("pointwise")
MANY_IMAGES = few_programs("bn_bwd_reduce")
COEF = backward("test_bn_bwd_coef", "24-batch")

BUGS = [
    # Reductions in two stages
    Job(
        "the last partial is left out", DEPTHWISE_BWD, "reduce.py",
        "b_sum += tl.load(p_in + o_in, mask=(o_t < T)[:, None] & m_l[None, :], other=0.0)",
        "b_sum += tl.load(p_in + o_in, mask=(o_t < T - 1)[:, None] & m_l[None, :], other=0.0)",
    ),
    Job(
        "the mean is the first part's", DEPTHWISE, "reduce.py",
        "b_merged = b_first + tl.sum(b_sum, 0) / n",
        "b_merged = b_first",
    ),
    Job(
        "parts' variances are added without Chan's term", DEPTHWISE, "reduce.py",
        "b_m2 += b_count[:, None] * (b_away * b_away)",
        "b_m2 += 0.0 * (b_away * b_away)",
    ),
    Job(
        "the variance is the unbiased one", DEPTHWISE, "reduce.py",
        "tl.store(p_out + C + o_c, tl.sum(b_m2, 0) / n, mask=m_c)",
        "tl.store(p_out + C + o_c, tl.sum(b_m2, 0) / (n - 1.0), mask=m_c)",
    ),
    # What all kernels share
    Job(
        "the slope of silu lacks a term", ON_LOAD, "common.py",
        "return value, s + value * (1.0 - s)",
        "return value, s",
    ),
    Job(
        "Chan's formula without the distance of the means", MANY_TILES, "common.py",
        "m2 + other_m2 + delta * delta * count * share",
        "m2 + other_m2",
    ),
    Job(
        "pixels of a slice lie as if it were whole", forward("test_bn_residual", "sliced"),
        "common.py",
        "n.to(tl.int64) * stride_n + h.to(tl.int64) * stride_h + w.to(tl.int64) * stride_w",
        "n.to(tl.int64) * stride_n + h.to(tl.int64) * W * stride_w + w.to(tl.int64) * stride_w",
    ),
    Job(
        "a walker stops after its first image", MANY_IMAGES, "walk.py",
        "last = tl.minimum(first + IMAGES_EACH, IMAGES)",
        "last = tl.minimum(first + 1, IMAGES)",
    ),
    # Depthwise, forward
    Job(
        "the halo is a column too wide", DEPTHWISE, "depthwise.py",
        "m_w = (w >= 0) & (w < W)\n",
        "m_w = (w >= 0) & (w <= W)\n",
    ),
    Job(
        "the prologue is not masked on the padding", DEPTHWISE, "depthwise.py",
        "b = tl.where(mask, b, 0.0)",
        "b = tl.where(mask, b, b)",
    ),
    Job(
        "rows behind the last count in the pool", DEPTHWISE_POOL, "depthwise.py",
        "b_sum += tl.where(m_out[:, None], b_y, 0.0)",
        "b_sum += b_y",
    ),
    Job(
        "the shift of the batch norm is missing", DEPTHWISE_POOL, "depthwise.py",
        "b_y = b_y * b_scale + b_shift",
        "b_y = b_y * b_scale",
    ),
    # Depthwise, backward
    Job(
        "the parity of stride 2 is wrong", DEPTHWISE_BWD, "depthwise_bwd.py",
        "if (i - a) % S == 0:",
        "if (i - a) % S == S - 1:",
    ),
    Job(
        "the squeeze's gradient is missing", DEPTHWISE_BWD, "depthwise_bwd.py",
        "b_dpool = b_gate * load_channels(p_dpool + n.to(tl.int64) * C, o_c, m_c)",
        "b_dpool = 0.0 * load_channels(p_dpool + n.to(tl.int64) * C, o_c, m_c)",
    ),
    Job(
        "the gate is not in the gradient", DEPTHWISE_BWD, "depthwise_bwd.py",
        "b_gate *= load_channels(p_gate + n.to(tl.int64) * C, o_c, m_c)",
        "b_gate *= 1.0",
    ),
    Job(
        "rows of coef are swapped", DEPTHWISE_BWD, "depthwise_bwd.py",
        "b_mean = load_channels(p_coef + 2 * C, o_c, m_c)\n"
        "    b_constant = load_channels(p_coef + 3 * C, o_c, m_c)",
        "b_mean = load_channels(p_coef + 3 * C, o_c, m_c)\n"
        "    b_constant = load_channels(p_coef + 2 * C, o_c, m_c)",
    ),
    Job(
        "dy is not masked outside the map", DEPTHWISE_BWD, "depthwise_bwd.py",
        "return tl.where(mask, b_h + (b_slope * (b_y - b_mean) + b_constant), 0.0)",
        "return b_h + (b_slope * (b_y - b_mean) + b_constant)",
    ),
    Job(
        "batch norm 1's sums before the slope", DEPTHWISE_BWD, "depthwise_bwd.py",
        "b_da = tl.where(mask, b_da * b_slope, 0.0)",
        "b_da = tl.where(mask, b_da, 0.0)",
    ),
    # Pointwise
    Job(
        "every image takes the first one's gate", POINTWISE, "pointwise.py",
        "p_gate += tl.cast(i_group, tl.int64) * C",
        "p_gate += tl.cast(i_group, tl.int64) * 0",
    ),
    Job(
        "the mean of a tile counts its whole block", POINTWISE, "pointwise.py",
        "rows = tl.minimum(R - i_tile * BLOCK_M, BLOCK_M).to(tl.float32)",
        "rows = tl.minimum(BLOCK_M + 0 * R, BLOCK_M).to(tl.float32)",
    ),
    Job(
        "the residual is the block's first rows", PROJECT, "pointwise.py",
        "p_rows = pixel_rows(p_residual, i_m, H, W, r_n, r_h, r_w, R_DENSE, BLOCK_M)",
        "p_rows = pixel_rows(p_residual, i_m * 0, H, W, r_n, r_h, r_w, R_DENSE, BLOCK_M)",
    ),
    Job(
        "the head's mean takes in the block's tail", POOL, "pointwise.py",
        "b_sum += tl.sum(tl.where(m_r[:, None], b_y, 0.0), 0)",
        "b_sum += tl.sum(b_y, 0)",
    ),
    Job(
        "stochastic depth is not in the gradient", PROJECT_BWD, "gradient.py",
        ").to(tl.float32) * drop",
        ").to(tl.float32) * 1.0",
    ),
    Job(
        "a product's operand lacks the gate", PROJECT_BWD, "common.py",
        "b_u *= tl.load(p_gate + o_c, mask=m_c, other=0.0)[None, :]",
        "b_u *= 1.0",
    ),
    Job(
        "a sum of five is another's", PROJECT_BWD, "gradient.py",
        "_add(p_sums + 2 * STRIDE, fresh, tl.sum(b_gs * b_xhat, 0), o_c, m_c)",
        "_add(p_sums + 2 * STRIDE, fresh, tl.sum(b_slope * b_xhat, 0), o_c, m_c)",
    ),
    # The stem
    Job(
        "a tap reads the pixel beside it", STEM, "conv2d.py",
        "+ kw * tl.cast(stride_w, tl.int64)",
        "+ (kw + 1) * tl.cast(stride_w, tl.int64)",
    ),
    Job(
        "the input gradient does not see the columns' parity", STEM_BWD, "conv2d_bwd.py",
        "m_m &= (p * STRIDE == h - kh) & (q * STRIDE == w - kw)",
        "m_m &= p * STRIDE == h - kh",
    ),
    # Squeeze-and-excitation
    Job(
        "the squeeze takes in the block's tail", SE, "squeeze_excite.py",
        "b_sum += tl.where(m, b_a, 0.0)",
        "b_sum += b_a",
    ),
    Job(
        "strips of the pool are left out", SE, "squeeze_excite.py",
        "for t in tl.static_range(1, STRIPS):",
        "for t in tl.static_range(2, STRIPS):",
    ),
    Job(
        "the slopes of the tail are summed", SE_BWD, "squeeze_excite.py",
        "b_slope = tl.where(m, b_slope, 0.0)",
        "b_slope = tl.where(m, b_slope, b_slope)",
    ),
    Job(
        "the gate's term is missing", GATE_BWD, "squeeze_excite_bwd.py",
        "b_h += b_gate * tl.load(p_sums + o_nc, mask=m, other=0.0)",
        "b_h += 0.0 * tl.load(p_sums + o_nc, mask=m, other=0.0)",
    ),
    Job(
        "the slope of the sigmoid lacks a factor", GATE_BWD, "squeeze_excite_bwd.py",
        "* b_gate * (1.0 - b_gate)",
        "* b_gate",
    ),
    # Batch norm
    Job(
        "the last row of a block is not written", RESIDUAL, "batch_norm.py",
        "tl.store(p_out + o_out, b_y.to(TYPE), mask=m)",
        "tl.store(p_out + o_out, b_y.to(TYPE), mask=m & (o_p < stop - 1)[:, None])",
    ),
    Job(
        "the running variance is the biased one", FINALIZE, "batch_norm.py",
        "lerp(b_old, b_var * unbias, momentum)",
        "lerp(b_old, b_var, momentum)",
    ),
    Job(
        "coef's c has the wrong sign", COEF, "batch_norm.py",
        "b_shift = -b_a * b_mean_h",
        "b_shift = b_a * b_mean_h",
    ),
]  # fmt: skip
