"""Measure single ops into a record: ``python -m bench.kernels [MODEL ...] [--batch-size N]``.

Every distinct block of the models, op by op: inference, training forward and backward, by every
backend of this library that the machine has, and depthwise ops by PyTorch too (:mod:`bench.peers`).
Each result is checked against fp32's before it is timed, on a GPU as the replay of a CUDA graph;
the cache is flushed before each call, by a read, for a write would leave it full of lines for the
timed call to write back. The bytes that an op's tensors hold are held against the copy bandwidth
measured in the same run, and a "plain" convolution is timed beside a copy of its input, whose bytes
are its own at stride 1 and whose launch costs the same. First come the two layers that a depthwise
kernel has to do at 80 % of it: 112 x 112 x 96 and 56 x 56 x 144, forward, nothing fused. Beside a
depthwise "backward" stand the two gradients of PyTorch's convolution alone, beside "plain" the
convolution: cuDNN's on a GPU, oneDNN's on a CPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bench import peers
from bench.records import Record, Writer
from bench.throughput import ceilings
from bench.timing import milliseconds, percentiles, replayable
from effnet_fast import architecture
from effnet_fast.backends import BACKENDS, backends
from effnet_fast.cli.common import chosen_device
from effnet_fast.limits import tensors
from effnet_fast.ops import library
from effnet_fast.ops.checks import resolve_padding

#: Bytes read before each timed call: more than the L2 of any GPU (H200: 60 MB).
FLUSH = 256 * 2**20
PLAIN = ((3, 96, 112), (5, 144, 56), (3, 144, 56))
#: What there is to compare on a GPU, where the reference's many operators would only take time.
GPU = ("cuda", "triton")
#: Whose kernels PyTorch's convolution runs, by the kind of device.
VENDORS = {"cuda": "cudnn", "cpu": "onednn"}


def peers_on(device: torch.device) -> tuple[str, ...]:
    """The labels of what PyTorch runs there."""
    vendor = VENDORS[device.type]
    return "copy", vendor, f"{vendor}-nchw", "eager", "compile"


Peers = dict[str, tuple[peers.Function, tuple[Any, ...]]]


@dataclass(frozen=True)
class Call:
    """One op with its arguments, less the backend; what PyTorch does instead, by label."""

    op: str
    mode: str
    case: str
    args: tuple[Any, ...]
    peers: Peers = field(default_factory=dict)

    def __call__(self, label: str) -> list[Tensor]:
        if label in self.peers:
            function, args = self.peers[label]
            return function(*args)
        return list(tensors((getattr(library, self.op)(*self.args, label),)))

    def exact(self, label: str) -> list[Tensor]:
        """The same in fp32, by the reference, or by the peer itself."""
        if label in self.peers:
            function, args = self.peers[label]
            return getattr(function, "stock", function)(*widened(args))
        return list(tensors((getattr(library, self.op)(*widened(self.args), "reference"),)))


class Layers:
    """The ops of MBConv blocks on a batch of ``n``, with random operands."""

    def __init__(self, n: int, dtype: torch.dtype, device: torch.device) -> None:
        self.n, self.dtype, self.device = n, dtype, device

    def map(self, c: int, h: int) -> Tensor:
        """An activation [n, c, h, h], channels_last."""
        shape = (self.n, c, h, h)
        return torch.randn(shape, device=self.device, dtype=self.dtype).contiguous(
            memory_format=torch.channels_last
        )

    def vectors(self, *shape: int) -> Tensor:
        """Per-channel values in fp32."""
        return torch.rand(shape, device=self.device) + 0.5

    def weight(self, *shape: int) -> Tensor:
        """A convolution's, of fan-in scale."""
        fan = max(1, shape[1] * shape[2] * shape[3])
        return (torch.randn(shape, device=self.device) / fan**0.5).to(self.dtype)

    def batch_norm(self, c: int) -> list[Tensor | None]:
        """weight, bias, mean, variance."""
        return list(self.vectors(4, c))

    def depthwise(self, kernel: int, stride: int, c: int, h: int) -> Iterator[Call]:
        """Forward in both modes, and backward."""
        case = f"k{kernel} s{stride} c{c} {h}x{h}"
        x, w = self.map(c, h), self.weight(c, 1, kernel, kernel)
        pads = resolve_padding(None, x.shape, kernel, stride)
        head, stock = (x, w, stride, pads), (x, w, stride, kernel // 2)
        yield Call(
            "depthwise", "plain", case, (*head, None, "identity", [], 0.0, "identity", "none"),
            {"copy": (peers.copy, (x,)), **vendors(peers.convolution, stock)},
        )  # fmt: skip
        bn = self.batch_norm(c)
        yield Call(
            "depthwise", "inference", case, (*head, None, "identity", bn, 1e-3, "silu", "pool"),
            fused(peers.inference, (*stock, bn, 1e-3)),
        )  # fmt: skip
        affine = self.vectors(2, c)
        yield Call(
            "depthwise", "training", case, (*head, affine, "silu", [], 0.0, "identity", "stats"),
            fused(peers.training, (*stock, affine)),
        )  # fmt: skip
        p = -(-h // stride)
        g, y, coef = self.map(c, p), self.map(c, p), self.vectors(4, c)
        gate, dpool = self.vectors(self.n, c), self.vectors(self.n, c)
        yield Call(
            "depthwise_bwd", "backward", case,
            (g, y, x, w, stride, pads, coef, affine, "silu", gate, dpool, affine, "silu",
             self.vectors(2, c), None, True, True),
            vendors(peers.convolution_backward, (g, *stock)),
        )  # fmt: skip

    def pointwise(self, c: int, k: int, h: int, project: bool) -> Iterator[Call]:
        """Expansion or projection, forward in both modes, and backward."""
        case = f"{'project' if project else 'expand'} {c} to {k} {h}x{h}"
        x, w = self.map(c, h), self.weight(k, c, 1, 1)
        gate = self.vectors(self.n, c) if project else None
        affine = self.vectors(2, c) if project else None
        norm = self.vectors(2, c) if project else None
        act = "silu" if project else "identity"
        yield Call(
            "pointwise", "inference", case,
            (x, w, None, "identity", gate, self.batch_norm(k), 1e-3,
             "identity" if project else "silu", None, False),
        )  # fmt: skip
        yield Call(
            "pointwise", "training", case,
            (x, w, affine, act, gate, [], 0.0, "identity", None, True),
        )  # fmt: skip
        g, y, coef = self.map(k, h), self.map(k, h), self.vectors(4, k)
        yield Call(
            "pointwise_bwd", "backward", case,
            (g, y, x, w, coef, None, "identity", None, None, affine, act, gate, norm, None,
             True, True),
        )  # fmt: skip


def vendors(function: peers.Function, args: tuple[Any, ...]) -> Peers:
    """The convolution's own kernels, in both layouts."""
    _, plain, nchw, *_ = peers_on(args[0].device)
    return {plain: (function, args), nchw: peers.nchw(function, args)}


def fused(function: peers.Function, args: tuple[Any, ...]) -> Peers:
    """All that the fused op does."""
    return {"eager": (function, args), "compile": (peers.compiled(function), args)}


def blocks(model: str) -> Iterator[tuple[int, int, int, int, int, int]]:
    """(kernel, stride, C in, C expanded, C out, input side) of the distinct blocks of ``model``."""
    v = architecture.variant(model)
    side, seen = -(-v.resolution // 2), set()
    for stage in architecture.stages(v):
        for i in range(stage.layers):
            c = stage.in_channels if i == 0 else stage.out_channels
            stride = stage.stride if i == 0 else 1
            found = (stage.kernel, stride, c, c * stage.expansion, stage.out_channels, side)
            if found not in seen:
                seen.add(found)
                yield found
            side = -(-side // stride)


def calls(model: str, layers: Layers) -> Iterator[Callable[[], Iterator[Call]]]:
    """Makers of one layer's calls each, so that a layer's memory is freed before the next's."""
    for kernel, stride, c, wide, k, side in blocks(model):
        if wide != c:
            yield partial(layers.pointwise, c, wide, side, False)
        yield partial(layers.depthwise, kernel, stride, wide, side)
        yield partial(layers.pointwise, wide, k, -(-side // stride), True)


def off(found: list[Tensor], exact: list[Tensor]) -> float:
    """The largest error, relative to each result's own largest value."""
    pairs = [(a, b) for a, b in zip(found, exact, strict=True) if b.numel()]
    return max(((a.float() - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def widened(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same in fp32."""

    def widen(v: Any) -> Any:
        if isinstance(v, list):
            return [widen(u) for u in v]
        return v.float() if isinstance(v, Tensor) else v

    return tuple(widen(a) for a in args)


def measure(call: Call, labels: list[str], repeats: int, writer: Writer, tb_per_s: float) -> None:
    """Check every label that the call has, time the good ones in turn, write a record for each."""
    x = next(tensors(call.args))
    cuda = x.is_cuda
    labels = [label for label in labels if label in call.peers or label not in peers_on(x.device)]
    exact = call.exact("reference")
    bar = 2 * off(call("reference"), exact) + torch.finfo(x.dtype).eps
    gates, steps = {}, {}
    for label in labels:
        step = partial(call, label)
        steps[label] = replayable(step) if cuda else step
        found = off(steps[label](), call.exact(label) if label in call.peers else exact)
        gates[label] = "passed" if found <= bar else f"off by {found:.1e}, bar {bar:.1e}"
    moved = sum(t.numel() * t.element_size() for t in (*tensors(call.args), *call("reference")))
    times: dict[str, list[float]] = {label: [] for label in labels if gates[label] == "passed"}
    flush = torch.ones(FLUSH // 4 if cuda else 0, device=x.device)
    for _ in range(repeats + 1):
        for label, own in times.items():
            flush.sum()
            own.append(milliseconds(steps[label], cuda))
    for label in labels:
        ms = percentiles(times[label][1:]) if label in times else None
        dtype = str(x.dtype).removeprefix("torch.")
        writer.add(Record(
            call.op, label, call.mode, call.case, list(x.shape), dtype, ms, gates[label],
            bytes=moved,
        ))  # fmt: skip
        outcome = gates[label]
        if ms is not None:
            share = moved / ms["p50"] / 1e9 / tb_per_s
            outcome = f"{ms['p50']:>9.4f} ms {100 * share:>5.1f} % of copy"
        print(f"{call.op:<15}{call.mode:<10}{call.case:<27}{label:<11}{outcome}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Measure and write; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__)
    parser.add_argument("models", nargs="*", default=["efficientnet_b0"])
    parser.add_argument("--out", default="bench/results", help="folder (default: %(default)s)")
    parser.add_argument(
        "--backends", nargs="+", help="default: what this machine has, and PyTorch's"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:i")
    parser.add_argument("--batch-size", type=int, help="default: 256, on a CPU 1")
    parser.add_argument("--repeats", type=int, default=20, help="timed rounds (default 20)")
    arguments = parser.parse_args(argv)
    device = chosen_device(arguments.device)
    cuda = device.type == "cuda"
    layers = Layers(
        arguments.batch_size or (256 if cuda else 1),
        torch.bfloat16 if cuda else torch.float32,
        device,
    )
    ours = [b for b, reason in backends().items() if reason is None and (b in GPU or not cuda)]
    labels = arguments.backends or [*ours, *peers_on(device)]
    known = (*BACKENDS, *peers_on(device))
    if unknown := sorted(set(labels) - set(known)):
        parser.error(f"unknown backend {unknown[0]!r} on {device.type}; known: {', '.join(known)}")
    writer = Writer(arguments.out, device)
    tb_per_s = ceilings(device, layers.dtype, writer)
    for kernel, c, h in PLAIN:
        gate = next(layers.depthwise(kernel, 1, c, h))
        measure(gate, labels, arguments.repeats, writer, tb_per_s)
    for model in arguments.models:
        for make in tqdm(list(calls(model, layers)), desc=model, disable=None):
            for call in make():
                measure(call, labels, arguments.repeats, writer, tb_per_s)
    writer.close()
    print(f"written: {writer.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
