"""Whole models, ours beside stock PyTorch: ``pytest bench/ --benchmark-only``.

Every provider's result is checked against stock eager before it is timed: logits in inference, all
parameter gradients in training. pytest-benchmark times one provider after the other; where a
machine's clock drifts, ``effnet-fast bench``, which takes them in turn, is the fairer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from effnet_fast.backends import BACKENDS, BackendUnavailableError
from effnet_fast.cli.providers import (
    BAR,
    STOCK,
    Provider,
    difference,
    expected,
    providers,
    true_fp32,
)

MODEL = "efficientnet_b0"
LABELS = [*STOCK, *(f"effnet_fast {backend}" for backend in BACKENDS)]
#: Batch and side of the images; training is kept small, for it is slow on a CPU.
INFERENCE, TRAINING = (1, 224), (4, 128)


@pytest.fixture(autouse=True)
def _true_fp32() -> Iterator[None]:
    with true_fp32():
        yield


@cache
def prepared(batch: int, side: int) -> tuple[Tensor, dict[str, Provider], dict[str, str]]:
    """The images, the providers on them, and who is left out and why; on the GPU if any."""
    torch.manual_seed(0)
    x = torch.randn(batch, 3, side, side, device="cuda" if torch.cuda.is_available() else "cpu")
    return x, *providers(MODEL, x)


def synchronize(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def check(benchmark: BenchmarkFixture, compute: Callable[[], Tensor], truth: Tensor) -> None:
    """Skip what cannot run, fail what is wrong, and keep what it takes to read the times later."""
    try:
        off = difference(compute(), truth)
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    assert off < BAR, f"wrong by {off:.1e} of the largest value: not timed (bar {BAR:g})"
    benchmark.extra_info |= {
        "difference": off,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def training_step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Forward, cross entropy and backward; the gradients of all parameters."""
    loss = nn.functional.cross_entropy(model(x), torch.arange(x.shape[0], device=x.device))
    return list(torch.autograd.grad(loss, list(model.parameters())))


def seeded_gradients(provider: Provider, x: Tensor) -> Tensor:
    """All gradients of one step as one vector; dropout and stochastic depth drawn alike."""
    torch.manual_seed(1)
    step = training_step(provider.model.train(), provider.prepare(x))
    return torch.cat([gradient.flatten() for gradient in step])


@pytest.mark.benchmark(group=f"{MODEL}, inference, fp32, batch {INFERENCE[0]}, {INFERENCE[1]} px")
@pytest.mark.parametrize("label", LABELS)
def test_inference(benchmark: BenchmarkFixture, label: str) -> None:
    x, found, left_out = prepared(*INFERENCE)
    if label in left_out:
        pytest.skip(left_out[label])
    run = found[label]
    own = run.prepare(x)
    check(benchmark, lambda: run(own), expected(found, x)[0])

    def timed() -> None:
        run(own)
        synchronize(own)

    benchmark(timed)


@pytest.mark.benchmark(group=f"{MODEL}, training, fp32, batch {TRAINING[0]}, {TRAINING[1]} px")
@pytest.mark.parametrize("label", LABELS)
def test_training_step(benchmark: BenchmarkFixture, label: str) -> None:
    x, found, left_out = prepared(*TRAINING)
    if label in left_out:
        pytest.skip(left_out[label])
    run = found[label]
    own = run.prepare(x)
    truth = found.get(next(iter(STOCK)), found["effnet_fast reference"])
    check(benchmark, lambda: seeded_gradients(run, x), seeded_gradients(truth, x))

    def timed() -> None:
        training_step(run.model, own)
        synchronize(own)

    benchmark(timed)
