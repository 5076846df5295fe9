"""Every backward op of the reference in fp64 against torch's autograd through stock compositions.

The gradient of a raw convolution output is rebuilt on load from what lies behind it: batch norm,
activation, gate, stochastic depth and the squeeze. Each test lets autograd differentiate that
chain, and asks the op for the same numbers.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from effnet_fast.ops import library as op
from effnet_fast.ops.checks import resolve_padding
from tests.cases import DEPTHWISE, POINTWISE, Case, activation_input
from tests.eager import ACT

EPS = 1e-3

pytestmark = [
    pytest.mark.parametrize("backend", ["reference"]),
    pytest.mark.parametrize("batch_stats", [True, False], ids=["batch", "running"]),
]


class Norm:
    """A batch norm on a leaf ``y``, as torch computes it and as the ops carry it."""

    def __init__(self, y: Tensor, batch_stats: bool, backend: str) -> None:
        c = y.shape[1]
        self.batch_stats, self.backend = batch_stats, backend
        self.count = y.shape[0] * y.shape[2] * y.shape[3]
        self.gamma = (torch.rand(c).double() + 0.5).requires_grad_()
        self.beta = torch.randn(c).double().requires_grad_()
        mean, var = torch.randn(c).double(), torch.rand(c).double() + 0.5
        self.running = mean, var
        detached = y.detach()
        if batch_stats:
            mean = detached.mean((0, 2, 3))
            var = detached.var((0, 2, 3), correction=0)
        self.affine, self.norm = op.bn_fold(
            self.gamma.detach(), self.beta.detach(), mean, var, EPS, torch.float64, backend
        )

    def __call__(self, y: Tensor) -> Tensor:
        mean, var = self.running
        return F.batch_norm(
            y, mean.clone(), var.clone(), self.gamma, self.beta, self.batch_stats, 0.1, EPS
        )

    def coef(self) -> Tensor:
        """From the sums that autograd found: the gradients of beta and gamma."""
        return op.bn_bwd_coef(
            self.sums(), self.norm, self.gamma.detach(), self.count, self.batch_stats, self.backend
        )

    def sums(self) -> Tensor:
        assert self.beta.grad is not None
        assert self.gamma.grad is not None
        return torch.stack((self.beta.grad, self.gamma.grad))


def leaf(*shape: int) -> Tensor:
    t = torch.randn(*shape, dtype=torch.float64)
    if t.dim() == 4:
        t = t.contiguous(memory_format=torch.channels_last)
    return t.requires_grad_()


def grads_of(*tensors: Tensor) -> list[Tensor]:
    found = [t.grad for t in tensors]
    assert all(g is not None for g in found)
    return [g for g in found if g is not None]


SHAPES = [(3, 5, 4, 6), (2, 8, 1, 5), (1, 9, 7, 7), (4, 1, 3, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("act", ["identity", "silu", "relu", "relu6"])
def test_gradient_on_load(
    shape: tuple[int, int, int, int], act: str, batch_stats: bool, backend: str
) -> None:
    """bn_bwd_reduce, bn_bwd_coef and bn_residual_bwd with every term of the gradient."""
    n, c = shape[:2]
    y, g = leaf(*shape), torch.randn(shape, dtype=torch.float64)
    drop, dpool = torch.rand(n).double(), torch.randn(n, c).double()
    bn = Norm(y, batch_stats, backend)
    u = ACT[act](bn(y))
    (u * drop.view(-1, 1, 1, 1) * g + u * dpool[:, :, None, None]).sum().backward()
    sums = op.bn_bwd_reduce(g, y.detach(), bn.norm, bn.affine, act, drop, dpool, backend)
    assert_close(sums, bn.sums())
    dy = op.bn_residual_bwd(
        g, y.detach(), bn.coef(), bn.affine, act, None, drop, dpool, backend
    )  # fmt: skip
    assert_close(dy, *grads_of(y))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pooled_gradient_alone(
    shape: tuple[int, int, int, int], batch_stats: bool, backend: str
) -> None:
    """The head: no map-sized gradient at all."""
    y, dpool = leaf(*shape), torch.randn(shape[:2], dtype=torch.float64)
    bn = Norm(y, batch_stats, backend)
    (F.silu(bn(y)) * dpool[:, :, None, None]).sum().backward()
    sums = op.bn_bwd_reduce(None, y.detach(), bn.norm, bn.affine, "silu", None, dpool, backend)
    assert_close(sums, bn.sums())


@pytest.mark.parametrize("case", [c for c in DEPTHWISE if c.c < 200 and c.n], ids=str)
@pytest.mark.parametrize("prologue", [True, False], ids=["prologue", "plain"])
def test_depthwise_bwd(case: Case, prologue: bool, batch_stats: bool, backend: str) -> None:
    """Gate and squeeze behind, batch norm and SiLU before: what MBConv has."""
    n, c = case.n, case.c
    e = activation_input(case, torch.float64).requires_grad_()
    w = leaf(c, 1, case.kernel, case.kernel)
    top, bottom, left, right = pads = resolve_padding(
        case.padding, e.shape, case.kernel, case.stride
    )
    first = Norm(e, batch_stats, backend)
    z = first(e) if prologue else e
    z.retain_grad()
    a = F.silu(z) if prologue else z
    d = F.conv2d(F.pad(a, (left, right, top, bottom)), w, None, case.stride, groups=c)
    d.retain_grad()
    second = Norm(d, batch_stats, backend)
    gate, dpool = torch.rand(n, c).double(), torch.randn(n, c).double()
    g = torch.randn(d.shape, dtype=torch.float64)
    u = F.silu(second(d))
    skip = None if prologue else torch.randn(e.shape, dtype=torch.float64)
    loss = (u * gate[:, :, None, None] * g + u * dpool[:, :, None, None]).sum()
    (loss if skip is None else loss + (e * skip).sum()).backward()

    dx, dw, sums = op.depthwise_bwd(
        g, d.detach(), e.detach(), w.detach(), case.stride, pads, second.coef(), second.affine,
        "silu", gate, dpool, first.affine if prologue else None, "silu" if prologue else "identity",
        first.norm if prologue else None, skip, True, True, backend,
    )  # fmt: skip
    assert_close(dx, *grads_of(z if prologue else e))
    assert_close(dw, *grads_of(w))
    if prologue:
        assert_close(sums, first.sums())


@pytest.mark.parametrize("case", [c for c in POINTWISE if c.c * c.k < 30000 and c.n], ids=str)
def test_pointwise_bwd_project(case: Case, batch_stats: bool, backend: str) -> None:
    """Batch norm, SiLU and gate before, batch norm and stochastic depth behind; and the five sums,
    which must give the gate's gradient and, with a squeeze gradient q, the first norm's sums."""
    n, c, hw = case.n, case.c, case.h * case.w
    if n * hw == 1:
        pytest.skip("torch refuses batch statistics of one value")
    d, w = activation_input(case, torch.float64).requires_grad_(), leaf(case.k, c, 1, 1)
    gate = torch.rand(n, c, dtype=torch.float64).requires_grad_()
    first = Norm(d, batch_stats, backend)
    u = F.silu(first(d))
    gated = u * gate[:, :, None, None]
    gated.retain_grad()
    p = F.conv2d(gated, w)
    second = Norm(p, batch_stats, backend)
    drop, q = torch.rand(n).double(), torch.randn(n, c).double()
    g = torch.randn(p.shape, dtype=torch.float64)
    ((second(p) * drop.view(-1, 1, 1, 1) * g).sum() + (u.mean((2, 3)) * q).sum()).backward()

    da, dw, sums = op.pointwise_bwd(
        g, p.detach(), d.detach(), w.detach(), second.coef(), None, "identity", drop, None,
        first.affine, "silu", gate.detach(), first.norm, None, True, True, backend,
    )  # fmt: skip
    assert_close(da, *grads_of(gated))
    assert_close(dw, *grads_of(w))
    assert_close(sums[4], *grads_of(gate))
    s, dpool = gate.detach(), q / hw
    assert_close((s * sums[0] + dpool * sums[1]).sum(0), *grads_of(first.beta))
    assert_close((s * sums[2] + dpool * sums[3]).sum(0), *grads_of(first.gamma))


@pytest.mark.parametrize("case", [c for c in POINTWISE if c.c * c.k < 30000 and c.n], ids=str)
def test_pointwise_bwd_expand(case: Case, batch_stats: bool, backend: str) -> None:
    """A plain input and a skip connection's gradient added on store; each half alone as well."""
    if case.n * case.h * case.w == 1:
        pytest.skip("torch refuses batch statistics of one value")
    x, w = activation_input(case, torch.float64).requires_grad_(), leaf(case.k, case.c, 1, 1)
    e = F.conv2d(x, w)
    bn = Norm(e, batch_stats, backend)
    g, skip = torch.randn(e.shape, dtype=torch.float64), torch.randn(x.shape, dtype=torch.float64)
    ((bn(e) * g).sum() + (x * skip).sum()).backward()
    arguments = (
        g, e.detach(), x.detach(), w.detach(), bn.coef(), None, "identity", None, None, None,
        "identity", None, None,
    )  # fmt: skip
    dx, dw, sums = op.pointwise_bwd(*arguments, skip, True, True, backend)
    assert_close(dx, *grads_of(x))
    assert_close(dw, *grads_of(w))
    assert sums.numel() == 0
    only_dx, none, _ = op.pointwise_bwd(*arguments, skip, True, False, backend)
    assert torch.equal(only_dx, dx)
    assert none.numel() == 0
    none, only_dw, _ = op.pointwise_bwd(*arguments, None, False, True, backend)
    assert torch.equal(only_dw, dw)
    assert none.numel() == 0


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("size", [(8, 8), (9, 6), (1, 1)], ids=str)
def test_stem_bwd(size: tuple[int, int], padding: str, batch_stats: bool, backend: str) -> None:
    x, w = leaf(3, 3, *size), leaf(8, 3, 3, 3)
    top, bottom, left, right = pads = resolve_padding(padding, x.shape, 3, 2)
    y = F.conv2d(F.pad(x, (left, right, top, bottom)), w, None, 2)
    bn = Norm(y, batch_stats, backend)
    g = torch.randn(y.shape, dtype=torch.float64)
    (F.silu(bn(y)) * g).sum().backward()
    dx, dw = op.conv2d_bwd(
        g, y.detach(), x.detach(), w.detach(), 2, pads, bn.coef(), bn.affine, "silu", True, True,
        backend,
    )  # fmt: skip
    assert_close(dx, *grads_of(x))
    assert_close(dw, *grads_of(w))


