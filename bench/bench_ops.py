"""Single fused ops: ``pytest bench/bench_ops.py --benchmark-only [-k depthwise] [--full]``.

One contest for each op, mode and distinct layer of B0, by --full of B0 to B7: this library's
backends and, for depthwise ops, what PyTorch runs instead (bench.peers). Truth is the reference, or
the peer itself, in fp64 on the same operands; nobody may be further off than twice the reference.
`python -m bench.kernels` is the same without pytest, for a GPU machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.utils._pytree import tree_map
from tqdm import tqdm

from bench.arena import CLOCK, Arena, Entry
from bench.kernels import FLUSH, GPU, PEERS, Call, Layers, blocks, off
from bench.records import Record
from bench.schedules import RESOLUTIONS
from bench.timing import milliseconds, percentiles, replayable
from effnet_fast.backends import backends
from effnet_fast.limits import tensors

CUDA = torch.cuda.is_available()
LABELS = [b for b, reason in backends().items() if reason is None and (b in GPU or not CUDA)]
#: On a CPU torch.compile takes longer for each layer than all that is measured here.
LABELS += PEERS if CUDA else ("eager",)
DEFAULT, ROUNDS = "efficientnet_b0", 20
#: Of each layer: forward with what is folded into it, forward in training, and its backward op.
MODES = ("inference", "training", "backward")


def layers() -> Iterator[Any]:
    """(op, mode, arguments of Layers' method) of every distinct layer of the family."""
    seen = set()
    for model in RESOLUTIONS:
        for kernel, stride, c, wide, k, side in blocks(model):
            out = -(-side // stride)
            found: list[tuple[str, tuple[object, ...], str]] = [
                ("depthwise", (kernel, stride, wide, side), f"k{kernel}s{stride}-c{wide}-{side}"),
                ("pointwise", (wide, k, out, True), f"project-{wide}-{k}-{out}"),
            ]
            if wide != c:
                found.insert(0, ("pointwise", (c, wide, side, False), f"expand-{c}-{wide}-{side}"))
            for op, arguments, name in found:
                for mode in MODES:
                    if (mode, arguments) in seen:
                        continue
                    seen.add((mode, arguments))
                    marks = [] if model == DEFAULT else [pytest.mark.full]
                    short = model.removeprefix("efficientnet_")
                    yield pytest.param(
                        op, mode, arguments, id=f"{short}-{op}-{mode}-{name}", marks=marks
                    )


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
        if label in PEERS and label not in call.peers:
            continue
        step = partial(call, label)
        steps[label] = replayable(step) if x.is_cuda else step
        found = off(steps[label](), in_fp64(call, label) if label in call.peers else exact)
        gates[label] = "passed" if found <= bar else f"off by {found:.1e}, bar {bar:.1e}"
    times: dict[str, list[float]] = {label: [] for label in steps if gates[label] == "passed"}
    flush = torch.empty(FLUSH if x.is_cuda else 0, dtype=torch.uint8, device=x.device)
    title = f"{call.op} {call.mode} {call.case}"
    for _ in tqdm(range(ROUNDS + 1), desc=title, leave=False, disable=None):
        for label, samples in times.items():
            flush.zero_()
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


@pytest.mark.ops
@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize(("op", "mode", "arguments"), list(layers()))
def test_op(
    benchmark: BenchmarkFixture, arena: Arena, device: torch.device,
    request: pytest.FixtureRequest, op: str, mode: str, arguments: tuple[Any, ...], label: str,
) -> None:  # fmt: skip
    def contest(labels: list[str]) -> dict[str, Entry]:
        torch.manual_seed(0)
        made = Layers(128 if CUDA else 1, torch.bfloat16 if CUDA else torch.float32, device)
        call = next(c for c in getattr(made, op)(*arguments) if c.mode == mode)
        return hold(call, labels)

    arena.enter(request.node, benchmark, contest)
