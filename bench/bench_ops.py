"""Single fused ops: ``pytest bench/bench_ops.py --benchmark-only [-k depthwise] [--full]``.

One contest for each op, mode and distinct layer of B0, by --full of B0 to B7: this library's
backends and, for depthwise ops, what PyTorch runs instead (bench.peers), checked in fp64.
`python -m bench.kernels` is the same without pytest, for a GPU machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.arena import CLOCK, Arena, Entry
from bench.kernels import GPU, Layers, blocks, peers_on
from bench.op_contest import hold
from bench.schedules import RESOLUTIONS
from effnet_fast.backends import backends

CUDA = torch.cuda.is_available()
LABELS = [b for b, reason in backends().items() if reason is None and (b in GPU or not CUDA)]
#: On a CPU torch.compile takes longer for each layer than all that is measured here.
LABELS += peers_on(torch.device("cuda")) if CUDA else ("eager",)
DEFAULT = "efficientnet_b0"
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
        made = Layers(256 if CUDA else 1, torch.bfloat16 if CUDA else torch.float32, device)
        call = next(c for c in getattr(made, op)(*arguments) if c.mode == mode)
        return hold(call, labels)

    arena.enter(request.node, benchmark, contest)
