"""Records as figures: who met whom, what the machine could do, and which differences are real."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import costs, records
from effnet_fast import architecture
from effnet_fast.cli.providers import OURS, PROVIDERS

#: A record's line; "file" is the name of the file it is of.
Line = dict[str, Any]
#: Lines that were timed in turn: one mode, one batch, one type, and but for "latency" one model.
Contest = list[Line]


def load(paths: Iterable[str | os.PathLike[str]]) -> list[Line]:
    """The lines of records, in the order of the files; ValueError names a bad one."""
    return [line | {"file": Path(p).name} for p in paths for line in records.read(p)]


def ours(line: Line) -> bool:
    """Whether this library computed it."""
    return line["backend"].removesuffix(costs.GRAPH) in OURS


def ms(line: Line) -> float:
    """The median, of a line whose gate passed."""
    return float(line["ms"]["p50"])


def machine(line: Line) -> tuple[str, int]:
    """What only figures of the same can be compared: the device and torch's CPU threads."""
    environment = line["environment"]
    return environment["device"], environment["threads"]


def contests(lines: Iterable[Line], op: str = "model") -> list[Contest]:
    """The newest of each, by machine, mode, type, model and shape; providers in their order.

    Every line of a contest is of one file: they were timed in turn.
    """
    found: dict[tuple[object, ...], dict[str, Contest]] = {}
    for line in lines:
        if line["op"] == op:
            rest = () if line["mode"] == "latency" else (line["case"], str(line["shape"]))
            key = (*machine(line), line["mode"], line["dtype"], *rest)
            found.setdefault(key, {}).setdefault(line["file"], []).append(line)
    newest = [
        max(by_file.values(), key=lambda c: str(c[0]["environment"]["utc"]))
        for by_file in found.values()
    ]
    return [sorted(contest, key=_provider_order) for contest in newest]


def duel(found: Iterable[Contest], one: str, other: str, several: bool) -> Contest:
    """What two models took in inference on one image or ``several``; empty unless both are there.

    On one image first of all from the contest "latency", where the two took turns.
    """
    found = list(found)
    for contest in found:
        if contest[0]["mode"] == "latency" and not several:
            return contest
    lines = [
        line
        for contest in found
        for line in contest
        if line["mode"] == "inference" and (line["shape"][0] > 1) == several
    ]
    cases = {line["case"] for line in lines if line["ms"]}
    return [x for x in lines if x["case"] in (one, other)] if {one, other} <= cases else []


def _provider_order(line: Line) -> tuple[str, int, str]:
    base = line["backend"].removesuffix(costs.GRAPH)
    known = list(PROVIDERS)
    return line["case"], known.index(base) if base in known else len(known), line["backend"]


def ceilings(lines: Iterable[Line], file: str) -> dict[str, float]:
    """ "copy" in bytes/s, "matmul" and on a CPU "fma" in flop/s, as measured in that file's run."""
    found = {}
    for line in lines:
        if line["file"] == file and line["mode"] == "ceiling" and line["ms"] is not None:
            found[line["op"]] = 1e3 * (line["bytes"] or line["flops"]) / ms(line)
    return found


def least_bytes(line: Line) -> int | None:
    """What the model's pass moves at the least that we know of: by this library's schedule."""
    if line["case"] not in architecture.VARIANTS:
        return None
    training = line["mode"] == "training step"
    dtype = getattr(torch, line["dtype"])
    return costs.cost("ours", line["case"], tuple(line["shape"]), dtype, training).bytes


def roof(line: Line, limits: dict[str, float]) -> float | None:
    """The ms that the machine needs at the least: for the arithmetic or the bytes, the longer.

    A model's bytes are those of this library's schedule whoever computes it, so that all of a
    contest are held against one roof; an op's are its own. None for "latency": on a CPU the
    ceilings are all threads', and that is one's.
    """
    if line["mode"] == "latency":
        return None
    moved = least_bytes(line) if line["op"] == "model" else line["bytes"]
    times = []
    if moved is not None and "copy" in limits:
        times.append(1e3 * moved / limits["copy"])
    if line["flops"] is not None and (rate := arithmetic(limits)) is not None:
        times.append(1e3 * line["flops"] / rate)
    return max(times, default=None)


def arithmetic(limits: dict[str, float]) -> float | None:
    """The arithmetic ceiling in flop/s: of the two that a CPU has, the multiply-adds' peak."""
    return limits.get("fma", limits.get("matmul"))


def best_of_ours(contest: Sequence[Line]) -> Line | None:
    """The fastest of this library's whose result was right."""
    return min((line for line in contest if ours(line) and line["ms"]), key=ms, default=None)


def beyond_noise(a: Line, b: Line) -> bool:
    """Whether the bands from the 20th to the 80th percentile of two lines do not touch."""
    return bool(a["ms"]["p20"] > b["ms"]["p80"] or b["ms"]["p20"] > a["ms"]["p80"])


Key = tuple[str, ...]


def identity(line: Line) -> Key:
    """What was measured: the same in two runs."""
    return (line["op"], line["mode"], line["case"], str(line["shape"]), line["dtype"],
            line["backend"])  # fmt: skip


def of_run(lines: Iterable[Line], run: str) -> list[Line]:
    """The lines of a run: a file's name or path, or the first digits of a commit.

    Of several measurements of the same at a commit the newest. Raises ValueError where none is.
    """
    lines = list(lines)
    chosen = [line for line in lines if line["file"] == Path(run).name]
    if not chosen and len(run) >= 4:
        chosen = [line for line in lines if line["environment"]["commit"].startswith(run)]
    if not chosen:
        files = sorted({line["file"] for line in lines})
        raise ValueError(f"no record is a file or of a commit called {run!r}; there are {files}")
    chosen.sort(key=lambda line: str(line["environment"]["utc"]))
    return list({identity(line): line for line in chosen}.values())
