"""The ledger of bytes: hand-computed cases, linearity, saved tensors, the budgets and the gate."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d

from bench import traffic
from bench.ledger import Ledger, Row, Traffic, batch, moved, on_meta, per_image, training_step
from bench.schedules import BUDGETS, RESOLUTIONS, SCHEDULES, compiled_saved
from effnet_fast.stock import import_torchvision

BF16 = torch.bfloat16
# The budgets come from a model of the layers, to three digits; a wrong convention (batch norm's
# second pass, a view counted as a copy, a missing pass) is 3 % or more of the bytes.
BUDGET_PRECISION = 0.03


def meta(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def count(run: Callable[[], object]) -> dict[str, Row]:
    mode = Traffic()
    with mode:
        run()
    return mode.rows


def test_convolution_reads_each_argument_and_writes_its_output() -> None:
    x, weight, bias = meta(2, 3, 8, 8), meta(4, 3, 3, 3), meta(4)
    rows = count(lambda: conv2d(x, weight, bias, padding=1))
    read = 2 * (2 * 3 * 8 * 8 + 4 * 3 * 3 * 3 + 4)
    assert rows == {"aten::convolution": Row(1, read, 2 * (2 * 4 * 8 * 8))}


@pytest.mark.parametrize("input_wants_grad", [False, True])
def test_convolution_backward_reads_the_gradient_once_for_each_kernel(
    input_wants_grad: bool,
) -> None:
    x = meta(2, 3, 8, 8).requires_grad_(input_wants_grad)
    weight = meta(4, 3, 3, 3).requires_grad_()
    y = conv2d(x, weight, padding=1)
    rows = count(lambda: y.backward(meta(2, 4, 8, 8)))
    n_x, n_w, n_g = 2 * 3 * 8 * 8, 4 * 3 * 3 * 3, 2 * 4 * 8 * 8
    for_weight = Row(1, 2 * (n_g + n_x), 2 * n_w)
    for_input = Row(0, 2 * (n_g + n_w), 2 * n_x)
    expected = for_weight + for_input if input_wants_grad else for_weight
    assert rows["aten::convolution_backward"] == expected


@pytest.mark.parametrize(("training", "passes"), [(True, 2), (False, 1)])
def test_batch_norm_reads_its_input_twice_in_training(training: bool, passes: int) -> None:
    x = meta(2, 4, 8, 8)
    scale, shift, mean, var = (meta(4) for _ in range(4))
    (row,) = count(lambda: batch_norm(x, mean, var, scale, shift, training)).values()
    assert row.read == 2 * (passes * 2 * 4 * 8 * 8 + 4 * 4)
    # The training kernel also writes mean and invstd, in the type its meta kernel gives them.
    assert 2 * (2 * 4 * 8 * 8) <= row.written <= 2 * (2 * 4 * 8 * 8) + 2 * 4 * 4


def test_batch_norm_backward_reads_input_and_gradient_twice() -> None:
    x = meta(2, 4, 8, 8).requires_grad_()
    y = batch_norm(x, None, None, training=True)
    row = count(lambda: y.backward(meta(2, 4, 8, 8)))["aten::native_batch_norm_backward"]
    activation = 2 * (2 * 4 * 8 * 8)
    statistics = row.read - 4 * activation
    assert 0 < statistics <= 2 * 4 * 4
    assert row.written == activation


def test_in_place_reads_and_writes_its_argument() -> None:
    x, y = meta(10), meta(10)
    assert count(lambda: x.add_(y)) == {"aten::add_": Row(1, 40, 20)}


def test_the_same_memory_is_read_once() -> None:
    x = meta(10)
    assert count(lambda: x * x.view(10)) == {"aten::mul": Row(1, 20, 20)}


def test_views_and_allocations_move_nothing() -> None:
    x = meta(4, 6)

    def run() -> None:
        x.view(6, 4).t().permute(1, 0).detach().unsqueeze(0).expand(3, 6, 4)
        torch.ops.aten._unsafe_view(x, [24])  # an alias by what it does, not by its schema
        torch.empty_like(x)
        x.new_empty(3)

    assert moved(count(run)) == 0


def test_a_copy_behind_a_reshape_is_paid_for() -> None:
    x = meta(4, 6)
    assert count(lambda: x.t().reshape(24)) == {"aten::clone": Row(1, 48, 48)}


def test_broadcast_memory_is_read_once() -> None:
    x = meta(5).expand(3, 5)
    assert count(lambda: x / 2) == {"aten::div": Row(1, 10, 30)}


def test_overwriting_does_not_read() -> None:
    x, y = meta(10), meta(10)
    assert count(lambda: x.copy_(y)) == {"aten::copy_": Row(1, 20, 20)}
    assert count(lambda: x.zero_()) == {"aten::zero_": Row(1, 0, 20)}
    assert count(lambda: torch.mul(x, y, out=meta(10)))["aten::mul"] == Row(1, 40, 20)
    assert count(lambda: torch.zeros_like(x))["aten::zeros_like"] == Row(1, 0, 20)


@pytest.fixture
def library() -> Iterator[torch.library.Library]:
    """Two operators as this library's are: one pass each, the second updates a running mean."""
    lib = torch.library.Library("ledger_test", "DEF")
    lib.define("conv_sums(Tensor x, Tensor? bias) -> (Tensor, Tensor)")
    lib.define("finalize(Tensor sums, Tensor(a!) running) -> Tensor")

    def conv_sums(x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x), x.new_empty((2, x.shape[1]), dtype=torch.float32)

    def finalize(sums: Tensor, running: Tensor) -> Tensor:
        return torch.empty_like(sums)

    lib.impl("conv_sums", conv_sums, "Meta")
    lib.impl("finalize", finalize, "Meta")
    yield lib
    lib._destroy()


