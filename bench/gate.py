"""Figures that are exact must not rise: ``python -m bench.gate [PART ...] [--write]``.

    ledger   bytes moved and saved and operators launched, B0 to B7, against bench/ledger.json
    cuda     registers, stack, spills and shared memory of every CUDA kernel on three architectures,
             against tests/t3/cuda_budget.json; needs the nvcc that the file was written with
    triton   the same of every Triton kernel, against tests/t3/triton_budget.json

Nothing here is timed. Each part is a test too, which `make test` runs: ledger in T1, the other two,
which compile for minutes, in T3 with what that tier compiles anyhow. Exit status 1 where a figure
rose; --write records the figures as they are now, for a change that is meant.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench import snapshot, traffic
from bench.sass import find_nvcc
from bench.schedules import RESOLUTIONS

LEDGER = Path(__file__).with_name("ledger.json")


class Verdict(NamedTuple):
    """What rose and what fell, one sentence each."""

    rose: list[str]
    fell: list[str]


def ledger(write: bool = False) -> Verdict:
    """Bytes and launches of this library's schedule."""
    found = {name: traffic.ledger("ours", name) for name in RESOLUTIONS}
    if write:
        snapshot.write(LEDGER, found)
    return Verdict(*snapshot.compare(LEDGER, found))


def cuda(write: bool = False) -> Verdict:
    """Resources of the CUDA kernels."""
    from tests.t3 import cuda_resources

    if find_nvcc() is None:
        raise ValueError("nvcc is neither in $CUDA_HOME/bin nor in PATH")
    table = cuda_resources.measure()
    if write:
        cuda_resources.write(table)
    return Verdict(cuda_resources.risen(table), [])


def triton(write: bool = False) -> Verdict:
    """Resources of the Triton kernels."""
    from tests.t3 import triton_resources

    table = triton_resources.measure()
    if write:
        triton_resources.write(table)
    return Verdict(triton_resources.risen(table), [])


PARTS: dict[str, Callable[[bool], Verdict]] = {"ledger": ledger, "cuda": cuda, "triton": triton}


def main(argv: list[str] | None = None) -> int:
    """Compare, print, and return 0; 1 where a figure rose, 2 where a part cannot be compared."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gate", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default: {', '.join(PARTS)}")
    parser.add_argument("--write", action="store_true", help="record the figures as they are")
    arguments = parser.parse_args(argv)
    unknown = [part for part in arguments.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; known: {', '.join(PARTS)}")
    status = 0
    for part in arguments.parts or PARTS:
        try:
            verdict = PARTS[part](arguments.write)
        except ValueError as error:
            print(f"{part}: cannot be compared: {error}", file=sys.stderr)
            status = max(status, 2)
            continue
        for sentence in verdict.rose:
            print(f"{part}: rose: {sentence}", file=sys.stderr)
        for sentence in verdict.fell:
            print(f"{part}: fell: {sentence}")
        if verdict.fell and not verdict.rose:
            print(f"to keep what was gained: python -m bench.gate {part} --write")
        print(f"{part}: {len(verdict.rose)} figures rose, {len(verdict.fell)} fell")
        status = max(status, 1 if verdict.rose else 0)
    return status


if __name__ == "__main__":
    sys.exit(main())
