"""The paper's latency table: ``pytest bench/bench_paper.py --benchmark-only``.

Its Table 4 has B1 5.7 times as fast as ResNet-152, which is no more accurate: batch 1 on one core
of a CPU. Here on one thread of a CPU or on the GPU, both models' providers in one contest.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.arena import CLOCK, Arena, Entry
from bench.contest import Entrant
from bench.model_contest import hold
from bench.schedules import RESOLUTIONS
from bench.throughput import providers_here
from effnet_fast.cli.common import cpu_threads

#: Rounds, and seconds after which a contest makes do with fewer: a ResNet-152 takes 0.3 s.
ROUNDS, SECONDS = 20, 20.0


def labels(*names: str) -> list[str]:
    """ "MODEL PROVIDER" for all of both models that this machine may have."""
    providers = providers_here(torch.cuda.is_available())
    return [f"{name} {provider}" for name in names for provider in providers]


def hold_models(labels: list[str], device: torch.device, dtype: torch.dtype) -> dict[str, Entry]:
    """Both models' providers in one contest, each model on an image of its own resolution."""
    images = {}
    for name in {label.split()[0] for label in labels}:
        torch.manual_seed(0)
        side = RESOLUTIONS.get(name, 224)
        images[name] = torch.randn(1, 3, side, side, device=device).to(dtype)
    entrants = {}
    for label in labels:
        name, provider = label.split()
        entrants[label] = Entrant(provider, name, images[name])
    return hold(entrants, "latency", ROUNDS, SECONDS)


@pytest.mark.latency
@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("label", labels("resnet152", "efficientnet_b1"))
def test_latency(
    benchmark: BenchmarkFixture, arena: Arena, device: torch.device, dtype: torch.dtype,
    request: pytest.FixtureRequest, label: str,
) -> None:  # fmt: skip
    def contest(labels: list[str]) -> dict[str, Entry]:
        with cpu_threads(1):
            return hold_models(labels, device, dtype)

    arena.enter(request.node, benchmark, contest)