def test_custom_operators_are_one_pass(library: torch.library.Library) -> None:
    ops = torch.ops.ledger_test
    x, running = meta(2, 4, 8, 8), meta(4, dtype=torch.float32)

    def run() -> None:
        _, sums = ops.conv_sums(x, None)
        ops.finalize(sums, running)

    assert count(run) == {
        "ledger_test::conv_sums": Row(1, 1024, 1024 + 32),
        "ledger_test::finalize": Row(1, 32 + 16, 32 + 16),
    }


class Block(nn.Module):
    """A convolution, an in-place activation and a convolution, 3 -> 4 -> 2 channels, 1x1."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.last = nn.Conv2d(4, 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.act(self.first(x)))
        return y


def test_per_image_leaves_out_what_the_batch_shares() -> None:
    pixels = 8 * 8
    counted = per_image(Block, (3, 8, 8))
    assert counted.inference == {
        "aten::convolution": Row(2, 2 * pixels * (3 + 4), 2 * pixels * (4 + 2)),
        "aten::relu_": Row(1, 2 * pixels * 4, 2 * pixels * 4),
    }
    # The activation's result is the first convolution's storage and the second's input: one
    # storage. The image and the weights are the caller's.
    assert counted.saved == 2 * pixels * 4


class SavesView(nn.Module):
    """Saves one row of a larger intermediate."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return (x * 2)[:, :, 0, :] * self.scale


def test_a_saved_view_keeps_its_whole_storage() -> None:
    assert per_image(SavesView, (3, 8, 8)).saved == 2 * 3 * 8 * 8


class DependsOnBatch(nn.Module):
    """Another operator from batch 3 on."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale if x.shape[0] > 2 else x * self.scale


def test_a_schedule_that_depends_on_the_batch_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"aten::add.*aten::mul"):
        per_image(DependsOnBatch, (3, 8, 8))


class Fusable(nn.Module):
    """Eager saves three tensors of its middle: before the norm, after it, after the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 2, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y


def test_compile_saves_less_than_eager() -> None:
    activation = 2 * 4 * 8 * 8
    assert per_image(Fusable, (3, 8, 8)).saved == 3 * activation
    assert activation <= compiled_saved(Fusable, (3, 8, 8)) < 3 * activation


def need_torchvision() -> None:
    try:
        import_torchvision()
    except ImportError:
        pytest.skip("torchvision is not installed; the eager baseline is its model")


@pytest.fixture(scope="module")
def eager_b0() -> Ledger:
    need_torchvision()
    return traffic.ledger("eager-outplace", "efficientnet_b0")


@pytest.mark.parametrize("schedule", ["eager", "ours"])
def test_bytes_are_linear_in_the_batch(schedule: str) -> None:
    if schedule == "eager":
        need_torchvision()
    name = "efficientnet_b0"
    model = on_meta(lambda: SCHEDULES[schedule](name), BF16)
    shape = (3, RESOLUTIONS[name], RESOLUTIONS[name])
    two, three, five = (training_step(model, batch(n, shape, BF16)) for n in (2, 3, 5))
    assert moved(five[0]) - moved(three[0]) == 2 * (moved(three[0]) - moved(two[0]))
    assert five[1] - three[1] == 2 * (three[1] - two[1])


@pytest.mark.parametrize("quantity", ["inference", "training", "saved"])
def test_eager_b0_reproduces_the_budgets(eager_b0: Ledger, quantity: str) -> None:
    figure = eager_b0.figures()[quantity]
    if quantity == "training":
        # The budget applies the gradient of squeeze-excite's mean as a broadcast; eager writes it
        # out (`div`) and reads it back (`add`).
        figure -= 2 * eager_b0.training["aten::div"].written
    budget = BUDGETS[quantity]["eager"][0]
    assert budget is not None
    assert abs(figure / 1e6 - budget) <= BUDGET_PRECISION * budget


def test_an_in_place_activation_is_copied_by_autograd(eager_b0: Ledger) -> None:
    shipped = traffic.ledger("eager", "efficientnet_b0")
    silu = eager_b0.training["aten::silu"]
    assert moved(shipped.training) - moved(eager_b0.training) == silu.moved
    assert shipped.saved == eager_b0.saved
    assert moved(shipped.inference) == moved(eager_b0.inference)


LEDGER = Ledger(
    inference={"lib::expand": Row(2, 100, 50)},
    training={"lib::expand": Row(2, 100, 50), "lib::wgrad": Row(1, 30, 10)},
    saved=70,
)


def test_table_and_json_hold_the_figures_and_budgets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(traffic, "ledger", lambda schedule, name: LEDGER)
    assert traffic.main(["efficientnet_b1", "--schedules", "ours", "--by-op"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["training,", "ours", "0.0"] in lines
    assert ["training,", "budget", "T2", "183.0"] in lines
    assert ["lib::expand", "2", "0.000", "0.000", "78.9%"] in lines
    assert traffic.main(["efficientnet_b1", "--schedules", "ours", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["figures"]["ours"]["efficientnet_b1"] == LEDGER.figures()


def test_an_unknown_model_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        traffic.main(["resnet50"])
    assert "unknown model 'resnet50'" in capsys.readouterr().err