@pytest.mark.parametrize("r", [1, 3, 8])
@pytest.mark.parametrize("act", ["silu", "relu"])
def test_squeeze_excite_bwd(r: int, act: str, batch_stats: bool, backend: str) -> None:
    """The whole SE between two batch norms: gradients of the MLP and of the norm before it."""
    n, c, h, w = 3, 6, 4, 5
    d = leaf(n, c, h, w)
    mlp = [leaf(r, c, 1, 1), leaf(r), leaf(c, r, 1, 1), leaf(c)]
    bn = Norm(d, batch_stats, backend)
    u = ACT[act](bn(d))
    hidden = ACT[act](F.conv2d(u.mean((2, 3), keepdim=True), mlp[0], mlp[1]))
    g = torch.randn(d.shape, dtype=torch.float64)
    (u * torch.sigmoid(F.conv2d(hidden, mlp[2], mlp[3])) * g).sum().backward()

    plain = [v.detach() for v in mlp]
    pooled = op.se_pool(d.detach(), bn.affine, act, backend)
    gate = op.se_gate(pooled[None], *plain, act, 1, backend)
    sums = op.se_bwd_reduce(g, d.detach(), bn.affine, act, bn.norm, backend)
    dpool, *d_mlp, bn_sums = op.se_gate_bwd(sums, gate, pooled, *plain[:3], act, h * w, backend)
    for ours, theirs in zip(d_mlp, grads_of(*mlp), strict=True):
        assert_close(ours, theirs)
    assert_close(bn_sums, bn.sums())
    dy = op.bn_residual_bwd(
        g, d.detach(), bn.coef(), bn.affine, act, gate, None, dpool, backend
    )  # fmt: skip
    assert_close(dy, *grads_of(d))
