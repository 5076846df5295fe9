"""Where the native engine's time goes: ``python -m bench.engine_layers [MODEL] [--picture FILE]``.

Every step of the plan is held against what this CPU can do at best: its multiply-adds at the rate
of a loop of nothing else (:mod:`bench.fma`), or its weights read at the rate of a copy, whichever
takes longer. Weights are the bytes that count: they are several megabytes a model, read once a
call, while one image's activations stay in the caches.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from bench import fma
from bench.pictures import OURS, STYLE
from bench.schedules import RESOLUTIONS
from bench.throughput import DTYPES
from bench.timing import milliseconds, percentiles
from effnet_fast.cli.common import cpu_threads, device_name
from effnet_fast.engine import optimize_for_inference
from effnet_fast.models import create_model

#: Bytes that are copied to measure the memory: more than the last cache of most CPUs.
COPIED = 2**28
#: Of steps limited by memory, beside OURS for those limited by arithmetic.
MEMORY = "#2c7fb8"


class Step(NamedTuple):
    """A step of a plan as ``engine.profile(x, repeats)`` gives it.

    ``macs``: multiply-adds of one image. ``seconds``: of a call on the whole batch.
    """

    name: str
    shape: str
    macs: float
    weight_bytes: float
    seconds: float


class Peaks(NamedTuple):
    """What the CPU does at best, on the threads in use."""

    macs: float  # a second
    bytes: float  # a second

    def of(self, step: Step, images: int) -> tuple[float, str]:
        """The least seconds that ``step`` can take on so many images, and what sets them."""
        arithmetic, memory = images * step.macs / self.macs, step.weight_bytes / self.bytes
        return max((arithmetic, "arithmetic"), (memory, "memory"))


class Profiled(Protocol):
    """What is asked of an engine here."""

    def profile(self, x: Tensor, repeats: int) -> Sequence[tuple[str, str, float, float, float]]:
        """(name, shape, multiply-adds, weight bytes, seconds) of every step on images ``x``."""
        ...


def measured_peaks(steps: Sequence[Step], images: int, repeats: int = 20) -> Peaks:
    """The machine's, now: of a copy, and of the FMA loop in fp32 or the fastest step, if faster.

    With bf16 instructions, or no C++ compiler for the loop, it is the fastest step's.
    """
    source = torch.ones(COPIED, dtype=torch.uint8)
    target = torch.empty_like(source)
    times = [milliseconds(lambda: target.copy_(source), False) for _ in range(repeats)]
    copied = 2 * COPIED / percentiles(times)["p50"] * 1e3
    best = max(images * step.macs / step.seconds for step in steps)
    try:
        flop, times = fma.samples(repeats)
    except OSError as error:
        print(f"{error}; the fastest step's rate stands for it", file=sys.stderr)
        return Peaks(best, copied)
    return Peaks(max(best, flop / 2 / percentiles(times)["p50"] * 1e3), copied)


def table(steps: Sequence[Step], images: int, peaks: Peaks) -> str:
    """A line for each step and the sum of all; ``at best`` is what the peaks leave it."""
    wide = max(len(step.name) for step in steps)
    lines = [
        f"{'':{wide}}{'M MAC':>9}{'KiB':>9}{'us':>9}{'GMAC/s':>9}{'at best':>9}{'%':>5}  limited by"
    ]
    least = 0.0
    for step in steps:
        bound, limit = peaks.of(step, images)
        least += bound
        lines.append(_line(step, images, bound, wide) + f"  {limit:<11}{step.shape}")
    sums = (sum(values) for values in zip(*(step[2:] for step in steps), strict=True))
    total = Step("total", "", *sums)
    lines.append(_line(total, images, least, wide))
    lines.append(
        f"at best: {peaks.macs / 1e9:.1f} G multiply-adds/s, or weights at "
        f"{peaks.bytes / 1e9:.1f} GB/s, the longer"
    )
    return "\n".join(lines)


def _line(step: Step, images: int, bound: float, wide: int) -> str:
    macs = images * step.macs
    return (
        f"{step.name:{wide}}{macs / 1e6:>9.2f}{step.weight_bytes / 1024:>9.1f}"
        f"{1e6 * step.seconds:>9.1f}{macs / step.seconds / 1e9:>9.1f}{1e6 * bound:>9.1f}"
        f"{100 * bound / step.seconds:>5.0f}"
    )


def draw(steps: Sequence[Step], images: int, peaks: Peaks, title: str, file: Path) -> None:
    """A bar for each step, its time; the black tick is what it would take at best.

    Raises OSError or ValueError where ``file`` cannot be written, or has no picture's suffix.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 1.4 + 0.2 * len(steps)))
        axes: Any = figure.subplots()
        bounds = [peaks.of(step, images) for step in steps]
        rows = range(len(steps))
        for limit, colour in (("arithmetic", OURS), ("memory", MEMORY)):
            mine = [i for i in rows if bounds[i][1] == limit]
            axes.barh(mine, [1e6 * steps[i].seconds for i in mine], color=colour,
                      label=f"limited by {limit}")  # fmt: skip
        axes.plot([1e6 * bound for bound, _ in bounds], rows, "|", color="black", markersize=9,
                  markeredgewidth=2, label="at best")  # fmt: skip
        axes.set_yticks(rows, [step.name for step in steps], fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel("us")
        axes.legend(fontsize=8, frameon=False)
        figure.suptitle(title, fontsize=10)
        figure.savefig(file, dpi=130)


def main(argv: list[str] | None = None) -> int:
    """Measure one model, print the table, draw the picture; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine_layers", description=__doc__)
    parser.add_argument("model", nargs="?", default="efficientnet_b0", choices=RESOLUTIONS)
    parser.add_argument("--batch-size", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--repeats", type=int, default=50, help="calls (default: %(default)s)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="such as layers.png")
    arguments = parser.parse_args(argv)
    for option in ("batch_size", "threads", "repeats"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            parser.error(f"--{option.replace('_', '-')} must be >= 1, got {value}")
    n, side = arguments.batch_size, RESOLUTIONS[arguments.model]
    with cpu_threads(arguments.threads):
        model = create_model(arguments.model)
        engine = optimize_for_inference(model, dtype=DTYPES[arguments.dtype])
        x = torch.randn(n, 3, side, side)
        steps = [Step(*row) for row in cast(Profiled, engine).profile(x, arguments.repeats)]
        peaks = measured_peaks(steps, n)
        title = (
            f"{arguments.model}, batch {n}, {arguments.dtype}, "
            f"{device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads"
        )
    print(title, table(steps, n, peaks), sep="\n")
    if arguments.picture is not None:
        draw(steps, n, peaks, title, arguments.picture)
        print(f"written: {arguments.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
