"""Contests: checked first, then timed in turn; and what is written beside the times."""

import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench import contest as module
from bench.contest import FEWEST, Entrant, contest
from bench.costs import GRAPH, cost, flops, ledger, schedule_of
from bench.ledger import moved
from bench.memory import Meter
from bench.throughput import CPU_BATCH, large_batch
from effnet_fast.cli.providers import Provider

X = torch.ones(2, 3, 4, 4)
B0 = "efficientnet_b0"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who computed, in order: providers that give the label's number, where 1 is right."""
    log: list[str] = []

    def build(label: str, *rest: Any) -> Provider:
        def run(x: Tensor) -> Tensor:
            log.append(label)
            if label == "breaks":
                raise RuntimeError("no kernel\nat all")
            if label == "too big":
                raise torch.OutOfMemoryError
            return torch.full((2, 2), {"wrong": 1.1, "nan": float("nan")}.get(label, 1.0))

        return Provider(run, torch.contiguous_format)

    monkeypatch.setattr(module, "calibrated_state", lambda name, x: {})
    monkeypatch.setattr(module, "expected", lambda *rest: (torch.ones(2, 2), "one"))
    monkeypatch.setattr(module, "bar", lambda *rest: 1e-4)
    monkeypatch.setattr(module, "build", build)
    monkeypatch.setattr(module.Meter, "peak", lambda self, call: 7)
    return log


def entrants(*labels: str) -> list[Entrant]:
    return [Entrant(label, "some model", X) for label in labels]


def test_providers_take_turns_and_the_first_round_does_not_count(calls: list[str]) -> None:
    outcomes = contest(entrants("a", "b", "c"), repeats=3)
    # Each computes once before it is timed, while the last one's threads come to rest.
    assert "".join(calls) == "abc" + "aabbcc" * 4
    assert [len(outcome.samples) for outcome in outcomes] == [3, 3, 3]
    assert [outcome.peak for outcome in outcomes] == [7, 7, 7]


def test_only_who_is_right_is_timed(calls: list[str]) -> None:
    outcomes = contest(entrants("wrong", "a", "nan", "breaks", "too big"), repeats=2)
    assert calls == ["wrong", "a", "nan", "breaks", "too big", *["a"] * 6]
    assert [outcome.gate for outcome in outcomes] == [
        "off by 1.0e-01, bar 1.0e-04", "passed", "off by nan, bar 1.0e-04",
        "failed: RuntimeError: no kernel", "out of memory",
    ]  # fmt: skip
    assert [bool(outcome.samples) for outcome in outcomes] == [False, True, False, False, False]


def test_a_slow_contest_makes_do_with_the_fewest_rounds(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10**6, 100))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    (outcome,) = contest(entrants("a"), repeats=50, seconds=1)
    assert len(outcome.samples) == FEWEST


def test_a_graph_needs_a_gpu() -> None:
    assert Entrant(f"eager-nchw{GRAPH}", B0, X).why_not() == "CUDA graphs are a GPU's"
    assert Entrant("reference", B0, X).why_not() is None


def test_a_record_holds_the_ledger_of_its_schedule() -> None:
    x = torch.empty(2, 3, 64, 64)
    outcome = module.Outcome(Entrant("reference", B0, x, True), "passed", samples=[1.0, 2.0, 3.0])
    record = outcome.record("training step")
    found = ledger("ours", B0, 64, 64, torch.float32)
    weights = 4 * 5_288_548  # parameters of B0
    assert record.bytes == 2 * moved(found.training) + 3 * weights
    assert record.saved == 2 * found.saved
    assert record.launches == sum(row.calls for row in found.training.values())
    assert record.flops == flops(B0, (2, 3, 64, 64), True) == 3 * flops(B0, (2, 3, 64, 64), False)
    assert record.ms is not None
    assert record.ms["p50"] == 2.0
    once = cost("ours", B0, (1, 3, 64, 64), torch.float32, training=False)
    assert once.bytes == moved(found.inference) + weights
    assert once.saved is None


@pytest.mark.parametrize(
    ("label", "schedule"),
    [("eager-nchw", "eager"), (f"eager-channels-last{GRAPH}", "eager"), ("auto", "ours"),
     (f"auto{GRAPH}", "ours"), ("reference", "ours"), ("compile", None), ("engine", None),
     ("timm", None)],
)  # fmt: skip
def test_no_bytes_are_claimed_for_a_schedule_nobody_knows(label: str, schedule: str | None) -> None:
    assert schedule_of(label) == schedule


def test_the_resident_set_of_a_call_is_measured_and_no_other() -> None:
    """What was taken and given back before the call does not count, what the call takes does."""
    size = 64 * 2**20
    meter = Meter(cuda=False)
    np.ones(4 * size, np.uint8)  # gone at once
    kept = np.ones(size, np.uint8)
    peak = meter.peak(lambda: np.ones(2 * size, np.uint8))
    if peak is None:
        pytest.skip("this system does not tell a process its high-water mark")
    assert kept.nbytes == size
    assert 2.9 * size < peak < 3.5 * size


def test_the_large_batch_of_a_cpu_leaves_half_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    each = ledger("eager", B0, 224, 224, torch.float32).saved
    monkeypatch.setattr("os.sysconf", lambda name: 1 if name.endswith("SIZE") else 2 * each * 5)
    assert large_batch(B0, cpu, training=True) == 4
    assert large_batch(B0, cpu, training=False) == CPU_BATCH
    monkeypatch.setattr("os.sysconf", lambda name: 1)
    assert large_batch(B0, cpu, training=True) == 1


def test_dropped_units_do_not_make_gradients_differ() -> None:
    """Providers are built with dropout and stochastic depth off: a second step is the first's."""
    state = module.calibrated_state(B0, torch.randn(2, 3, 32, 32))
    x = torch.randn(2, 3, 32, 32)
    for label in ("eager-nchw", "reference"):
        provider = module.build(label, B0, state, x, True)
        assert isinstance(provider.model, nn.Module)
        assert torch.equal(provider.result(x), provider.result(x))
