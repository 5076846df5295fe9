"""The paper's latency table: ``pytest bench/bench_paper.py --benchmark-only``.

Its Table 4 has B1 5.7 times as fast as ResNet-152, which is no more accurate: batch 1 on one core
of a CPU. Here on one thread of a CPU or on the GPU, both models' providers in one contest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.arena import CLOCK, Arena, Entry
from bench.bench_models import hold
from bench.contest import Entrant
from bench.schedules import RESOLUTIONS
from bench.throughput import providers_here

#: Rounds, and seconds after which a contest makes do with fewer: a ResNet-152 takes 0.3 s.
ROUNDS, SECONDS = 20, 40.0


def labels(*names: str) -> list[str]:
    """ "MODEL PROVIDER" for all of both models that this machine may have."""
    cuda = torch.cuda.is_available()
    return [f"{name} {provider}" for name in names for provider in providers_here(name, cuda)]


def hold_models(labels: list[str], device: torch.device) -> dict[str, Entry]:
    """Both models' providers in one contest, each model on an image of its own resolution."""
    images = {}
    for name in {label.split()[0] for label in labels}:
        torch.manual_seed(0)
        side = RESOLUTIONS.get(name, 224)
        x = torch.randn(1, 3, side, side, device=device)
        images[name] = x.to(torch.bfloat16) if x.is_cuda else x
    entrants = {}
    for label in labels:
        name, provider = label.split()
        entrants[label] = Entrant(provider, name, images[name])
    return hold(entrants, "latency", ROUNDS, SECONDS)


@contextmanager
def one_thread() -> Iterator[None]:
    """torch, and every runtime made within the block, on one CPU thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.latency
@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("label", labels("resnet152", "efficientnet_b1"))
def test_latency(
    benchmark: BenchmarkFixture, arena: Arena, device: torch.device,
    request: pytest.FixtureRequest, label: str,
) -> None:  # fmt: skip
    def contest(labels: list[str]) -> dict[str, Entry]:
        with one_thread():
            return hold_models(labels, device)

    arena.enter(request.node, benchmark, contest)
