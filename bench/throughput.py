"""Measure whole models into a record: ``python -m bench.throughput [MODEL ...]``.

Stock PyTorch (torchvision; eager NCHW, eager channels_last, torch.compile) and this library's
backends, at native resolution, in inference and in a training step, beside this machine's copy
bandwidth and matrix rate. On a GPU in bf16, on a CPU in fp32. Providers take turns (A B C A B C),
and a provider is timed only if its result is as near to fp32's as the error rule asks: at most
twice stock eager's own distance. What does not fit in memory is recorded as such.

"compile" tunes the most that torch.compile can, which takes minutes a model; "compile-default"
is torch.compile as it comes. With "+graph" behind a provider's name one step of it is captured as
a CUDA graph and replayed (torch.compile's tuned mode does so by itself).
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from bench.records import Record, Writer
from bench.timing import milliseconds, percentiles, replayable
from effnet_fast import architecture
from effnet_fast.cli.common import chosen_device
from effnet_fast.models import create_model
from effnet_fast.profile import count
from effnet_fast.stock import calibrate, import_torchvision

STOCK = ("eager-nchw", "eager-channels-last", "compile")
GRAPH = "+graph"
RESNETS = ("resnet50", "resnet152")
#: Largest batches to try on a GPU, for B0 to B7, then for the ResNets; halved until they fit.
GPU_BATCH = dict(
    zip(
        [*list(architecture.VARIANTS)[:8], *RESNETS],
        (256, 256, 128, 128, 64, 32, 32, 16, 256, 256),
        strict=True,
    )
)
CPU_BATCH = 8


@dataclass
class Provider:
    """A model somebody computes, in a layout, in inference or training."""

    model: nn.Module
    layout: torch.memory_format
    training: bool
    graph: bool = False

    def prepared(self, x: Tensor) -> Callable[[], Tensor]:
        """A step on ``x``, to be called again and again."""
        step = partial(self.step, x.contiguous(memory_format=self.layout))
        return replayable(step) if self.graph else step

    def step(self, x: Tensor) -> Tensor:
        """What is timed: logits, or a training step less the optimiser, its loss."""
        if not self.training:
            with torch.inference_mode():
                out: Tensor = self.model(x)
            return out
        self.model.zero_grad(set_to_none=True)
        labels = torch.arange(x.shape[0], device=x.device)
        loss = nn.functional.cross_entropy(self.model(x).float(), labels)
        loss.backward()
        return loss.detach()

    def result(self, step: Callable[[], Tensor]) -> Tensor:
        """What is checked of a :meth:`prepared` step: logits, or all gradients as one vector."""
        out = step()
        if self.training:
            grads = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
            out = torch.cat(grads)
        return out.float()


def stock(name: str) -> nn.Module:
    """torchvision's model of that name."""
    model: nn.Module = getattr(import_torchvision().models, name)()
    return model


def build(label: str, name: str, state: dict[str, Tensor], x: Tensor, training: bool) -> Provider:
    """The provider ``label`` of model ``name`` on ``x``'s device, in ``x``'s type."""
    label, graph, _ = label.partition(GRAPH)
    ours = not label.startswith(("eager", "compile"))
    model = create_model(name, backend=label) if ours else stock(name)
    model.load_state_dict(state)
    layout = torch.contiguous_format if label == "eager-nchw" else torch.channels_last
    model.to(x.device, x.dtype, memory_format=layout).train(training)  # type: ignore[call-overload]
    for m in model.modules():  # the same gradients for all: nothing is dropped
        if isinstance(m, nn.Dropout) or type(m).__name__ == "StochasticDepth":
            m.eval()
    if label.startswith("compile"):
        tuned = x.is_cuda and label == "compile"
        model = torch.compile(model, mode="max-autotune" if tuned else None)  # type: ignore[assignment]
    return Provider(model, layout, training, bool(graph))


def measure(
    name: str, labels: list[str], x: Tensor, training: bool, repeats: int, writer: Writer
) -> None:
    """Check every provider, time the good ones in turn, and write a record for each."""
    cuda = x.is_cuda
    reference = stock(name).to(x.device)
    calibrate(reference, x.float())
    state = {k: v.cpu() for k, v in reference.state_dict().items()}
    wide = build("eager-nchw", name, state, x.float(), training)
    exact = wide.result(wide.prepared(x.float()))
    scale = exact.abs().max().item()
    del wide

    def off(provider: Provider, step: Callable[[], Tensor]) -> float:
        return (provider.result(step) - exact).abs().max().item() / scale

    base = build("eager-channels-last", name, state, x, training)
    bar = 2 * off(base, base.prepared(x)) + torch.finfo(x.dtype).eps
    del base
    mode = "training step" if training else "inference"
    macs = count(copy.deepcopy(reference), (x.shape[2], x.shape[3])).macs
    flops = 2 * macs * x.shape[0] * (3 if training else 1)
    del reference
    rows: list[tuple[str, Callable[[], Tensor] | None, str, int | None]] = []
    for label in labels:
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        others = torch.cuda.memory_allocated() if cuda else 0
        try:
            provider = build(label, name, state, x, training)
            step = provider.prepared(x)
            found = off(provider, step)
        except torch.OutOfMemoryError:
            rows.append((label, None, "out of memory", None))
            continue
        peak = torch.cuda.max_memory_allocated() - others if cuda else None
        gate = "passed" if found <= bar else f"off by {found:.1e}, bar {bar:.1e}"
        rows.append((label, step, gate, peak))
    times: dict[str, list[float]] = {row[0]: [] for row in rows if row[2] == "passed"}
    for _ in tqdm(
        range(repeats + 1), desc=f"{name} {mode} {x.shape[0]}", leave=False, disable=None
    ):
        for label, timed, _, _ in rows:
            if label in times and timed is not None:
                times[label].append(milliseconds(timed, cuda))
    for label, _, gate, peak in rows:
        ms = percentiles(times[label][1:]) if label in times else None
        writer.add(Record(
            "model", label, mode, name, list(x.shape), str(x.dtype).removeprefix("torch."), ms,
            gate, flops=flops, peak_memory=peak,
        ))  # fmt: skip
        outcome = gate
        if ms is not None:
            outcome = f"{ms['p50']:>10.3f} ms {1e3 * x.shape[0] / ms['p50']:>9.1f} images/s"
        memory = "" if peak is None else f" {peak / 1e9:.2f} GB"
        print(
            f"{name:<17}{mode:<14} batch {x.shape[0]:<4} {label:<20}{outcome}{memory}", flush=True
        )


