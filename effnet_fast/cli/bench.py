"""Time stock PyTorch and this library side by side, on this machine."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from effnet_fast import architecture
from effnet_fast.backends import BACKENDS, BackendUnavailableError
from effnet_fast.cli.common import CommandError, chosen_device, cpu_threads, device_name, emit
from effnet_fast.cli.providers import (
    BAR,
    PROVIDERS,
    STOCK,
    Provider,
    build,
    calibrated_state,
    difference,
    expected,
    true_fp32,
    why_not,
)

#: Without --providers: what needs no optional runtime and no minutes of compilation.
DEFAULT = (*STOCK, "engine", *BACKENDS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``effnet-fast bench``."""
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: efficientnet_b0")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--resolution", type=int, metavar="PIXELS", help="default: the model's own")
    parser.add_argument("--repeats", type=int, default=20, metavar="N", help="default: 20")
    parser.add_argument("--providers", nargs="+", choices=list(PROVIDERS), default=DEFAULT,
                        metavar="P", help=f"some of {', '.join(PROVIDERS)}; default: "
                        f"{', '.join(DEFAULT)}")  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: torch's")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i")
    parser.add_argument("--json", action="store_true", help="one JSON object per model and line")


def run(args: argparse.Namespace) -> int:
    """Time every model; status 1 if any provider's output failed the check."""
    for option in ("batch_size", "resolution", "repeats", "threads"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise CommandError(f"--{option.replace('_', '-')} must be >= 1, got {value}")
    device, names = chosen_device(args.device), args.models or ["efficientnet_b0"]
    try:
        variants = [architecture.variant(name) for name in names]
    except ValueError as error:
        raise CommandError(str(error)) from error
    all_good = True
    with cpu_threads(args.threads), true_fp32():
        for name, v in zip(names, variants, strict=True):
            side = args.resolution or v.resolution
            result = measure(name, args.batch_size, side, args.repeats, device, args.providers)
            all_good &= all(row["ok"] for row in result["rows"])
            emit(json.dumps(result) if args.json else _table(result))
    return 0 if all_good else 1


def measure(
    name: str, batch_size: int, resolution: int, repeats: int, device: torch.device,
    labels: Sequence[str] = DEFAULT,
) -> dict[str, Any]:  # fmt: skip
    """Check every provider, then time the good ones in turn (A B C A B C); times in ms."""
    x = torch.randn(batch_size, 3, resolution, resolution, device=device)
    state = calibrated_state(name, x)
    truth, whose = expected(name, state, x)
    found: dict[str, Provider] = {}
    differences: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for label in labels:
        if (reason := why_not(label, name, x)) is not None:
            left_out[label] = reason
            continue
        found[label] = build(label, name, state, x)
        try:
            differences[label] = difference(found[label].result(x), truth)
        except BackendUnavailableError as error:  # this device's or this shape's own reason
            left_out[label] = str(error)
    inputs = {label: provider.prepare(x) for label, provider in found.items()}
    times: dict[str, list[float]] = {p: [] for p, d in differences.items() if d < BAR}
    for _ in tqdm(range(repeats), desc=name, unit="round", leave=False, disable=None):
        for label, kept in times.items():
            kept.append(_milliseconds(found[label].step, inputs[label], device))
    return {
        "model": name,
        "batch_size": batch_size,
        "resolution": resolution,
        "repeats": repeats,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "checked_against": whose,
        "bar": BAR,
        "rows": [_row(p, d, times.get(p)) for p, d in differences.items()],
        "left_out": left_out,
    }


def _milliseconds(run: Callable[[Tensor], Tensor], x: Tensor, device: torch.device) -> float:
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run(x)
    if on_gpu:
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def _row(label: str, off: float, times: list[float] | None) -> dict[str, Any]:
    ms = None
    if times is not None:
        ms = dict(zip(("p20", "p50", "p80"), np.percentile(times, (20, 50, 80)), strict=True))
    # JSON has no NaN and no infinity.
    known = off if np.isfinite(off) else str(off)
    return {"provider": label, "ok": times is not None, "difference": known, "ms": ms}


def _table(r: dict[str, Any]) -> str:
    """The result as text; speed-ups are against the faster of the stock rows."""
    stock = [row["ms"]["p50"] for row in r["rows"] if row["provider"] in STOCK and row["ok"]]
    size = f"{r['resolution']}x{r['resolution']}"
    lines = [
        f"{r['model']}: inference, fp32, batch {r['batch_size']}, {size}; {r['device']}, "
        f"{r['threads']} CPU threads, torch {r['torch']}",
        f"{r['repeats']} interleaved runs: median, 20th and 80th percentile; outputs checked "
        f"against {r['checked_against']}, bar {r['bar']:g}",
        f"{'':<27}{'p20 ms':>9}{'p50 ms':>9}{'p80 ms':>9}{'speed-up':>10}{'difference':>12}",
    ]
    for row in r["rows"]:
        off = f"{float(row['difference']):>12.1e}"
        if not row["ok"]:
            lines.append(f"{row['provider']:<27}{'FAIL: not timed':>37}{off}")
            continue
        speedup = f"{min(stock) / row['ms']['p50']:.2f}x" if stock else "-"
        times = "".join(f"{row['ms'][p]:>9.2f}" for p in ("p20", "p50", "p80"))
        lines.append(f"{row['provider']:<27}{times}{speedup:>10}{off}")
    if stock:
        lines.append("speed-up: against the faster stock row, by p50; below 1 is slower")
    lines += [f"left out: {label}: {why}" for label, why in r["left_out"].items()]
    return "\n".join(lines)
