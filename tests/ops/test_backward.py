"""Every backward op on its named cases, by the error rule.

An op rebuilds the gradient of a raw output ``y`` from what lies behind it (batch norm, activation,
gate, stochastic depth, squeeze) and differentiates the convolution before it. Stock PyTorch does
the same in two steps of autograd, in fp64 for the truth and in the type itself for the base, from
the very same rounded inputs.
"""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from effnet_fast import reference
from effnet_fast.ops import library as op
from effnet_fast.ops.checks import resolve_padding
from tests.cases import (
    BACKENDS,
    DEPTHWISE,
    FLOATS,
    INTERPRETED,
    POINTWISE,
    Case,
    activation_input,
    gate,
    gradient_like,
)
from tests.eager import ACT, Norm
from tests.error_rule import assert_within

pytestmark = [
    pytest.mark.parametrize("backend", BACKENDS),
    pytest.mark.parametrize("dtype", FLOATS, ids=str),
]


class Carried(NamedTuple):
    """A batch norm as the ops carry it: affine, norm [2,C] and coef [4,C], in fp32."""

    affine: Tensor
    norm: Tensor
    coef: Tensor


class Behind(NamedTuple):
    """What lies behind a raw output ``y``: its batch norm, activation, and the gradients there."""

    y: Tensor
    bn: Norm
    act: str
    g: Tensor | None
    gate: Tensor | None = None
    drop: Tensor | None = None
    dpool: Tensor | None = None

    def differentiate(self, t: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """(dy, dgamma, dbeta) by autograd in the type ``t``."""
        y, bn = self.y.to(t).requires_grad_(), self.bn.to(t)
        u = ACT[self.act](bn(y))
        outputs, grads = [], []
        if self.g is not None:
            v = u if self.gate is None else u * self.gate.to(t)[:, :, None, None]
            outputs += [v if self.drop is None else v * self.drop.to(t).view(-1, 1, 1, 1)]
            grads += [self.g.to(t)]
        if self.dpool is not None:
            outputs += [u.sum((2, 3))]
            grads += [self.dpool.to(t)]
        dy, dgamma, dbeta = torch.autograd.grad(outputs, [y, bn.gamma, bn.beta], grads)
        return dy, dgamma, dbeta

    def carried(self) -> Carried:
        """From the exact sums."""
        _, dgamma, dbeta = self.differentiate(torch.float64)
        affine, norm = fold(self.bn, self.y)
        sums, count = torch.stack((dbeta, dgamma)), self.y.numel() // self.y.shape[1]
        coef = reference.bn_bwd_coef(
            sums, norm, self.bn.gamma.double(), count, self.bn.training
        )  # fmt: skip
        return Carried(affine.float(), norm.float(), coef.float())


def fold(bn: Norm, y: Tensor) -> tuple[Tensor, Tensor]:
    """The exact affine and norm of ``bn`` on ``y``."""
    y, bn = y.double(), bn.to(torch.float64)
    mean, var = bn.mean, bn.var
    if bn.training:
        mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
    return reference.bn_fold(
        bn.gamma.detach(), bn.beta.detach(), mean, var, bn.eps, torch.float64
    )  # fmt: skip


def norm_of(channels: int, n_values: int) -> Norm:
    """By batch statistics where there is a batch to speak of: of 4 values, what a gradient keeps
    when its mean and its slope along xhat are taken away is rounding for the most part."""
    return Norm.random(channels, training=n_values > 8)


def assert_sum(ours: Tensor, base: Tensor, truth: Tensor, what: str, n: int) -> None:
    """A sum of ``n`` terms of random sign is sqrt(n) times their rms: the rule's terms."""
    n = max(n, 1)
    assert_within(ours, base.float(), truth, what, terms=truth / n**0.5, n=n)


def assert_map(ours: Tensor, base: Tensor, truth: Tensor, what: str) -> None:
    _, c, h, w = truth.shape
    assert ours.stride() == (h * w * c, 1, w * c, c), "not channels_last"
    assert_within(ours, base, truth, what)


@pytest.mark.parametrize("case", DEPTHWISE, ids=str)
def test_gradient_on_load(case: Case, dtype: torch.dtype, backend: str) -> None:
    """bn_bwd_reduce and bn_residual_bwd, with every term of the gradient."""
    n, c, pixels = case.n, case.c, case.n * case.h * case.w
    y = gradient_like((n, c, case.h, case.w), dtype) + case.mean
    drop, dpool = torch.rand(n), torch.randn(n, c) / (case.h * case.w)
    bn = norm_of(c, pixels)
    behind = Behind(y, bn, "silu", gradient_like(y.shape, dtype), None, drop, dpool)
    sides = [behind.differentiate(t) for t in (dtype, torch.float64)]
    a = behind.carried()
    sums = op.bn_bwd_reduce(behind.g, y, a.norm, a.affine, "silu", drop, dpool, backend)
    assert sums.shape == (2, c)
    # The summands themselves: of one channel the sum may be small by chance.
    exact = [v.double() for v in (behind.g, y, a.affine, drop, dpool, a.norm)]
    g64, y64, affine64, drop64, dpool64, norm64 = exact
    h = reference.bn_residual_bwd(g64, y64, None, affine64, "silu", None, drop64, dpool64)
    hx = h * ((y64 - norm64[0].view(1, -1, 1, 1)) * norm64[1].view(1, -1, 1, 1))
    for i, (what, terms) in enumerate((("sum h", h), ("sum h xhat", hx))):
        base, truth = sides[0][2 - i].float(), sides[1][2 - i]
        summands = terms if pixels else None
        assert_within(sums[i], base, truth, what, terms=summands, n=pixels)
    dy = op.bn_residual_bwd(
        behind.g, y, a.coef, a.affine, "silu", None, drop, dpool, backend
    )  # fmt: skip
    assert_map(dy, sides[0][0], sides[1][0], "dy")


@pytest.mark.parametrize("act", ["identity", "relu", "relu6"])
def test_gradient_through_other_activations(act: str, dtype: torch.dtype, backend: str) -> None:
    y = 3 * gradient_like((3, 24, 5, 7), dtype)
    gated = gate(3, 24)
    bn, g = Norm.random(24, training=True), gradient_like(y.shape, dtype)
    behind = Behind(y, bn, act, g)
    sides = [behind.differentiate(t) for t in (dtype, torch.float64)]
    a = behind.carried()
    sums = op.bn_bwd_reduce(g, y, a.norm, a.affine, act, None, None, backend)
    assert_sum(sums[0], sides[0][2], sides[1][2], "sum h", 105)
    assert_sum(sums[1], sides[0][1], sides[1][1], "sum h xhat", 105)
    behind = behind._replace(gate=gated)
    sides = [behind.differentiate(t) for t in (dtype, torch.float64)]
    a = behind.carried()
    dy = op.bn_residual_bwd(g, y, a.coef, a.affine, act, gated, None, None, backend)
    assert_map(dy, sides[0][0], sides[1][0], "dy")


@pytest.mark.parametrize("case", [c for c in POINTWISE if c.n], ids=str)
def test_pooled_gradient_alone(case: Case, dtype: torch.dtype, backend: str) -> None:
    """The head: no map-sized gradient at all, in bn_bwd_reduce and in pointwise_bwd."""
    n, k, pixels = case.n, case.k, case.n * case.h * case.w
    x = activation_input(case, dtype)
    w = (torch.randn(k, case.c, 1, 1) / case.c**0.5).to(dtype)
    y = gradient_like((n, k, case.h, case.w), dtype)
    dpool = torch.randn(n, k)
    behind = Behind(y, norm_of(k, pixels), "silu", None, dpool=dpool)
    sides = [behind.differentiate(t) for t in (dtype, torch.float64)]
    a = behind.carried()
    sums = op.bn_bwd_reduce(None, y, a.norm, a.affine, "silu", None, dpool, backend)
    assert_sum(sums[0], sides[0][2], sides[1][2], "sum h", pixels)
    assert_sum(sums[1], sides[0][1], sides[1][1], "sum h xhat", pixels)
    dx, dw, none = op.pointwise_bwd(
        None, y, x, w, a.coef, a.affine, "silu", None, dpool, None, "identity", None, None, None,
        True, True, backend,
    )  # fmt: skip
    grads = [
        convolution_grads(t, x, w, side[0])
        for t, side in zip((dtype, torch.float64), sides, strict=True)
    ]
    assert_map(dx, grads[0][0], grads[1][0], "dx")
    assert_sum(dw, grads[0][1], grads[1][1], "dw", pixels)
    assert none.numel() == 0


def convolution_grads(
    t: torch.dtype, x: Tensor, w: Tensor, dy: Tensor, stride: int = 1,
    pads: tuple[int, int, int, int] = (0, 0, 0, 0), groups: int = 1,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(dx, dw) of a convolution by autograd in the type ``t``."""
    top, bottom, left, right = pads
    x, w = x.detach().to(t).requires_grad_(), w.to(t).requires_grad_()
    y = F.conv2d(F.pad(x, (left, right, top, bottom)), w, None, stride, groups=groups)
    dx, dw = torch.autograd.grad(y, [x, w], dy)
    return dx, dw


class Prologue(NamedTuple):
    """``gate * act(bn(x))`` before a convolution, in one type, with its gradients."""

    x: Tensor
    z: Tensor  # bn(x)
    a: Tensor  # the convolution's operand
    bn: Norm

    @staticmethod
    def run(t: torch.dtype, x: Tensor, bn: Norm, gate: Tensor | None) -> "Prologue":
        x, bn = x.to(t).detach().requires_grad_(), bn.to(t)
        z = bn(x)
        a = F.silu(z)
        return Prologue(x, z, a if gate is None else a * gate.to(t)[:, :, None, None], bn)


@pytest.mark.parametrize("case", DEPTHWISE, ids=str)
@pytest.mark.parametrize("prologue", [True, False], ids=["prologue", "plain"])
def test_depthwise_bwd(case: Case, prologue: bool, dtype: torch.dtype, backend: str) -> None:
    """Gate and squeeze behind, batch norm and SiLU before: what MBConv has. Plain: a skip
    connection's gradient added on store. Each half alone gives the same numbers."""
    n, c = case.n, case.c
    x = activation_input(case, dtype)
    w = torch.randn(c, 1, case.kernel, case.kernel).to(dtype)
    pads = resolve_padding(case.padding, x.shape, case.kernel, case.stride)
    top, bottom, left, right = pads
    p = (case.h + top + bottom - case.kernel) // case.stride + 1
    q = (case.w + left + right - case.kernel) // case.stride + 1
    y = gradient_like((n, c, p, q), dtype)
    g, dpool = gradient_like(y.shape, dtype), torch.randn(n, c) / (p * q)
    behind = Behind(y, norm_of(c, n * p * q), "silu", g, gate(n, c), None, dpool)
    first = norm_of(c, n * case.h * case.w)
    skip = None if prologue else gradient_like(x.shape, dtype)
    affine, norm = (v.float() for v in fold(first, x))
    load = (affine, "silu", norm) if prologue else (None, "identity", None)
    a = behind.carried()
    arguments = (
        g, y, x, w, case.stride, list(pads), a.coef, a.affine, "silu", behind.gate, dpool, *load
    )  # fmt: skip
    dx, dw, sums = op.depthwise_bwd(*arguments, skip, True, True, backend)

    sides = []
    for t in (dtype, torch.float64):
        dy, _, _ = behind.differentiate(t)
        if not prologue:
            da, d_weight = convolution_grads(t, x, w, dy, case.stride, pads, c)
            assert skip is not None
            sides.append((da + skip.to(t), d_weight))
            continue
        before = Prologue.run(t, x, first, None)
        da, d_weight = convolution_grads(t, before.a, w, dy, case.stride, pads, c)
        wanted = [before.z, before.bn.beta, before.bn.gamma]
        dz, dbeta, dgamma = torch.autograd.grad(before.a, wanted, da)
        sides.append((dz, d_weight, dbeta, dgamma))
    base, truth = sides
    assert_map(dx, base[0], truth[0], "dx")
    assert_sum(dw, base[1], truth[1], "dw", n * p * q)
    assert sums.shape == ((2, c) if prologue else (0,))
    for i in range(2 if prologue else 0):
        assert_sum(sums[i], base[2 + i], truth[2 + i], f"sums[{i}]", n * case.h * case.w)

    only_dx, none, again = op.depthwise_bwd(*arguments, skip, True, False, backend)
    assert torch.equal(only_dx, dx)
    assert torch.equal(again, sums)
    assert none.numel() == 0
    none, only_dw, no_sums = op.depthwise_bwd(*arguments, None, False, True, backend)
    assert_sum(only_dw, base[1], truth[1], "dw alone", n * p * q)
    assert none.numel() == no_sums.numel() == 0


def five_sums(t: torch.dtype, da: Tensor, x: Tensor, bn: Norm) -> Tensor:
    """Those of se_bwd_reduce, in the type ``t``."""
    x, bn = x.to(t), bn.to(t)
    z = bn(x).detach().requires_grad_()
    a = F.silu(z)
    (slope,) = torch.autograd.grad(a, z, torch.ones_like(a), retain_graph=True)
    (gs,) = torch.autograd.grad(a, z, da)
    xhat = bn.normalised(x)
    terms = (gs, slope, gs * xhat, slope * xhat, da * a.detach())
    return torch.stack([v.sum((2, 3)) for v in terms])


@pytest.mark.parametrize("case", POINTWISE, ids=str)
def test_pointwise_bwd_project(case: Case, dtype: torch.dtype, backend: str) -> None:
    """Batch norm, SiLU and gate before, batch norm and stochastic depth behind; the five sums."""
    n, c, hw = case.n, case.c, case.h * case.w
    x = activation_input(case, dtype)
    w = (torch.randn(case.k, c, 1, 1) / c**0.5).to(dtype)
    y = gradient_like((n, case.k, case.h, case.w), dtype)
    g, gated, drop = gradient_like(y.shape, dtype), gate(n, c), torch.rand(n)
    behind = Behind(y, norm_of(case.k, n * hw), "identity", g, None, drop)
    first = norm_of(c, n * hw)
    affine, norm = (v.float() for v in fold(first, x))
    a = behind.carried()
    head = (g, y, x, w, a.coef, None, "identity", drop, None, affine, "silu", gated, norm)
    dx, dw, sums = op.pointwise_bwd(*head, None, True, True, backend)

    sides = []
    for t in (dtype, torch.float64):
        dy, _, _ = behind.differentiate(t)
        operand = Prologue.run(t, x, first, gated).a
        da, d_weight = convolution_grads(t, operand, w, dy)
        sides.append((da, d_weight, five_sums(t, da, x, first)))
    base, truth = sides
    assert_map(dx, base[0], truth[0], "dx")
    assert_sum(dw, base[1], truth[1], "dw", n * hw)
    assert sums.shape == (5, n, c)
    for i in range(5):
        assert_sum(sums[i], base[2][i], truth[2][i], f"sums[{i}]", hw)

    only_dx, none, again = op.pointwise_bwd(*head, None, True, False, backend)
    assert_map(only_dx, base[0], truth[0], "dx alone")
    for i in range(5):
        assert_sum(again[i], base[2][i], truth[2][i], f"sums[{i}] without dw", hw)
    assert none.numel() == 0
    none, only_dw, no_sums = op.pointwise_bwd(*head, None, False, True, backend)
    assert_sum(only_dw, base[1], truth[1], "dw alone", n * hw)
    assert none.numel() == no_sums.numel() == 0


@pytest.mark.parametrize("case", POINTWISE, ids=str)
def test_pointwise_bwd_expand(case: Case, dtype: torch.dtype, backend: str) -> None:
    """A plain input, and a skip connection's gradient added on store."""
    n, pixels = case.n, case.n * case.h * case.w
    x = activation_input(case, dtype)
    w = (torch.randn(case.k, case.c, 1, 1) / case.c**0.5).to(dtype)
    y = gradient_like((n, case.k, case.h, case.w), dtype)
    g, skip = gradient_like(y.shape, dtype), gradient_like(x.shape, dtype)
    behind = Behind(y, norm_of(case.k, pixels), "identity", g)
    a = behind.carried()
    head = (
        g, y, x, w, a.coef, None, "identity", None, None, None, "identity", None, None,
    )  # fmt: skip
    dx, dw, sums = op.pointwise_bwd(*head, skip, True, True, backend)
    sides = []
    for t in (dtype, torch.float64):
        da, d_weight = convolution_grads(t, x, w, behind.differentiate(t)[0])
        sides.append((da + skip.to(t), d_weight))
    base, truth = sides
    assert_map(dx, base[0], truth[0], "dx")
    assert_sum(dw, base[1], truth[1], "dw", pixels)
    assert sums.numel() == 0
    only_dx, none, _ = op.pointwise_bwd(*head, skip, True, False, backend)
    assert_map(only_dx, base[0], truth[0], "dx alone")
    assert none.numel() == 0
    none, only_dw, _ = op.pointwise_bwd(*head, None, False, True, backend)
    assert_sum(only_dw, base[1], truth[1], "dw alone", pixels)
    assert none.numel() == 0


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("size", [(3, 32, 32), (3, 33, 21), (1, 8, 8), (4, 1, 1)], ids=str)
def test_stem_bwd(
    size: tuple[int, int, int], padding: str, dtype: torch.dtype, backend: str
) -> None:
    c, h, w_ = size
    x = torch.randn(2, c, h, w_).to(dtype)  # NCHW: the image as users bring it
    w = (torch.randn(32, c, 3, 3) / (9 * c) ** 0.5).to(dtype)
    pads = resolve_padding(padding, x.shape, 3, 2)
    p, q = -(-h // 2), -(-w_ // 2)
    y = gradient_like((2, 32, p, q), dtype)
    behind = Behind(y, Norm.random(32, training=True), "silu", gradient_like(y.shape, dtype))
    a = behind.carried()
    head = (behind.g, y, x, w, 2, list(pads), a.coef, a.affine, "silu")
    dx, dw = op.conv2d_bwd(*head, True, True, backend)
    sides = [
        convolution_grads(t, x, w, behind.differentiate(t)[0], 2, pads)
        for t in (dtype, torch.float64)
    ]
    assert_map(dx, sides[0][0], sides[1][0], "dx")
    assert_sum(dw, sides[0][1], sides[1][1], "dw", 2 * p * q)
    none, only_dw = op.conv2d_bwd(*head, False, True, backend)
    assert_sum(only_dw, sides[0][1], sides[1][1], "dw alone", 2 * p * q)
    assert none.numel() == 0


@pytest.mark.parametrize("case", DEPTHWISE, ids=str)
def test_se_bwd_reduce(case: Case, dtype: torch.dtype, backend: str) -> None:
    x = activation_input(case, dtype)
    g, hw = gradient_like(x.shape, dtype), case.h * case.w
    bn = norm_of(case.c, case.n * hw)
    affine, norm = (v.float() for v in fold(bn, x))
    ours = op.se_bwd_reduce(g, x, affine, "silu", norm, backend)
    base, truth = (five_sums(t, g.to(t), x, bn) for t in (dtype, torch.float64))
    assert ours.shape == truth.shape
    for i in range(5):
        assert_sum(ours[i], base[i], truth[i], f"sums[{i}]", hw)


@pytest.mark.parametrize(
    ("n", "c", "r"),
    [(3, 50, 1), (2, 40, 3), (1, 96, 4), (5, 24, 30), (0, 8, 2), (17, 130, 9)]
    + [(9, 300, 20), (131, 24, 53), (1, 2100, 7)] * (not INTERPRETED),
)
@pytest.mark.parametrize("act", ["silu", "relu"])
def test_se_gate_bwd(
    n: int, c: int, r: int, act: str, dtype: torch.dtype, backend: str
) -> None:  # fmt: skip
    """The gate's gradient is sums[4]: autograd through the MLP gives the rest."""
    mlp = [torch.randn(r, c, 1, 1), torch.randn(r), torch.randn(c, r, 1, 1), torch.randn(c)]
    mlp = [(v / max(v[0].numel(), 1) ** 0.5).to(dtype) for v in mlp]
    sums, pooled, hw = torch.randn(5, n, c), torch.randn(n, c), 20

    def differentiate(t: torch.dtype) -> list[Tensor]:
        p, w1, b1, w2, b2 = (
            v.detach().to(t).requires_grad_() for v in (pooled, mlp[0].flatten(1), mlp[1],
                                               mlp[2].flatten(1), mlp[3])
        )  # fmt: skip
        s = torch.sigmoid(F.linear(ACT[act](F.linear(p, w1, b1)), w2, b2))
        dp, *grads = torch.autograd.grad(s, [p, w1, b1, w2, b2], sums[4].to(t))
        dpool = dp / hw
        gs, slope, gx, sx = (v.to(t) for v in sums[:4])
        s = s.detach()
        beta, gamma = (s * gs + dpool * slope).sum(0), (s * gx + dpool * sx).sum(0)
        return [dpool, *grads, torch.stack((beta, gamma))]

    exact = torch.sigmoid(
        F.linear(
            ACT[act](F.linear(pooled.double(), mlp[0].double().flatten(1), mlp[1].double())),
            mlp[2].double().flatten(1), mlp[3].double(),
        )
    ).float()  # fmt: skip
    ours = op.se_gate_bwd(sums, exact, pooled, *mlp[:3], act, hw, backend)
    names = ("dpool", "dw_reduce", "db_reduce", "dw_expand", "db_expand", "bn_sums")
    shapes = [(n, c), (r, c, 1, 1), (r,), (c, r, 1, 1), (c,), (2, c)]
    assert [tuple(v.shape) for v in ours] == shapes
    sides = zip(differentiate(dtype), differentiate(torch.float64), strict=True)
    for name, mine, (base, truth) in zip(names, ours, sides, strict=True):
        assert_sum(mine.flatten(), base.flatten(), truth.flatten(), name, c if n else 0)


@pytest.mark.parametrize("training", [True, False], ids=["batch", "running"])
@pytest.mark.parametrize("c", [1, 24, 130, 1152])
def test_bn_bwd_coef(c: int, training: bool, dtype: torch.dtype, backend: str) -> None:
    """fp32 whatever the activations are; gamma in any type, or none."""
    sums, gamma = torch.randn(2, c), (torch.rand(c) + 0.5).to(dtype)
    norm = torch.stack((torch.randn(c), torch.rand(c) + 0.5))
    for weight in (gamma, None):
        ours = op.bn_bwd_coef(sums, norm, weight, 77, training, backend)
        base, truth = (
            reference.bn_bwd_coef(
                sums.to(t), norm.to(t), None if weight is None else weight.to(t), 77, training
            )
            for t in (torch.float32, torch.float64)
        )
        for row, name in enumerate(("a", "b", "mean", "c")):
            assert_within(ours[row], base[row], truth[row], name)
