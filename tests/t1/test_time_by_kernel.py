"""The table of a model's time by kernel."""

import torch
from torch import nn

from bench.time_by_kernel import MOST, measured, table
from effnet_fast.cli.providers import Provider


def test_figures_are_per_round_and_sorted() -> None:
    lines = table([("short", 2, 1000.0), ("long", 4, 3000.0)], rounds=2).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["long", "2.0", "1.5000", "75.0%"],
        ["short", "1.0", "0.5000", "25.0%"],
        ["all", "2.0000"],
    ]


def test_what_is_beyond_the_most_is_one_line() -> None:
    lines = table([(f"k{i}", 1, 1.0) for i in range(MOST + 3)], rounds=1).splitlines()
    assert len(lines) == MOST + 3
    assert lines[-2].split()[:3] == ["3", "others", "3.0"]


def test_operators_of_a_model_on_a_cpu_are_found() -> None:
    provider = Provider(nn.Conv2d(3, 4, 1), torch.channels_last, training=False)
    found = {name: calls for name, calls, _ in measured(provider, torch.randn(1, 3, 8, 8), 2)}
    assert found["aten::conv2d"] == 2
