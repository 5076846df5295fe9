"""Step 1 of compound scaling: phi = 1, and the best alpha, beta, gamma by trial on a grid.

Every evaluation runs in a worker process, so that one that raises, or is killed, costs its own
point only. A journal keeps what is finished; a search that was interrupted goes on where it was.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike

import torch
from tqdm import tqdm

from effnet_fast.architecture import VARIANTS, Variant
from effnet_fast.models import from_variant
from effnet_fast.profile import count
from effnet_fast.scaling.compound import CompoundScaling
from effnet_fast.scaling.journal import Journal, Point
from effnet_fast.scaling.workers import Outcome, run_all

#: Trains and judges a model.
Evaluate = Callable[[Variant], float]
#: (accuracy, multiply-adds) -> what trials are ranked by, more is better.
Objective = Callable[[float, int], float]


@dataclass(frozen=True)
class Trial:
    """A point of the grid and what became of it.

    ``macs``: multiply-adds on one image, the classifier's not counted. ``accuracy``: what
    ``evaluate`` returned, or None, and then ``error`` says why. ``seconds``: of the evaluation.
    """

    alpha: float
    beta: float
    gamma: float
    variant: Variant
    macs: int
    accuracy: float | None
    error: str | None
    seconds: float


def mnas_objective(accuracy: float, macs: float, target: float, w: float = -0.07) -> float:
    """``accuracy * (macs / target) ** w``: MnasNet's trade of accuracy for cost.

    Source: arXiv 1905.11946, section 4, after Tan et al., arXiv 1807.11626.
    """
    return accuracy * (macs / target) ** w


def constraint_grid(step: float = 0.05, tolerance: float = 0.1) -> list[Point]:
    """All (alpha, beta, gamma) >= 1 in steps of ``step`` with alpha * beta^2 * gamma^2 near 2.

    ``tolerance``: how near. Smaller alphas first. ValueError for a step that is not positive.
    """
    if not 0 < step < math.inf:
        raise ValueError(f"step must be positive, got {step}")
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be >= 0, got {tolerance}")
    most = 2 + tolerance
    values = [round(1 + i * step, 9) for i in range(int((most - 1) / step + 1e-9) + 1)]
    return [
        (a, b, c)
        for a in values
        for b in values
        for c in values
        if abs(a * b**2 * c**2 - 2) <= tolerance + 1e-9
    ]


def grid_search(
    evaluate: Evaluate,
    *,
    grid: Sequence[Point] | None = None,
    baseline: Variant = VARIANTS["efficientnet_b0"],
    resolution_multiple: int = 1,
    journal: str | PathLike[str] | None = None,
    workers: int = 1,
    objective: Objective | None = None,
) -> list[Trial]:
    """Evaluate ``baseline`` scaled by every point of ``grid`` at phi = 1, and rank the points.

    Args:
        evaluate: what trains a model of a :class:`~effnet_fast.architecture.Variant`
            (:func:`effnet_fast.models.from_variant` builds it) and returns its accuracy, a finite
            number. It runs in worker processes, started afresh ("spawn"): a function of a module,
            and the script that searches guards its start by ``if __name__ == "__main__"``.
        grid: (alpha, beta, gamma) each; default :func:`constraint_grid`.
        baseline: what phi = 0 is.
        resolution_multiple: as in :meth:`CompoundScaling.variant`.
        journal: a file of JSON lines, made if it is not there. What is finished in it is not
            evaluated again; what failed is. None keeps no record.
        workers: evaluations at a time. Each gets its share of the CPU's cores as torch threads.
        objective: what to rank by; default accuracy.

    Returns:
        A trial for every point: the best first, and last those that failed, their ``error`` said.

    Raises:
        ValueError: a point is off the constraint by more than 1, ``workers`` is below 1, or the
            journal is of another search or damaged; the message says which.
        TypeError: ``evaluate`` cannot be sent to another process.
    """
    if workers < 1:
        raise ValueError(f"workers must be >= 1, got {workers}")
    points = list(dict.fromkeys(constraint_grid() if grid is None else grid))
    blank = [_blank(p, baseline, resolution_multiple) for p in points]
    header = {
        "baseline": dataclasses.asdict(baseline),
        "resolution_multiple": resolution_multiple,
        "phi": 1,
    }
    book = Journal(journal, header)
    done: dict[Point, Trial] = {}
    for trial in blank:
        record = book.finished.get(_key(trial))
        if record is not None:
            done[_key(trial)] = dataclasses.replace(
                trial, accuracy=record["accuracy"], error=None, seconds=record["seconds"]
            )
    rank = objective or (lambda accuracy, macs: accuracy)

    def score(trial: Trial) -> float:
        return -math.inf if trial.accuracy is None else rank(trial.accuracy, trial.macs)

    todo = [t for t in blank if _key(t) not in done]
    with tqdm(
        total=len(blank), initial=len(done), unit="point", disable=None, file=sys.stderr
    ) as bar:
        for outcome in run_all(evaluate, [t.variant for t in todo], workers):
            trial = _finished(todo[outcome.number], outcome)
            book.append(_record(trial))
            done[_key(trial)] = trial
            best = max(done.values(), key=score)
            bar.set_postfix_str(f"best {_key(best)}: {best.accuracy}")
            bar.update()
    return sorted((done[_key(t)] for t in blank), key=score, reverse=True)


def _key(trial: Trial) -> Point:
    return trial.alpha, trial.beta, trial.gamma


def _blank(point: Point, baseline: Variant, multiple: int) -> Trial:
    """A trial that was not run."""
    alpha, beta, gamma = point
    rule = CompoundScaling(alpha, beta, gamma, tolerance=1.0, baseline=baseline)
    v = rule.variant(1, multiple)
    with torch.device("meta"):
        macs = count(from_variant(v, num_classes=0), v.resolution).macs
    return Trial(alpha, beta, gamma, v, macs, None, "not evaluated", 0.0)


def _record(trial: Trial) -> dict[str, object]:
    """A line of the journal."""
    v = trial.variant
    return {
        "alpha": trial.alpha, "beta": trial.beta, "gamma": trial.gamma, "depth": v.depth,
        "width": v.width, "resolution": v.resolution, "macs": trial.macs,
        "accuracy": trial.accuracy, "error": trial.error, "seconds": round(trial.seconds, 3),
    }  # fmt: skip


def _finished(trial: Trial, outcome: Outcome) -> Trial:
    """``trial`` with what its evaluation came to."""
    accuracy, error = outcome.value, outcome.error
    if accuracy is not None and not math.isfinite(accuracy):
        accuracy, error = None, f"evaluate returned {accuracy}, which is no accuracy"
    return dataclasses.replace(trial, accuracy=accuracy, error=error, seconds=outcome.seconds)
