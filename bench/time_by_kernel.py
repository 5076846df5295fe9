"""Where a model's time goes, kernel by kernel: ``python -m bench.time_by_kernel [MODEL ...]``.

torch.profiler's own figures of inference and of a training step, the longest first. The profiler
slows down what is launched, not what runs on the GPU: shares are to be trusted, milliseconds are
for :mod:`bench.throughput` to say.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from effnet_fast import architecture
from effnet_fast.cli.common import chosen_device
from effnet_fast.cli.providers import Provider, build
from effnet_fast.models import create_model

#: Kernels to name; what is behind them is one line.
MOST = 30


def table(rows: Iterable[tuple[str, int, float]], rounds: int) -> str:
    """(kernel, calls, microseconds in all) of ``rounds`` rounds as text, per round."""
    ordered = sorted(rows, key=lambda row: -row[2])
    total = sum(row[2] for row in ordered)
    rest = ordered[MOST:]
    if rest:
        ordered = ordered[:MOST]
        ordered.append((f"{len(rest)} others", sum(r[1] for r in rest), sum(r[2] for r in rest)))
    lines = [f"{'kernel':<72}{'calls':>7}{'ms':>10}{'share':>8}"]
    for name, calls, microseconds in ordered:
        share = microseconds / total if total else 0.0
        ms = microseconds / rounds / 1e3
        lines.append(f"{name[:70]:<72}{calls / rounds:>7.1f}{ms:>10.4f}{share:>8.1%}")
    lines.append(f"{'all':<72}{'':>7}{total / rounds / 1e3:>10.4f}")
    return "\n".join(lines)


def measured(provider: Provider, x: torch.Tensor, rounds: int) -> list[tuple[str, int, float]]:
    """Kernels on a GPU, operators on a CPU: their own time."""
    x = provider.prepare(x)
    for _ in range(3):
        provider.step(x)
    activity = ProfilerActivity.CUDA if x.is_cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        for _ in range(rounds):
            provider.step(x)
        if x.is_cuda:
            torch.cuda.synchronize()

    def own(event: Any) -> float:
        return float(event.self_device_time_total if x.is_cuda else event.self_cpu_time_total)

    return [(e.key, e.count, own(e)) for e in profiler.key_averages() if own(e) > 0.0]


def main(argv: list[str] | None = None) -> int:
    """Print the tables; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.time_by_kernel", description=__doc__)
    parser.add_argument("models", nargs="*", default=["efficientnet_b0"])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:i")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5, help="profiled rounds (default 5)")
    arguments = parser.parse_args(argv)
    device = chosen_device(arguments.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for name in arguments.models:
        state = create_model(name).state_dict()
        side = architecture.variant(name).resolution
        x = torch.randn(arguments.batch_size, 3, side, side, device=device).to(dtype)
        for training in (False, True):
            provider = build(arguments.backend, name, state, x, training)
            rows = measured(provider, x, arguments.repeats)
            mode = "training step" if training else "inference"
            print(f"\n{name}, {mode}, batch {x.shape[0]}, {dtype}, {arguments.backend}")
            print(table(rows, arguments.repeats))
    return 0


if __name__ == "__main__":
    sys.exit(main())
