"""What a pass over a model costs whoever computes it: multiply-adds, and by the ledger bytes moved,
bytes saved for backward and operators that move them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import nn

from bench.ledger import Ledger, moved, per_image
from bench.schedules import SCHEDULES
from effnet_fast import architecture
from effnet_fast.backends import BACKENDS
from effnet_fast.cli.providers import stock
from effnet_fast.models import create_model
from effnet_fast.profile import Profile, count

#: Behind a provider's label: one step is captured as a CUDA graph and replayed.
GRAPH = "+graph"


@dataclass(frozen=True)
class Cost:
    """Of one call on a batch: ``bytes`` moved, ``saved`` (training), ``launches`` of operators."""

    bytes: int
    saved: int | None
    launches: int


def schedule_of(label: str) -> str | None:
    """The ledger's schedule that provider ``label`` follows; None where nobody can know."""
    base = label.removesuffix(GRAPH)
    if base in ("auto", *BACKENDS):
        return "ours"
    return "eager" if base.startswith("eager") else None


@cache
def ledger(schedule: str, name: str, height: int, width: int, dtype: torch.dtype) -> Ledger:
    """That of model ``name`` run by ``schedule`` on an image of that size."""
    return per_image(partial(SCHEDULES[schedule], name), (3, height, width), dtype)


@cache
def profile(name: str, height: int, width: int) -> Profile:
    """Parameters and multiply-adds of one image."""
    with torch.device("meta"):
        known = name in architecture.VARIANTS
        model: nn.Module = create_model(name) if known else stock(name)
    return count(model, (height, width))


def flops(name: str, shape: tuple[int, ...], training: bool) -> int:
    """Of one call on images of ``shape`` [N, 3, H, W]; a step's backward is twice its forward."""
    n, _, height, width = shape
    return 2 * profile(name, height, width).macs * n * (3 if training else 1)


def cost(
    schedule: str, name: str, shape: tuple[int, ...], dtype: torch.dtype, training: bool
) -> Cost:
    """Of one call on images of ``shape`` [N, 3, H, W].

    Activations by the ledger, and the weights: read once in inference; in a step read twice and
    their gradient written once.
    """
    n, _, height, width = shape
    found = ledger(schedule, name, height, width, dtype)
    weights = profile(name, height, width).params * dtype.itemsize
    rows = found.training if training else found.inference
    return Cost(
        bytes=n * moved(rows) + weights * (3 if training else 1),
        saved=n * found.saved if training else None,
        launches=sum(row.calls for row in rows.values()),
    )
