"""Time stock PyTorch and this library side by side, on this machine."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from effnet_fast import architecture
from effnet_fast.backends import BackendUnavailableError, backends
from effnet_fast.cli.common import CommandError, chosen_device, device_name, emit
from effnet_fast.models import EfficientNet, create_model
from effnet_fast.stock import import_torchvision

#: The largest difference that a provider's logits may have from the expected ones, relative to the
#: largest logit, for its time to count in fp32. Other orders of summation give up to about 1e-5
#: over a whole network; a dropped tap or another padding gives 1e-2 and more.
BAR = 1e-4
STOCK = {
    "stock eager NCHW": torch.contiguous_format,
    "stock eager channels_last": torch.channels_last,
}


@dataclass(frozen=True)
class Provider:
    """A model in eval mode and the layout of its input; a function of images [N, C, H, W]."""

    model: nn.Module
    memory_format: torch.memory_format

    def __call__(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            out: Tensor = self.model(x)
        return out


def providers(name: str, device: torch.device) -> tuple[dict[str, Provider], dict[str, str]]:
    """Everyone who computes model ``name`` in fp32 with the same weights, and who is left out why.

    The weights are random, but batch norm's running statistics are those of random images:
    statistics that nobody calibrated give logits around 1e-13, which hide any error.
    """
    calibrated = _calibrated(name)
    found, left_out = dict[str, Provider](), dict[str, str]()
    for label, memory_format in STOCK.items():
        try:
            model = _stock(name)
        except (ImportError, LookupError) as error:
            left_out[label] = str(error)
            continue
        model.load_state_dict(calibrated.state_dict())
        found[label] = _provider(model, device, memory_format)
    for backend, reason in backends().items():
        label = f"effnet_fast {backend}"
        if reason is not None:
            left_out[label] = reason
            continue
        ours = create_model(name, backend=backend)
        ours.load_state_dict(calibrated.state_dict())
        found[label] = _provider(ours, device, torch.channels_last)
    return found, left_out


def _calibrated(name: str) -> EfficientNet:
    model = create_model(name)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a plain average over the passes
    with torch.no_grad():
        for _ in range(2):
            model.train()(torch.randn(8, 3, 64, 64))
    return model


def _stock(name: str) -> nn.Module:
    if architecture.variant(name).lite:
        raise LookupError("torchvision has no EfficientNet-Lite")
    model: nn.Module = getattr(import_torchvision().models, name)()
    return model


def _provider(
    model: nn.Module, device: torch.device, memory_format: torch.memory_format
) -> Provider:
    model = model.eval().to(device, memory_format=memory_format)  # type: ignore[call-overload]
    return Provider(model, memory_format)


def expected(found: dict[str, Provider], x: Tensor) -> tuple[Tensor, str]:
    """The logits that all have to give for ``x`` and whose they are: stock eager's in fp32, or
    where there is no stock those of this library's reference in fp64.
    """
    stock = next((label for label in STOCK if label in found), None)
    if stock is not None:
        return found[stock](x), f"{stock} in fp32"
    model = found["effnet_fast reference"].model
    try:
        truth = Provider(model.double(), torch.channels_last)(x.double())
    finally:
        model.float()
    return truth, "effnet_fast reference in fp64"


def difference(actual: Tensor, truth: Tensor) -> float:
    """max |actual - truth| / max |truth|; the bar is :data:`BAR`. NaN fails every bar."""
    return ((actual - truth).abs().max() / truth.abs().max()).item()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``effnet-fast bench``."""
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: efficientnet_b0")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--resolution", type=int, metavar="PIXELS", help="default: the model's own")
    parser.add_argument("--repeats", type=int, default=20, metavar="N", help="default: 20")
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
    with _settings(args.threads):
        for name, v in zip(names, variants, strict=True):
            resolution = args.resolution or v.resolution
            result = measure(name, args.batch_size, resolution, args.repeats, device)
            all_good &= all(row["ok"] for row in result["rows"])
            emit(json.dumps(result) if args.json else _table(result))
    return 0 if all_good else 1


@contextmanager
def _settings(threads: int | None) -> Iterator[None]:
    """``threads`` and true fp32 (cuDNN's default, TF32, has 10 bits) until the end of the block."""
    before = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    torch.set_num_threads(threads or before[0])
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def measure(
    name: str, batch_size: int, resolution: int, repeats: int, device: torch.device
) -> dict[str, Any]:
    """Check every provider, then time the good ones in turn (A B C A B C): times in ms."""
    found, left_out = providers(name, device)
    x = torch.randn(batch_size, 3, resolution, resolution, device=device)
    inputs = {p: x.contiguous(memory_format=f.memory_format) for p, f in found.items()}
    truth, whose = expected(found, x)
    differences: dict[str, float] = {}
    for label, provider in found.items():
        try:
            differences[label] = difference(provider(inputs[label]), truth)
        except BackendUnavailableError as error:
            left_out[label] = str(error)
    times: dict[str, list[float]] = {p: [] for p, d in differences.items() if d < BAR}
    for _ in tqdm(range(repeats), desc=name, unit="round", leave=False, disable=None):
        for label, kept in times.items():
            kept.append(_milliseconds(found[label], inputs[label], device))
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
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    run(x)
    wait()
    return 1e3 * (time.perf_counter() - start)


def _row(label: str, off: float, times: list[float] | None) -> dict[str, Any]:
    ms = None
    if times is not None:
        p20, p50, p80 = np.percentile(times, (20, 50, 80)).tolist()
        ms = {"p20": p20, "p50": p50, "p80": p80}
    return {
        "provider": label,
        "ok": times is not None,
        "difference": off if np.isfinite(off) else str(off),
        "ms": ms,
    }


def _table(r: dict[str, Any]) -> str:
    """The result as text; speed-ups are against the faster of the stock rows."""
    stock = [row["ms"]["p50"] for row in r["rows"] if row["provider"] in STOCK and row["ok"]]
    size = f"{r['resolution']}x{r['resolution']}"
    lines = [
        f"{r['model']}: inference, fp32, batch {r['batch_size']}, {size}; {r['device']}, "
        f"{r['threads']} CPU threads, torch {r['torch']}",
        f"median and 20th, 80th percentile of {r['repeats']} interleaved runs; outputs checked "
        f"against {r['checked_against']}, bar {r['bar']:g}",
        f"{'':<27}{'p20 ms':>9}{'p50 ms':>9}{'p80 ms':>9}{'speed-up':>10}{'difference':>12}",
    ]
    for row in r["rows"]:
        off = f"{float(row['difference']):>12.1e}"
        if not row["ok"]:
            lines.append(f"{row['provider']:<27}{'FAIL: not timed':>37}{off}")
            continue
        ms = row["ms"]
        speedup = f"{min(stock) / ms['p50']:.2f}x" if stock else "-"
        times = "".join(f"{ms[p]:>9.2f}" for p in ("p20", "p50", "p80"))
        lines.append(f"{row['provider']:<27}{times}{speedup:>10}{off}")
    if stock:
        lines.append("speed-up: against the faster stock row, by p50; below 1 is slower")
    lines += [f"left out: {label}: {why}" for label, why in r["left_out"].items()]
    return "\n".join(lines)
