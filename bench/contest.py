"""Whole models against each other: everyone's result checked first, then all timed in turn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from bench.costs import GRAPH, cost, flops, schedule_of
from bench.memory import Meter
from bench.records import Record
from bench.timing import milliseconds, percentiles, replayable
from effnet_fast.cli.providers import (
    Provider,
    bar,
    build,
    calibrated_state,
    difference,
    expected,
    why_not,
)

#: Seconds before a call on a CPU. ONNX Runtime's threads spin for 20 to 50 ms after its own: beside
#: them another's two threads took 6.3 ms for what takes 2.2.
REST = 0.05

#: Rounds that a contest takes at least, however slow they are.
FEWEST = 5


@dataclass(frozen=True)
class Entrant:
    """Provider ``label`` (:data:`GRAPH` behind it: replayed) of model ``name`` on images ``x``."""

    label: str
    name: str
    x: Tensor
    training: bool = False

    def why_not(self) -> str | None:
        """Why it cannot take part here; None if it can."""
        base = self.label.removesuffix(GRAPH)
        reason = why_not(base, self.name, self.x, self.training)
        if reason is None and base != self.label and not self.x.is_cuda:
            return "CUDA graphs are a GPU's"
        return reason


@dataclass
class Outcome:
    """What became of an entrant: its gate, and if that passed its times in ms, all in turn."""

    entrant: Entrant
    gate: str
    off: float = math.nan
    step: Callable[[], Tensor] | None = None
    peak: int | None = None
    samples: list[float] = field(default_factory=list)

    def record(self, mode: str) -> Record:
        """The line of a record."""
        x, label, name = self.entrant.x, self.entrant.label, self.entrant.name
        training, shape = self.entrant.training, tuple(self.entrant.x.shape)
        schedule = schedule_of(label)
        own = None if schedule is None else cost(schedule, name, shape, x.dtype, training)
        return Record(
            "model", label, mode, name, list(shape), str(x.dtype).removeprefix("torch."),
            percentiles(self.samples) if self.samples else None, self.gate,
            flops=flops(name, shape, training), peak_memory=self.peak,
            **({} if own is None else asdict(own)),
        )  # fmt: skip


class Judge:
    """What all have to give for images ``x`` of a model, and how far off they may be."""

    def __init__(self, name: str, x: Tensor, training: bool) -> None:
        self.state = calibrated_state(name, x)
        self.truth, _ = expected(name, self.state, x, training)
        self.bar = bar(name, self.state, x, self.truth, training)

    def admit(self, entrant: Entrant) -> Outcome:
        """Build the entrant's provider, let it compute once, and check what it gives."""
        base = entrant.label.removesuffix(GRAPH)
        meter = Meter(entrant.x.is_cuda)
        try:
            provider: Provider = build(base, entrant.name, self.state, entrant.x, entrant.training)
            step: Callable[[], Tensor] = partial(provider.step, provider.prepare(entrant.x))
            if base != entrant.label:
                step = replayable(step)
            off = difference(provider.checked(step()), self.truth)
            if not off <= self.bar:  # NaN is not
                return Outcome(entrant, f"off by {off:.1e}, bar {self.bar:.1e}", off)
            return Outcome(entrant, "passed", off, step, meter.peak(step))
        except torch.OutOfMemoryError:
            return Outcome(entrant, "out of memory")
        except Exception as error:  # one that breaks is an outcome, and no end of the contest
            first = (str(error).splitlines() or [""])[0]
            return Outcome(entrant, f"failed: {type(error).__name__}: {first}")


def contest(
    entrants: Sequence[Entrant], repeats: int, seconds: float = math.inf, title: str = ""
) -> list[Outcome]:
    """Admit all, and time those that passed in turn, A B C A B C.

    ``repeats`` rounds after one that does not count; fewer, but :data:`FEWEST` at least, where they
    take longer than ``seconds``. On a CPU each rests and computes once before it is timed. Entrants
    of one model have the same images. Raises torch.OutOfMemoryError where the check itself does not
    fit.
    """
    judges: dict[str, Judge] = {}
    outcomes = []
    for entrant in tqdm(entrants, desc=f"{title}: build, check", leave=False, disable=None):
        if entrant.name not in judges:
            judges[entrant.name] = Judge(entrant.name, entrant.x, entrant.training)
        outcomes.append(judges[entrant.name].admit(entrant))
    end = math.inf
    for turn in tqdm(range(repeats + 1), desc=f"{title}: time", leave=False, disable=None):
        for outcome in outcomes:
            if outcome.step is not None:
                cuda = outcome.entrant.x.is_cuda
                if not cuda:
                    time.sleep(REST)
                    outcome.step()
                ms = milliseconds(outcome.step, cuda)
                if turn > 0:
                    outcome.samples.append(ms)
        if turn == 0:
            end = time.monotonic() + seconds
        elif turn >= FEWEST and time.monotonic() > end:
            break
    return outcomes
