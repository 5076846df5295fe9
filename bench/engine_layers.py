"""Where the native engine's time goes: ``python -m bench.engine_layers [MODEL] [--picture FILE]``.

Every step of the plan is held against what this CPU can do at best: its multiply-adds at the rate
of a loop of nothing else (:mod:`bench.fma`), or its weights read at the rate of a copy, whichever
takes longer. Weights are the bytes that count: megabytes, read once a call, while one image's
activations stay in the caches.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import matplotlib as mpl
import torch
from matplotlib.figure import Figure

from bench import fma
from bench.pictures import OURS, STYLE
from bench.schedules import RESOLUTIONS
from bench.throughput import DTYPES
from bench.timing import milliseconds, percentiles
from effnet_fast.cli.common import cpu_threads, device_name
from effnet_fast.engine import Engine, Step, optimize_for_inference
from effnet_fast.models import create_model

#: Bytes that are copied to measure the memory: more than the last cache of most CPUs.
COPIED = 2**28
#: Of steps limited by memory, beside OURS for those limited by arithmetic.
MEMORY = "#2c7fb8"


class Timed(NamedTuple):
    """A step of a plan for one image, and its seconds."""

    step: Step
    seconds: float

    @property
    def rate(self) -> float:
        """Multiply-adds a second."""
        return self.step.multiply_adds / self.seconds


class Peaks(NamedTuple):
    """What the CPU does at best, on the threads in use."""

    macs: float  # a second
    bytes: float  # a second

    def of(self, step: Step) -> tuple[float, str]:
        """The least seconds that ``step`` can take, and what sets them."""
        arithmetic, memory = step.multiply_adds / self.macs, step.weight_bytes / self.bytes
        return max((arithmetic, "arithmetic"), (memory, "memory"))


def measured_peaks(timed: Sequence[Timed], repeats: int = 20) -> Peaks:
    """The machine's, now: of a copy, and of the FMA loop in fp32 or the fastest step, if faster.

    With bf16 instructions, or no C++ compiler for the loop, it is the fastest step's.
    """
    source = torch.ones(COPIED, dtype=torch.uint8)
    target = torch.empty_like(source)
    times = [milliseconds(lambda: target.copy_(source), False) for _ in range(repeats)]
    copied = 2 * COPIED / percentiles(times)["p50"] * 1e3
    best = max(t.rate for t in timed)
    try:
        flop, times = fma.samples(repeats)
    except OSError as error:
        print(f"{error}; the fastest step's rate stands for it", file=sys.stderr)
        return Peaks(best, copied)
    return Peaks(max(best, flop / 2 / percentiles(times)["p50"] * 1e3), copied)


def table(timed: Sequence[Timed], peaks: Peaks) -> str:
    """A line for each step and the sum of all; ``at best`` is what the peaks leave it, in us."""
    wide = max(len(t.step.name) for t in timed)
    lines = [
        f"{'':{wide}}{'M MAC':>9}{'KiB':>9}{'us':>9}{'GMAC/s':>9}{'at best':>9}{'%':>5}  limited by"
    ]
    for t in timed:
        bound, limit = peaks.of(t.step)
        lines.append(_line(t, bound, wide) + f"  {limit:<12}{t.step.shape}")
    macs, weights = (
        sum(getattr(t.step, name) for t in timed) for name in ("multiply_adds", "weight_bytes")
    )
    total = Timed(Step("total", "", macs, weights), sum(t.seconds for t in timed))
    lines.append(_line(total, sum(peaks.of(t.step)[0] for t in timed), wide))
    lines.append(
        f"at best: {peaks.macs / 1e9:.1f} G multiply-adds/s, or weights at "
        f"{peaks.bytes / 1e9:.1f} GB/s, the longer"
    )
    return "\n".join(lines)


def _line(timed: Timed, bound: float, wide: int) -> str:
    step, seconds = timed
    return (
        f"{step.name:{wide}}{step.multiply_adds / 1e6:>9.2f}{step.weight_bytes / 1024:>9.1f}"
        f"{1e6 * seconds:>9.1f}{timed.rate / 1e9:>9.1f}{1e6 * bound:>9.1f}"
        f"{100 * bound / seconds:>5.0f}"
    )


def draw(timed: Sequence[Timed], peaks: Peaks, title: str, file: Path) -> None:
    """A bar for each step, its time; the black tick is what it would take at best.

    Raises OSError or ValueError where ``file`` cannot be written, or has no picture's suffix.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 1.4 + 0.2 * len(timed)))
        axes: Any = figure.subplots()
        bounds = [peaks.of(t.step) for t in timed]
        rows = range(len(timed))
        for limit, colour in (("arithmetic", OURS), ("memory", MEMORY)):
            mine = [i for i in rows if bounds[i][1] == limit]
            axes.barh(mine, [1e6 * timed[i].seconds for i in mine], color=colour,
                      label=f"limited by {limit}")  # fmt: skip
        axes.plot([1e6 * bound for bound, _ in bounds], rows, "|", color="black", markersize=9,
                  markeredgewidth=2, label="at best")  # fmt: skip
        axes.set_yticks(rows, [t.step.name for t in timed], fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel("us")
        axes.legend(fontsize=8, frameon=False)
        figure.suptitle(title, fontsize=10)
        figure.savefig(file, dpi=130)


def main(argv: list[str] | None = None) -> int:
    """Measure one model, print the table, draw the picture; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine_layers", description=__doc__)
    parser.add_argument("model", nargs="?", default="efficientnet_b0", choices=RESOLUTIONS)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--repeats", type=int, default=50, help="calls (default: %(default)s)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="such as layers.png")
    arguments = parser.parse_args(argv)
    for option in ("threads", "repeats"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            parser.error(f"--{option} must be >= 1, got {value}")
    side, cpu = RESOLUTIONS[arguments.model], torch.device("cpu")
    with cpu_threads(arguments.threads):
        model = create_model(arguments.model)
        engine = cast(Engine, optimize_for_inference(model, dtype=DTYPES[arguments.dtype]))
        found = engine.profile(torch.randn(1, 3, side, side), arguments.repeats)
        timed = [Timed(*row) for row in found]
        peaks = measured_peaks(timed)
        title = (
            f"{arguments.model}, one image, {arguments.dtype}, {device_name(cpu)}, "
            f"{torch.get_num_threads()} threads"
        )
    print(title, table(timed, peaks), sep="\n")
    if arguments.picture is not None:
        draw(timed, peaks, title, arguments.picture)
        print(f"written: {arguments.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