def ceilings(device: torch.device, dtype: torch.dtype, writer: Writer) -> float:
    """Copy bandwidth and matrix rate, in the run whose figures are held against them.

    Returns the bandwidth, in TB/s.
    """
    rates = {}
    big = device.type == "cuda"
    source = torch.empty(2**30 if big else 2**26, dtype=torch.uint8, device=device).fill_(1)
    target, n = torch.empty_like(source), 8192 if big else 1024
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    for op, run, shape, moved, flops in (
        ("copy", lambda: target.copy_(source), [source.numel()], 2 * source.numel(), None),
        ("matmul", lambda: torch.mm(a, b), [n, n, n], None, 2 * n**3),
    ):
        times = [milliseconds(run, big) for _ in range(25)][5:]
        ms = percentiles(times)
        name = str(dtype).removeprefix("torch.") if op == "matmul" else "uint8"
        writer.add(Record(op, "torch", "ceiling", op, shape, name, ms, "passed", moved, flops))
        rates[op] = (moved or flops or 0) / ms["p50"] / 1e9
        print(f"{op:<17}{rates[op]:>10.3f} {'TB/s' if op == 'copy' else 'Tflop/s'}", flush=True)
    return rates["copy"]


def providers_here(name: str, cuda: bool) -> list[str]:
    """Stock, and this library: what "auto" takes, on a GPU as a CUDA graph too."""
    stock_here = (*STOCK, f"eager-channels-last{GRAPH}") if cuda else STOCK
    if name in RESNETS:
        return [*stock_here]
    return [*stock_here, "auto", f"auto{GRAPH}"] if cuda else [*stock_here, "auto"]


def main(argv: list[str] | None = None) -> int:
    """Measure and write; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.throughput", description=__doc__)
    parser.add_argument("models", nargs="*", help="default: B0 to B7, ResNet-50 and ResNet-152")
    parser.add_argument("--out", default="bench/results", help="folder (default: %(default)s)")
    parser.add_argument("--providers", nargs="+", help=f"some of {', '.join(STOCK)}, our backends")
    parser.add_argument("--modes", nargs="+", default=["inference", "training"],
                        choices=["inference", "training"])  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:i")
    parser.add_argument("--repeats", type=int, default=20, help="timed rounds (default 20)")
    parser.add_argument("--batch-size", type=int, help="the large batch (default: what fits)")
    parser.add_argument("--resolution", type=int, help="default: native; ResNets 224")
    arguments = parser.parse_args(argv)
    device = chosen_device(arguments.device)
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    writer = Writer(arguments.out, device)
    ceilings(device, dtype, writer)
    for name in arguments.models or list(GPU_BATCH):
        side = arguments.resolution or (
            224 if name in RESNETS else architecture.variant(name).resolution
        )
        labels = arguments.providers or providers_here(name, cuda)
        large = arguments.batch_size or (GPU_BATCH.get(name, 16) if cuda else CPU_BATCH)
        plans = [(1, False), (large, False)] if "inference" in arguments.modes else []
        plans += [(large, True)] if "training" in arguments.modes else []
        for n, training in plans:
            _measure_what_fits(name, labels, n, side, dtype, device, training, arguments, writer)
    writer.close()
    print(f"written: {writer.path}")
    return 0


def _measure_what_fits(
    name: str, labels: list[str], n: int, side: int, dtype: torch.dtype, device: torch.device,
    training: bool, arguments: Any, writer: Writer,
) -> None:  # fmt: skip
    """Halve the batch until stock eager and its check fit."""
    while True:
        torch.manual_seed(0)
        x = torch.randn(n, 3, side, side, device=device).to(dtype)
        try:
            return measure(name, labels, x, training, arguments.repeats, writer)
        except torch.OutOfMemoryError:
            if n == 1:
                raise
            n //= 2


if __name__ == "__main__":
    sys.exit(main())
