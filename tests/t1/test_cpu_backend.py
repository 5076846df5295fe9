"""``backend="cpu"``: every instruction set, several threads, whole models, and what it refuses.

The ops' named cases are those of tests/ops, with the best instruction set and one thread.
"""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import effnet_fast as ef
from effnet_fast import _C
from effnet_fast.backends import BackendUnavailableError
from effnet_fast.limits import tensors
from effnet_fast.ops import library as op
from effnet_fast.stock import import_torchvision
from tests.cases import DEPTHWISE, POINTWISE, Case, affine, gradient_like
from tests.error_rule import assert_within
from tests.ops import test_backward as backward
from tests.ops import test_forward as forward
from tests.ops.calls import NAMES, arguments, call

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
ISAS = pytest.mark.parametrize("isa", _C.cpu_isas())
OTHER_ISAS = pytest.mark.parametrize("isa", _C.cpu_isas()[:-1])


@pytest.fixture
def threads() -> Iterator[None]:
    """Three: images and channels of tests/ops/calls.py divide unevenly among them."""
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


def in_fp64(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tree_map(lambda v: v.double() if isinstance(v, Tensor) else v, args)


def check_against_reference(name: str, dtype: torch.dtype) -> None:
    """In fp64 the truth, in the type itself the base."""
    args = arguments(name, dtype)
    ours, base = call(name, args, "cpu"), call(name, args, "reference")
    truth = call(name, in_fp64(args), "reference")
    for i, (mine, theirs, true) in enumerate(zip(ours, base, truth, strict=True)):
        n = max(args[0].numel() // max(true.numel(), 1), 1)
        terms = true / n**0.5 if true.numel() else None
        assert_within(mine, theirs, true, f"result {i}", terms=terms, n=n)


@ISAS
@pytest.mark.parametrize("name", NAMES)
def test_instruction_sets(name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels that fill no block of 16, rows that fill no tile of pixels."""
    monkeypatch.setenv("EFFNET_FAST_CPU_ISA", isa)
    check_against_reference(name, torch.float32)


#: A kernel and stride of each kind that is compiled in, one that is not, widths, a slice, no image.
KINDS = ("b0-stage1", "b0-stage2-down", "b0-stage3-down", "stride3", "k7", "c-not-8", "c-9",
         "odd-wide", "sliced", "batch-0")  # fmt: skip


@OTHER_ISAS
@TYPES
@pytest.mark.parametrize("case", [c for c in DEPTHWISE if c.name in KINDS], ids=str)
def test_depthwise_by_other_instruction_sets(
    case: Case, dtype: torch.dtype, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFNET_FAST_CPU_ISA", isa)
    forward.test_depthwise_training(case, dtype, "cpu")
    forward.test_bn_residual(case, dtype, "cpu")
    backward.test_depthwise_bwd(case, True, dtype, "cpu")
    backward.test_gradient_on_load(case, dtype, "cpu")


@OTHER_ISAS
@TYPES
@pytest.mark.parametrize("case", [c for c in POINTWISE if c.c * c.k < 2**14], ids=str)
def test_pointwise_by_other_instruction_sets(
    case: Case, dtype: torch.dtype, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFNET_FAST_CPU_ISA", isa)
    forward.test_pointwise_training(case, dtype, "cpu")
    backward.test_pointwise_bwd_project(case, dtype, "cpu")


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", NAMES)
def test_threads(name: str) -> None:
    check_against_reference(name, torch.float32)
    args = arguments(name, torch.float32)
    first, second = call(name, args, "cpu"), call(name, args, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "not deterministic"


def test_sums_over_many_pixels() -> None:
    """50 thousand values to a channel, whose mean is 30 times their deviation."""
    case = Case("large", "sums of many parts", 2, 8, 160, 160, 1, k=8, mean=30)
    forward.test_pointwise_training(case, torch.float32, "cpu")
    backward.test_pointwise_bwd_project(case, torch.float32, "cpu")
    backward.test_gradient_on_load(case, torch.float32, "cpu")


def many_pixels(name: str) -> tuple[Any, ...]:
    """An op's arguments: tens of thousands of values to a channel, or means far from a corner's."""
    if name == "depthwise":
        x, w = gradient_like((1, 672, 14, 14), torch.float32) + 1, torch.randn(672, 1, 5, 5)
        return x, w, 1, [2, 2, 2, 2], None, "identity", [], 0.0, "identity", "stats"
    torch.manual_seed(1)
    x, g, y = (gradient_like((8, c, 224, 224), torch.float32) for c in (16, 16, 8))
    a, norm, w = affine(16), affine(16), torch.randn(8, 16, 1, 1)
    behind = (y, y, x, w, torch.randn(4, 8), None, "identity", None, None)
    return {
        "bn_bwd_reduce": (g, x, norm, a, "silu", None, None),
        "se_bwd_reduce": (g, x, a, "silu", norm),
        "pointwise_bwd": (*behind, a, "silu", None, norm, None, False, True),
    }[name]


@pytest.mark.parametrize("name", ["depthwise", "bn_bwd_reduce", "se_bwd_reduce", "pointwise_bwd"])
def test_sums_are_as_exact_as_torchs(name: str) -> None:
    """Each row by itself, and with nothing granted for another order of summation."""
    args = many_pixels(name)
    sides = [call(name, args, "cpu"), call(name, args, "reference")]
    sides.append(call(name, in_fp64(args), "reference"))
    sums = [[t for t in side if t.numel() < 2**16] for side in sides]
    for i, results in enumerate(zip(*sums, strict=True)):
        for j, row in enumerate(zip(*results, strict=True)):
            assert_within(*row, f"row {j} of result {i}")


VECTORS = pytest.mark.parametrize("kind", ["fp32", "bf16", "strided"])


def vectors(kind: str, count: int) -> list[Tensor]:
    """Positive ones of 37 values, in fp32, bf16 or every other of a longer one."""
    if kind == "strided":
        return [v[::2] for v in torch.rand(count, 74) + 0.5]
    dtype = torch.float32 if kind == "fp32" else torch.bfloat16
    return list((torch.rand(count, 37) + 0.5).to(dtype))


def check(name: str, args: tuple[Any, ...]) -> None:
    """Results and what is updated in place: the arguments are the reference's afterwards."""
    sides = []
    for backend, own in (("cpu", args), ("reference", args), ("reference", in_fp64(args))):
        # Views are rebuilt on their own memory, so that they stay strided.
        mine = copy.deepcopy(own)
        sides.append([*call(name, mine, backend), *tensors(mine)])
    for i, results in enumerate(zip(*sides, strict=True)):
        assert_within(*results, f"result {i}")


@VECTORS
@pytest.mark.parametrize("absent", [(), (0,), (1,), (0, 1)], ids=str)
def test_bn_fold(kind: str, absent: tuple[int, ...]) -> None:
    *bn, mean, var = vectors(kind, 4)
    parameters = [None if i in absent else v for i, v in enumerate(bn)]
    for eps in (1e-3, 0.0):
        args = (*parameters, mean, var, eps)
        ours = op.bn_fold(*args, torch.float32, "cpu")
        base = op.bn_fold(*args, torch.float32, "reference")
        truth = op.bn_fold(*in_fp64(args), torch.float64, "reference")
        for results in zip(ours, base, truth, strict=True):
            assert_within(*results)


@VECTORS
@pytest.mark.parametrize("momentum", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_bn_finalize(kind: str, momentum: float, count: int) -> None:
    """The running statistics are updated where they lie, in their own type."""
    running = vectors(kind, 2)
    stats = torch.stack(vectors("fp32", 2))
    check("bn_finalize", (stats, *vectors(kind, 2), *running, count, momentum, 1e-3))
    check("bn_finalize", (stats, None, None, *running, count, momentum, 1e-3))
    check("bn_finalize", (stats, *vectors(kind, 2), None, None, count, momentum, 1e-3))


def test_bn_finalize_leaves_alone_what_lies_between() -> None:
    whole = torch.zeros(2, 8)
    op.bn_finalize(torch.ones(2, 4), None, None, whole[0, ::2], whole[1, ::2], 9, 1.0, 0.0, "cpu")
    assert torch.equal(whole[0], torch.tensor([1.0, 0.0]).repeat(4))
    assert torch.equal(whole[1, 1::2], torch.zeros(4))


def test_bn_finalize_rounds_to_even() -> None:
    """Halfway between two bf16 values, up and down, and NaN, which stays what it is."""
    means = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1 + 2**-8 + 2**-20, torch.nan])
    running = torch.zeros(2, 5, dtype=torch.bfloat16)
    op.bn_finalize(torch.stack((means, means)), None, None, *running, 9, 1.0, 0.0, "cpu")
    assert torch.equal(running[0].nan_to_num(), means.bfloat16().nan_to_num())
    assert running[0, 4].isnan()


@VECTORS
@pytest.mark.parametrize("batch_stats", [True, False])
@pytest.mark.parametrize("count", [0, 1, 1000])
def test_bn_bwd_coef(kind: str, batch_stats: bool, count: int) -> None:
    sums, norm = torch.randn(2, 37), torch.rand(2, 37) + 0.5
    for weight in (vectors(kind, 1)[0], None):
        check("bn_bwd_coef", (sums, norm, weight, count, batch_stats))
        check("bn_bwd_coef", (sums.t().contiguous().t(), norm, weight, count, batch_stats))


#: (T, N, C, R): one image, a few, more than a register's; channels beside whole registers of every
#: instruction set; no image; sums of several parts.
MLPS = ((1, 1, 40, 6), (3, 1, 19, 3), (2, 2, 16, 4), (1, 7, 33, 1), (4, 17, 50, 21), (1, 0, 8, 2),
        (1, 9, 600, 24), (1, 1, 600, 24))  # fmt: skip


def check_mlp(case: tuple[int, ...], act: str, dtype: torch.dtype) -> None:
    t, n, c, r = case
    mlp = torch.randn(r, c, 1, 1) / c**0.5, torch.randn(r), torch.randn(c, r, 1, 1), torch.randn(c)
    weights = [v.to(dtype) for v in mlp]
    check("se_gate", (torch.randn(t, n, c), *weights, act, 3))
    sums, pooled = torch.randn(5, n, c), torch.randn(n, c)
    check("se_gate_bwd", (sums, torch.rand(n, c), pooled, *weights[:3], act, 20))


@ISAS
@pytest.mark.parametrize("case", MLPS, ids=str)
def test_mlps(case: tuple[int, ...], isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFNET_FAST_CPU_ISA", isa)
    check_mlp(case, "silu", torch.float32)


@TYPES
@pytest.mark.parametrize("act", ["identity", "relu", "relu6", "silu"])
def test_mlps_by_activation_and_type(act: str, dtype: torch.dtype) -> None:
    check_mlp((2, 6, 37, 9), act, dtype)


@ISAS
def test_gates_of_extreme_logits(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """0, 1 and NaN where torch has them."""
    monkeypatch.setenv("EFFNET_FAST_CPU_ISA", isa)
    logits = torch.tensor([-torch.inf, -200.0, -88.0, 0.0, 88.0, 200.0, torch.inf, torch.nan])
    zeros = torch.zeros(1, 8, 1, 1), torch.zeros(1), torch.zeros(8, 1, 1, 1)
    gate = op.se_gate(torch.zeros(1, 1, 8), *zeros, logits, "silu", 1, "cpu")[0]
    exact = torch.sigmoid(logits.double())
    assert_within(gate, torch.sigmoid(logits), exact)


@pytest.mark.usefixtures("threads")
def test_mlps_by_threads() -> None:
    """Enough to do for several, and the same bits each time and by one alone."""
    check_mlp((1, 16, 480, 20), "silu", torch.float32)
    mlp = torch.randn(20, 480, 1, 1), torch.randn(20), torch.randn(480, 20, 1, 1)
    pool, gate, sums = torch.randn(1, 16, 480), torch.rand(16, 480), torch.randn(5, 16, 480)
    found = []
    for threads in (3, 3, 1):
        torch.set_num_threads(threads)
        forward_ = op.se_gate(pool, *mlp, torch.zeros(480), "silu", 1, "cpu")
        found.append([forward_, *op.se_gate_bwd(sums, gate, pool[0], *mlp, "silu", 20, "cpu")])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def gradients(model: nn.Module, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Of the mean cross entropy of one training step, and the logits."""
    logits = model(x)
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(F.cross_entropy(logits, target), parameters)
    return {"logits": logits.detach(), **dict(zip(names, found, strict=True))}


def test_gradients_of_a_whole_model() -> None:
    """Against torchvision's in fp64, all parameters of a stage as one result.

    Three times, for rounding grows on the way back: what is largest in one is a matter of chance.
    """
    stock = import_torchvision().models.efficientnet_b0
    options = {"num_classes": 10, "dropout": 0.0, "stochastic_depth_prob": 0.0}
    base = stock(**options).train()
    truth, ours = stock(**options).double().train(), ef.efficientnet_b0(backend="cpu", **options)
    truth.load_state_dict(base.state_dict())
    ours.load_state_dict(base.state_dict())
    ours.train()
    found: dict[str, list[list[Tensor]]] = {}
    for _ in range(3):
        x, target = torch.randn(6, 3, 70, 61), torch.arange(6)
        for side, model in enumerate((ours, base, truth)):
            for key, v in gradients(model, x.to(next(model.parameters()).dtype), target).items():
                stage = ".".join(key.split(".")[:2])
                found.setdefault(stage, [[], [], []])[side].append(v.flatten())
    for stage, sides in found.items():
        assert_within(*(torch.cat(side) for side in sides), stage)
    running = [
        torch.cat([b.flatten() for key, b in m.named_buffers() if "num" not in key])
        for m in (ours, base, truth)
    ]
    assert_within(*running, "running statistics")


def test_auto_takes_it() -> None:
    x = torch.randn(2, 3, 40, 33)
    model = ef.efficientnet_lite0(num_classes=3).eval()
    explicit = ef.efficientnet_lite0(num_classes=3, backend="cpu").eval()
    explicit.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(x), explicit(x))
        with ef.use_backend("reference"):
            assert not torch.equal(model(x), explicit(x))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x.half(), "takes float32 and bfloat16 in native CPU code, not torch.float16"),
        (lambda x: x.double(), "not torch.float64"),
        (lambda x: x.contiguous(), "wants channels_last activations"),
    ],
)
def test_what_it_refuses(change: object, reason: str) -> None:
    """By name an error; "auto" takes the reference."""
    assert callable(change)
    x = change(torch.randn(2, 8, 6, 5).contiguous(memory_format=torch.channels_last))
    w, v = torch.randn(8, 1, 3, 3).to(x.dtype), torch.ones(8)
    with pytest.raises(BackendUnavailableError, match=reason):
        ef.ops.depthwise_conv_bn_act(x, w, v, v, v, v, backend="cpu")
    assert torch.equal(
        ef.ops.depthwise_conv_bn_act(x, w, v, v, v, v),
        ef.ops.depthwise_conv_bn_act(x, w, v, v, v, v, backend="reference"),
    )


def test_sums_in_bf16_are_refused() -> None:
    """They come from a pass over a map, which makes them in fp32."""
    half, v = torch.rand(2, 4).bfloat16(), torch.rand(4)
    pool, mlp = half[None], (torch.rand(3, 4, 1, 1), torch.rand(3), torch.rand(4, 3, 1, 1), v)
    for name, args in {
        "bn_finalize": (half, v, v, None, None, 9, 0.1, 1e-3),
        "bn_bwd_coef": (half.float(), half, v, 9, True),
        "se_gate": (pool, *mlp, "silu", 1),
        "se_gate_bwd": (torch.rand(5, 2, 4), half.float(), half, *mlp[:3], "silu", 9),
    }.items():
        with pytest.raises(BackendUnavailableError, match="sums over a map in float32 in native"):
            call(name, args, "cpu")
    affine_, _ = op.bn_finalize(half, v, v, None, None, 9, 0.1, 1e-3, "auto")
    assert affine_.dtype == torch.bfloat16  # the reference's


def test_an_unknown_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFNET_FAST_CPU_ISA", "mmx")
    x = gradient_like((1, 4, 2, 2), torch.float32)
    with pytest.raises(ValueError, match="unknown instruction set 'mmx'; this machine has"):
        op.se_pool(x, None, "silu", "cpu")


def test_channels_that_are_not_innermost_are_not_misread() -> None:
    """One pixel of a larger map: why_not cannot tell it from a weight, the op can."""
    x = torch.randn(2, 8, 4, 4)[:, :, :1, :1]
    with pytest.raises(ValueError, match="channels innermost"):
        op.se_pool(x, None, "silu", "cpu")
