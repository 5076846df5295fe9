"""One model by everyone who computes it, on the largest batch that fits, for pytest's door."""

from __future__ import annotations

import torch

from bench.arena import Entry
from bench.contest import Entrant, contest
from bench.schedules import RESOLUTIONS

#: Rounds, and seconds after which a contest makes do with fewer.
ROUNDS, SECONDS = 20, 10.0


def hold(
    entrants: dict[str, Entrant], mode: str, rounds: int = ROUNDS, seconds: float = SECONDS
) -> dict[str, Entry]:
    """The contest of those who can take part, by label."""
    reasons = {label: entrant.why_not() for label, entrant in entrants.items()}
    present = [label for label, reason in reasons.items() if reason is None]
    found = {label: Entry(left_out=reason) for label, reason in reasons.items() if reason}
    if present:
        title = f"{entrants[present[0]].name}, {mode}"
        outcomes = contest([entrants[label] for label in present], rounds, seconds, title)
        for label, outcome in zip(present, outcomes, strict=True):
            found[label] = Entry(outcome.record(mode), outcome.samples)
    return found


def hold_what_fits(
    labels: list[str], name: str, n: int, training: bool, device: torch.device, dtype: torch.dtype
) -> dict[str, Entry]:
    """The contest on the largest batch up to ``n``, by halves, that stock eager can compute."""
    side = RESOLUTIONS.get(name, 224)
    while True:
        torch.manual_seed(0)
        x = torch.randn(n, 3, side, side, device=device).to(dtype)
        entrants = {label: Entrant(label, name, x, training) for label in labels}
        try:
            return hold(entrants, "training step" if training else "inference")
        except torch.OutOfMemoryError:
            if n == 1:
                raise
            n //= 2
