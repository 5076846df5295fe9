"""Whole models: ``pytest bench/bench_models.py --benchmark-only [-k b0] [-m inference] [--full]``.

B0, B1 and B4 in inference, by --full all of B0 to B7, ResNet-50 and ResNet-152, and training steps;
at native resolution, batch 1 and the largest batch that fits; everyone of effnet_fast.cli.providers
who can. --dtype and --threads change what all compute in and on how many CPU threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.arena import CLOCK, Arena
from bench.model_contest import hold_what_fits
from bench.schedules import RESOLUTIONS
from bench.throughput import RESNETS, large_batch, providers_here

DEFAULT = ("efficientnet_b0", "efficientnet_b1", "efficientnet_b4")
LABELS = providers_here(torch.cuda.is_available())


def cases() -> Iterator[Any]:
    """(model, training, large batch or 1), each with its markers."""
    for name in (*RESOLUTIONS, *RESNETS):
        for training, large in ((False, False), (False, True), (True, True)):
            marks = [pytest.mark.training if training else pytest.mark.inference]
            if training or name not in DEFAULT:
                marks.append(pytest.mark.full)
            short = name.removeprefix("efficientnet_")
            mode = "training" if training else "inference"
            batch = "large_batch" if large else "batch_1"
            yield pytest.param(name, training, large, id=f"{short}-{mode}-{batch}", marks=marks)


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize(("name", "training", "large"), list(cases()))
def test_model(
    benchmark: BenchmarkFixture, arena: Arena, device: torch.device, dtype: torch.dtype,
    request: pytest.FixtureRequest, name: str, training: bool, large: bool, label: str,
) -> None:  # fmt: skip
    n = large_batch(name, device, training) if large else 1
    arena.enter(
        request.node, benchmark,
        lambda labels: hold_what_fits(labels, name, n, training, device, dtype),
    )  # fmt: skip
