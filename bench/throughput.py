"""Measure whole models into a record: ``python -m bench.throughput [MODEL ...]``.

Stock PyTorch, other runtimes and this library (effnet_fast.cli.providers names them), at native
resolution, in inference and in a training step, beside this machine's copy bandwidth and arithmetic
rate. Providers take turns (A B C A B C), and a provider is
timed only if its result is as near to fp32's as the error rule asks: at most twice stock eager's
own distance. What does not fit in memory is recorded as such.

"compile" tunes the most that torch.compile can, which takes minutes a model; "compile-default"
is torch.compile as it comes. With "+graph" behind a provider's name one step of it is captured as
a CUDA graph and replayed (torch.compile's tuned mode does so by itself).
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import torch
from torch import Tensor

from bench import fma
from bench.contest import Entrant, contest
from bench.costs import GRAPH, ledger
from bench.records import Record, Writer
from bench.schedules import RESOLUTIONS
from bench.timing import milliseconds, percentiles
from effnet_fast.cli.common import chosen_device, cpu_threads
from effnet_fast.cli.providers import OURS, PROVIDERS

RESNETS = ("resnet50", "resnet152")
#: What a contest can compute in, by its name on a command line.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: Largest batches to try on a GPU, for B0 to B7, then for the ResNets; halved until they fit.
GPU_BATCH = dict(
    zip(
        [*RESOLUTIONS, *RESNETS],
        (256, 256, 128, 128, 64, 32, 32, 16, 256, 256),
        strict=True,
    )
)
#: On a CPU larger batches hardly gain and take long.
CPU_BATCH = 8


def measure(
    name: str, labels: list[str], x: Tensor, training: bool, repeats: int, writer: Writer
) -> bool:
    """Hold the contest and write a record for each; whether all of ours gave the right result."""
    mode = "training step" if training else "inference"
    entrants = [Entrant(label, name, x, training) for label in labels]
    present = []
    for entrant in entrants:
        if (reason := entrant.why_not()) is None:
            present.append(entrant)
        else:
            print(f"{name:<17}{mode:<14} {entrant.label} is left out: {reason}", flush=True)
    good = True
    for outcome in contest(present, repeats, title=f"{name} {mode} {x.shape[0]}"):
        record = outcome.record(mode)
        writer.add(record)
        print(line(record), flush=True)
        ours = record.backend.removesuffix(GRAPH) in OURS
        good &= not ours or record.gate in ("passed", "out of memory")
    return good


def line(record: Record) -> str:
    """A model's record for the eye."""
    n, outcome = record.shape[0], record.gate
    if record.ms is not None:
        outcome = f"{record.ms['p50']:>10.3f} ms {1e3 * n / record.ms['p50']:>9.1f} images/s"
    memory = "" if record.peak_memory is None else f" {record.peak_memory / 1e9:.2f} GB"
    return f"{record.case:<17}{record.mode:<14} batch {n:<4} {record.backend:<20}{outcome}{memory}"


def ceilings(device: torch.device, dtype: torch.dtype, writer: Writer) -> float:
    """Copy bandwidth and matrix rate, in the run whose figures are held against them; and on a CPU
    the peak of its multiply-adds.

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
    if not big:
        try:
            flop, times = fma.samples(20)
        except OSError as error:
            print(error, flush=True)
            return rates["copy"]
        ms = percentiles(times)
        shape = [torch.get_num_threads()]
        writer.add(
            Record("fma", "c++", "ceiling", "fma", shape, "float32", ms, "passed", None, flop)
        )
        print(f"{'fma':<17}{flop / ms['p50'] / 1e9:>10.3f} Tflop/s", flush=True)
    return rates["copy"]


def large_batch(name: str, device: torch.device, training: bool) -> int:
    """The large batch to begin with, a power of two.

    On a CPU, where too much ends the process, as many images as eager's saved activations leave
    half of the memory for.
    """
    if device.type == "cuda":
        return GPU_BATCH.get(name, 16)
    if not training:
        return CPU_BATCH
    side = RESOLUTIONS.get(name, 224)
    each = ledger("eager", name, side, side, torch.float32).saved
    room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return min(CPU_BATCH, 2 ** max(0, (room // each).bit_length() - 1))


def providers_here(cuda: bool) -> list[str]:
    """All that may take part; of this library on a GPU what "auto" takes, as a graph too."""
    ours = ["engine", "auto", f"auto{GRAPH}"] if cuda else ["engine", "reference"]
    theirs = [label for label in PROVIDERS if label not in (*OURS, "compile-default")]
    if cuda:
        theirs.insert(2, f"eager-channels-last{GRAPH}")
    return [*theirs, *ours]


def main(argv: list[str] | None = None) -> int:
    """Measure and write; returns 0, or 1 where a result of this library was wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.throughput", description=__doc__)
    parser.add_argument("models", nargs="*", help="default: B0 to B7, ResNet-50 and ResNet-152")
    parser.add_argument("--out", default="bench/results", help="folder (default: %(default)s)")
    parser.add_argument("--providers", nargs="+", help=f"some of {', '.join(PROVIDERS)}")
    parser.add_argument("--modes", nargs="+", default=["inference", "training"],
                        choices=["inference", "training"])  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:i")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16, on a CPU float32")
    parser.add_argument("--threads", type=int, help="CPU threads of all (default: torch's)")
    parser.add_argument("--repeats", type=int, default=20, help="timed rounds (default 20)")
    parser.add_argument("--batch-size", type=int, help="the large batch (default: what fits)")
    parser.add_argument("--resolution", type=int, help="default: native; ResNets 224")
    arguments = parser.parse_args(argv)
    unknown = {p.removesuffix(GRAPH) for p in arguments.providers or ()} - PROVIDERS.keys()
    if unknown:
        parser.error(f"unknown provider {min(unknown)!r}; known: {', '.join(PROVIDERS)}")
    device = chosen_device(arguments.device)
    cuda = device.type == "cuda"
    dtype = DTYPES[arguments.dtype or ("bfloat16" if cuda else "float32")]
    if arguments.threads is not None and arguments.threads < 1:
        parser.error(f"--threads must be >= 1, got {arguments.threads}")
    with cpu_threads(arguments.threads):
        return _measure_all(arguments, device, dtype)


def _measure_all(arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> int:
    cuda = device.type == "cuda"
    writer = Writer(arguments.out, device)
    ceilings(device, dtype, writer)
    good = True
    for name in arguments.models or list(GPU_BATCH):
        side = arguments.resolution or RESOLUTIONS.get(name, 224)
        labels = arguments.providers or providers_here(cuda)
        large = [arguments.batch_size or large_batch(name, device, t) for t in (False, True)]
        plans = [(1, False), (large[0], False)] if "inference" in arguments.modes else []
        plans += [(large[1], True)] if "training" in arguments.modes else []
        for n, training in plans:
            good &= _measure_what_fits(
                name, labels, n, side, dtype, device, training, arguments, writer
            )
    writer.close()
    print(f"written: {writer.path}")
    return 0 if good else 1


def _measure_what_fits(
    name: str, labels: list[str], n: int, side: int, dtype: torch.dtype, device: torch.device,
    training: bool, arguments: Any, writer: Writer,
) -> bool:  # fmt: skip
    """Halve the batch until stock eager and its check fit; what :func:`measure` returned."""
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
