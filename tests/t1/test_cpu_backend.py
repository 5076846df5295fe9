"""``backend="cpu"``: every instruction set, several threads, whole models, and what it refuses.

The ops' named cases are those of tests/ops, with the best instruction set and one thread.
"""

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
