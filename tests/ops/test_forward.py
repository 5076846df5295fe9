"""Every forward op on its named cases, against stock PyTorch in fp64, by the error rule."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from effnet_fast.ops import library as op
from effnet_fast.ops.checks import resolve_padding
from effnet_fast.reference import POOL_ROWS
from tests.cases import (
    BACKENDS,
    DEPTHWISE,
    FLOATS,
    INTERPRETED,
    POINTWISE,
    Case,
    activation_input,
    affine,
    batch_norm,
    gate,
)
from tests.eager import ACT
from tests.error_rule import assert_within

pytestmark = [
    pytest.mark.parametrize("backend", BACKENDS),
    pytest.mark.parametrize("dtype", FLOATS, ids=str),
]


def scaled(x: Tensor, a: Tensor | None, act: str = "identity") -> Tensor:
    """``act(scale * x + shift)``, the affine in the type that x computes in."""
    if a is None:
        return ACT[act](x)
    a = a.to(torch.float64) if x.dtype == torch.float64 else a
    return ACT[act](x * a[0].view(1, -1, 1, 1) + a[1].view(1, -1, 1, 1)).to(x.dtype)


EPS = 1e-3


def normalised(y: Tensor, bn: list[Tensor | None], act: str) -> Tensor:
    """``act(bn(y))`` by running statistics."""
    weight, bias, mean, var = (
        v if v is None or y.dtype != torch.float64 else v.double() for v in bn
    )
    return ACT[act](F.batch_norm(y, mean, var, weight, bias, False, 0.0, EPS))


def moments(y: Tensor) -> Tensor:
    if y.numel() == 0:
        return y.new_zeros(2, y.shape[1])
    return torch.stack((y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)))


def assert_map(ours: Tensor, base: Tensor, truth: Tensor, **reduction: object) -> None:
    _, c, h, w = truth.shape
    assert ours.stride() == (h * w * c, 1, w * c, c), "not channels_last"
    assert_within(ours, base, truth, "y", **reduction)


def large_terms(case: Case, w: Tensor) -> dict[str, object]:
    """For the rule, where the input's mean is large: a convolution is then a sum of terms that are
    large beside what batch norm or an activation leave of it. ``w`` holds all scales on the way."""
    return {"terms": case.mean * w.double(), "n": w[0].numel()} if case.mean else {}


def scale_of(bn: list[Tensor | None]) -> Tensor:
    """What a batch norm multiplies by, [C,1,1,1]."""
    weight, _, _, var = bn
    assert weight is not None
    assert var is not None
    return (weight * torch.rsqrt(var + EPS)).view(-1, 1, 1, 1)


def assert_moments(stats: Tensor, base: Tensor, truth_y: Tensor) -> None:
    """Against torch's, whose sums on a CPU are fp64: ours may err as fp32 sums of fp32 y do.

    A y and a mean that are rounded move (y - mean)^2 by 2 |y - mean| |y| eps, which is what the
    variance loses where a channel's mean is many times its std.
    """
    truth = moments(truth_y)
    n = truth_y.numel() // max(truth_y.shape[1], 1)
    if not n:
        assert torch.equal(stats, torch.zeros_like(stats))
        return
    base_stats = moments(base.float())
    away = (truth_y - truth[0].view(1, -1, 1, 1)).abs()
    spread = away**2 + 2 * away * truth_y.abs()
    worst = spread.mean((0, 2, 3)).argmax()
    assert_within(stats[0], base_stats[0], truth[0], "mean", terms=truth_y / n, n=n)
    terms = spread[:, worst] / n
    assert_within(stats[1], base_stats[1], truth[1], "variance", terms=terms, n=n)


@pytest.mark.parametrize("case", DEPTHWISE, ids=str)
def test_depthwise_training(case: Case, dtype: torch.dtype, backend: str) -> None:
    """Affine and activation on load, statistics on store."""
    x, a = activation_input(case, dtype), affine(case.c)
    w = torch.randn(case.c, 1, case.kernel, case.kernel).to(dtype)
    pads = resolve_padding(case.padding, x.shape, case.kernel, case.stride)
    y, stats = op.depthwise(
        x, w, case.stride, pads, a, "silu", [], 0.0, "identity", "stats", backend
    )  # fmt: skip

    def eager(x: Tensor, w: Tensor) -> Tensor:
        top, bottom, left, right = pads
        padded = F.pad(scaled(x, a, "silu"), (left, right, top, bottom))
        return F.conv2d(padded, w, None, case.stride, groups=case.c)

    base, truth = eager(x, w), eager(x.double(), w.double())
    assert_map(y, base, truth, **large_terms(case, w * a[0].view(-1, 1, 1, 1)))
    assert_moments(stats, base, truth)


@pytest.mark.parametrize("case", DEPTHWISE, ids=str)
@pytest.mark.parametrize("act", ["silu", "relu6"])
def test_depthwise_inference(case: Case, dtype: torch.dtype, backend: str, act: str) -> None:
    """Batch norm and activation on store, and the squeeze by strips of rows."""
    x, bn = activation_input(case, dtype), batch_norm(case.c)
    w = torch.randn(case.c, 1, case.kernel, case.kernel).to(dtype)
    pads = resolve_padding(case.padding, x.shape, case.kernel, case.stride)
    y, pool = op.depthwise(
        x, w, case.stride, pads, None, "identity", bn, EPS, act, "pool", backend
    )  # fmt: skip

    def eager(x: Tensor, w: Tensor) -> Tensor:
        top, bottom, left, right = pads
        y = F.conv2d(F.pad(x, (left, right, top, bottom)), w, None, case.stride, groups=case.c)
        return normalised(y, bn, act)

    def strips(y: Tensor) -> Tensor:
        return torch.stack([rows.sum((2, 3)) for rows in y.split(POOL_ROWS, dim=2)])

    base, truth = eager(x, w), eager(x.double(), w.double())
    assert_map(y, base, truth, **large_terms(case, w * scale_of(bn)))
    n = POOL_ROWS * truth.shape[3]
    assert_within(pool, strips(base).float(), strips(truth), "pool", terms=truth, n=n)
    plain, none = op.depthwise(
        x, w, case.stride, pads, None, "identity", bn, EPS, act, "none", backend
    )  # fmt: skip
    assert torch.equal(plain, y)
    assert none.numel() == 0


@pytest.mark.parametrize("case", POINTWISE, ids=str)
def test_pointwise_training(case: Case, dtype: torch.dtype, backend: str) -> None:
    """Affine, activation and gate on load, statistics on store."""
    x, a, s = activation_input(case, dtype), affine(case.c), gate(case.n, case.c)
    w = (torch.randn(case.k, case.c, 1, 1) / case.c**0.5).to(dtype)
    y, stats = op.pointwise(
        x, w, a, "silu", s, [], 0.0, "identity", None, True, backend
    )  # fmt: skip

    def eager(x: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(scaled(x, a, "silu") * s.to(x.dtype)[:, :, None, None], w)

    base, truth = eager(x, w), eager(x.double(), w.double())
    assert_map(y, base, truth, **large_terms(case, w * a[0].view(1, -1, 1, 1)))
    assert_moments(stats, base, truth)


@pytest.mark.parametrize("case", POINTWISE, ids=str)
@pytest.mark.parametrize("variant", ["expand", "project"])
def test_pointwise_inference(case: Case, dtype: torch.dtype, backend: str, variant: str) -> None:
    """Expand: batch norm and activation on store. Project: gate on load, residual on store."""
    x, bn = activation_input(case, dtype), batch_norm(case.k)
    w = (torch.randn(case.k, case.c, 1, 1) / case.c**0.5).to(dtype)
    project = variant == "project"
    s = gate(case.n, case.c) if project else None
    r = torch.randn(case.n, case.k, case.h, case.w).to(dtype) if project else None
    r = None if r is None else r.contiguous(memory_format=torch.channels_last)
    act = "identity" if project else "silu"
    y, _ = op.pointwise(x, w, None, "identity", s, bn, EPS, act, r, False, backend)

    def eager(x: Tensor, w: Tensor) -> Tensor:
        y = F.conv2d(x if s is None else x * s.to(x.dtype)[:, :, None, None], w)
        y = normalised(y, bn, act)
        return y if r is None else y + r.to(y.dtype)

    terms = large_terms(case, w * scale_of(bn))
    assert_map(y, eager(x, w), eager(x.double(), w.double()), **terms)


@pytest.mark.parametrize("case", POINTWISE, ids=str)
def test_pointwise_pool(case: Case, dtype: torch.dtype, backend: str) -> None:
    x, bn = activation_input(case, dtype), batch_norm(case.k)
    w = (torch.randn(case.k, case.c, 1, 1) / case.c**0.5).to(dtype)
    pooled = op.pointwise_pool(x, w, bn, EPS, "silu", backend)

    def eager(x: Tensor, w: Tensor) -> Tensor:
        return normalised(F.conv2d(x, w), bn, "silu").mean((2, 3))

    assert_within(pooled, eager(x, w).float(), eager(x.double(), w.double()), "pooled")


@pytest.mark.parametrize("param", ["bf16 parameters", "no gamma", "no beta"])
def test_epilogue_batch_norm(param: str, dtype: torch.dtype, backend: str) -> None:
    """What a batch norm may be made of, in every op that has one in its epilogue."""
    c, k = 24, 40
    x = torch.randn(2, c, 6, 5).to(dtype).contiguous(memory_format=torch.channels_last)
    weights = {"depthwise": (c, 1, 3, 3), "pointwise": (k, c, 1, 1), "conv2d": (k, c, 3, 3)}
    for kind, shape in weights.items():
        bn = batch_norm(shape[0])
        if param == "bf16 parameters":
            bn = [None if v is None else v.bfloat16() for v in bn]
        bn[:2] = [None if param == "no gamma" else bn[0], None if param == "no beta" else bn[1]]
        w = (torch.randn(shape) / (shape[1] * shape[2] ** 2) ** 0.5).to(dtype)
        pads, groups = [shape[2] // 2] * 4, c if kind == "depthwise" else 1
        y = {
            "depthwise": lambda w=w, bn=bn, pads=pads: op.depthwise(
                x, w, 1, pads, None, "identity", bn, EPS, "relu", "none", backend
            )[0],
            "pointwise": lambda w=w, bn=bn: op.pointwise(
                x, w, None, "identity", None, bn, EPS, "relu", None, False, backend
            )[0],
            "conv2d": lambda w=w, bn=bn, pads=pads: op.conv2d(
                x, w, 1, pads, bn, EPS, "relu", False, backend
            )[0],
        }[kind]()
        full = [None if v is None else v.float() for v in bn]
        sides = [
            normalised(F.conv2d(x.to(t), w.to(t), None, 1, pads[0], 1, groups), full, "relu")
            for t in (dtype, torch.float64)
        ]
        assert_within(y, *sides, kind)


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("size", [(3, 32, 32), (3, 33, 21), (1, 8, 8), (4, 1, 1)], ids=str)
def test_stem(size: tuple[int, int, int], padding: str, dtype: torch.dtype, backend: str) -> None:
    c, h, w_ = size
    x, bn = torch.randn(2, c, h, w_).to(dtype), batch_norm(32)  # NCHW: as users bring an image
    w = (torch.randn(32, c, 3, 3) / (9 * c) ** 0.5).to(dtype)
    top, bottom, left, right = pads = resolve_padding(padding, x.shape, 3, 2)

    def eager(x: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (left, right, top, bottom)), w, None, 2)

    base, truth = eager(x, w), eager(x.double(), w.double())
    y, stats = op.conv2d(x, w, 2, pads, [], 0.0, "identity", True, backend)
    assert_map(y, base, truth)
    assert_moments(stats, base, truth)
    y, _ = op.conv2d(x, w, 2, pads, bn, EPS, "relu6", False, backend)
    assert_map(y, normalised(base, bn, "relu6"), normalised(truth, bn, "relu6"))


@pytest.mark.parametrize("case", DEPTHWISE, ids=str)
def test_se_pool_and_gate(case: Case, dtype: torch.dtype, backend: str) -> None:
    x, a = activation_input(case, dtype), affine(case.c)
    pooled = op.se_pool(x, a, "silu", backend)
    hw = case.h * case.w
    truth_map = scaled(x.double(), a, "silu")
    truth = truth_map.mean((2, 3))
    base = scaled(x, a, "silu").mean((2, 3)).float()
    assert_within(pooled, base, truth, "pooled", terms=truth_map / hw, n=hw)

    # As training passes it, and as strips of sums whose count is not theirs by chance.
    check_gate(pooled[None], max(1, case.c // 5), 1, dtype, backend)
    check_gate(torch.randn(3, case.n, case.c), max(1, case.c // 5), 7, dtype, backend)


def check_gate(pool: Tensor, r: int, count: int, dtype: torch.dtype, backend: str) -> None:
    """The gate of strips ``pool`` [T,N,C], by an MLP of width ``r`` with weights in ``dtype``."""
    c = pool.shape[2]
    mlp = [torch.randn(r, c, 1, 1), torch.randn(r), torch.randn(c, r, 1, 1)]
    mlp = [(v / max(v[0].numel(), 1) ** 0.5).to(dtype) for v in (*mlp, torch.randn(c))]

    def eager(p: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        return torch.sigmoid(F.linear(F.silu(F.linear(p, w1.flatten(1), b1)), w2.flatten(1), b2))

    squeezed = pool.double().sum(0) / count
    ours = op.se_gate(pool, *mlp, "silu", count, backend)
    in_type = eager(squeezed.to(dtype), *mlp).float()
    assert_within(ours, in_type, eager(squeezed, *[v.double() for v in mlp]), "gate")


#: (T, N, C, R): few and many strips and images, channels and weights that are no round number; the
#: large ones are not for the interpreter.
GATES = [(28, 9, 32, 8), (7, 5, 260, 10), (1, 17, 130, 9)]
GATES += [(2, 9, 672, 28), (1, 1, 1152, 48), (1, 2, 2100, 270)] * (not INTERPRETED)


@pytest.mark.parametrize(("t", "n", "c", "r"), GATES)
def test_se_gate(t: int, n: int, c: int, r: int, dtype: torch.dtype, backend: str) -> None:
    check_gate(torch.randn(t, n, c), r, 3 * t, dtype, backend)


@pytest.mark.parametrize("case", DEPTHWISE, ids=str)
def test_bn_residual(case: Case, dtype: torch.dtype, backend: str) -> None:
    x, a = activation_input(case, dtype), affine(case.c)
    r = torch.randn(x.shape).to(dtype).contiguous(memory_format=torch.channels_last)
    keep = (torch.arange(case.n) % 2).float() * 1.25
    s = gate(case.n, case.c)

    def eager(x: Tensor, r: Tensor) -> Tensor:
        y = scaled(x, a, "silu") * s.to(x.dtype)[:, :, None, None]
        return y * keep.to(x.dtype).view(-1, 1, 1, 1) + r

    ours = op.bn_residual(x, a, "silu", s, keep, r, backend)
    assert_map(ours, eager(x, r), eager(x.double(), r.double()))


@pytest.mark.parametrize("case", DEPTHWISE, ids=str)
@pytest.mark.parametrize("momentum", [0.1, 0.01, 1.0])
def test_bn_finalize(case: Case, dtype: torch.dtype, backend: str, momentum: float) -> None:
    """Running statistics and the affine, against F.batch_norm on the whole map."""
    x = activation_input(case, dtype)
    count = case.n * case.h * case.w
    if count == 1:
        pytest.skip("torch refuses batch statistics of one value")
    weight, bias = torch.rand(case.c) + 0.5, torch.randn(case.c)
    mean, var = torch.randn(case.c), torch.rand(case.c)
    stats = moments(x.double()).float()
    ours_mean, ours_var = mean.clone(), var.clone()
    a, norm = op.bn_finalize(
        stats, weight, bias, ours_mean, ours_var, count, momentum, 1e-3, backend
    )
    assert a.dtype == norm.dtype == torch.float32
    if count == 0:
        assert torch.equal(ours_mean, mean)
        assert torch.equal(ours_var, var)
        return
    results = {}
    for t in (torch.float32, torch.float64):
        m, v = mean.to(t, copy=True), var.to(t, copy=True)  # F.batch_norm moves them
        y = F.batch_norm(x.to(t), m, v, weight.to(t), bias.to(t), True, momentum, 1e-3)
        results[t] = (m, v, y)
    base, truth = results[torch.float32], results[torch.float64]
    assert_within(ours_mean, base[0], truth[0], "running mean")
    assert_within(ours_var, base[1], truth[1], "running variance")
    applied = op.bn_residual(x.float(), a, "identity", None, None, None, backend)
    # Stock's own kernel on a GPU takes the mean off first; scale and shift are two large terms.
    terms = large_terms(case, a[0].view(-1, 1, 1, 1))
    assert_within(applied, base[2], truth[2], "normalised", **terms)
    folded, _ = op.bn_fold(weight, bias, ours_mean, ours_var, 1e-3, torch.float32, backend)
    y = op.bn_residual(x.float(), folded, "identity", None, None, None, backend)
    frozen = [
        F.batch_norm(x.to(t), ours_mean.to(t), ours_var.to(t), weight.to(t), bias.to(t), False,
                     0.0, 1e-3)
        for t in (torch.float32, torch.float64)
    ]  # fmt: skip
    terms = large_terms(case, folded[0].view(-1, 1, 1, 1))
    assert_within(y, *frozen, "normalised by the running statistics", **terms)
