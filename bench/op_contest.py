"""One op by everyone who computes it: checked against fp64 first, then timed in turn.

Truth is the reference, or the peer itself, in fp64 on the same operands; nobody may be further off
than twice the reference in the type under test.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from tqdm import tqdm

from bench.arena import Entry
from bench.kernels import FLUSH, Call, off, peers_on
from bench.records import Record
from bench.timing import milliseconds, percentiles, replayable
from effnet_fast.limits import tensors

ROUNDS = 20


def in_fp64(call: Call, label: str) -> list[Tensor]:
    """What ``label`` has to give: the peer's own function, else the reference, in fp64."""

    def widen(tree: Any) -> Any:
        return tree_map(lambda v: v.double() if isinstance(v, Tensor) else v, tree)

    if label in call.peers:
        function, arguments = call.peers[label]
        return getattr(function, "stock", function)(*widen(arguments))
    return Call(call.op, call.mode, call.case, widen(call.args))("reference")


def hold(call: Call, labels: list[str]) -> dict[str, Entry]:
    """Check every label that the call has, and time the good ones in turn, the cache flushed."""
    x = next(tensors(call.args))
    exact = in_fp64(call, "reference")
    own = [t.double() for t in call("reference")]
    bar = 2 * off(own, exact) + torch.finfo(x.dtype).eps
    steps: dict[str, Callable[[], list[Tensor]]] = {}
    gates: dict[str, str] = {}
    for label in labels:
        if label in peers_on(x.device) and label not in call.peers:
            continue
        step = partial(call, label)
        steps[label] = replayable(step) if x.is_cuda else step
        found = off(steps[label](), in_fp64(call, label) if label in call.peers else exact)
        gates[label] = "passed" if found <= bar else f"off by {found:.1e}, bar {bar:.1e}"
    times: dict[str, list[float]] = {label: [] for label in steps if gates[label] == "passed"}
    flush = torch.ones(FLUSH // 4 if x.is_cuda else 0, device=x.device)  # read, as in bench.kernels
    title = f"{call.op} {call.mode} {call.case}"
    for _ in tqdm(range(ROUNDS + 1), desc=title, leave=False, disable=None):
        for label, samples in times.items():
            flush.sum()
            samples.append(milliseconds(steps[label], x.is_cuda))
    moved = sum(t.numel() * t.element_size() for t in (*tensors(call.args), *call("reference")))
    dtype = str(x.dtype).removeprefix("torch.")
    entries = {label: Entry(left_out=f"{label} has nothing like this op") for label in labels}
    for label, gate in gates.items():
        samples = times.get(label, [0.0])[1:]
        record = Record(
            call.op, label, call.mode, call.case, list(x.shape), dtype,
            percentiles(samples) if samples else None, gate, bytes=moved,
        )  # fmt: skip
        entries[label] = Entry(record, samples)
    return entries
