"""Measure block shapes on this GPU and keep those that beat the built-in choice."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from effnet_fast import architecture
from effnet_fast.backends import backends
from effnet_fast.cli.classify import DTYPES
from effnet_fast.cli.common import CommandError, chosen_device, complain, device_name, emit
from effnet_fast.models import create_model
from effnet_fast.stock import calibrate

#: The share of the default's time that a configuration has to save to be kept: medians of 20 ms
#: of runs repeat to about a percent.
GAIN = 0.03
#: The largest difference from the default's result, relative to its largest value, that another
#: order of summation may make: four units of a 16-bit type; for fp32 the sums of a whole batch.
BAR = 1e-3
#: Milliseconds of runs before, and in, one measurement.
WARM_UP, MEASURED = 5, 20


@dataclass
class Call:
    """An op's call that a model made, and the question of tuning that it asked."""

    op: str
    key: str
    default: Any
    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __call__(self) -> Any:
        with torch.no_grad():
            return self.function(*self.arguments)


#: Milliseconds of a call.
Timer = Callable[[Call], float]


@dataclass
class Verdict:
    """What the measurement of one call found; milliseconds."""

    best: Any
    ms: float
    default_ms: float
    wrong: list[Any] = field(default_factory=list)

    @property
    def faster(self) -> bool:
        return self.ms < (1 - GAIN) * self.default_ms


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``effnet-fast tune``."""
    parser.add_argument("--model", default="efficientnet_b0", help="default: %(default)s")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="default: 32")
    parser.add_argument("--resolution", type=int, metavar="PIXELS", help="default: the model's own")
    parser.add_argument("--device", default="auto", help="auto, cuda or cuda:i")
    parser.add_argument("--dry-run", action="store_true", help="list what would be measured")


def run(args: argparse.Namespace) -> int:
    """Tune all kernels that the model uses; status 1 if a configuration's results were wrong."""
    for option in ("batch_size", "resolution"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise CommandError(f"--{option.replace('_', '-')} must be >= 1, got {value}")
    try:
        side = args.resolution or architecture.variant(args.model).resolution
    except ValueError as error:
        raise CommandError(str(error)) from error
    device, reason = chosen_device(args.device), backends()["triton"]
    if device.type != "cuda" or reason is not None:
        raise CommandError(
            "measures Triton's kernels on a CUDA GPU: " + (reason or f"{args.device} is {device}")
        )
    x = torch.randn(args.batch_size, 3, side, side, device=device, dtype=DTYPES[args.dtype])
    with torch.cuda.device(device):
        try:
            calls = record(lambda: _train_and_infer(args.model, x))
        except torch.OutOfMemoryError as error:
            raise CommandError(
                f"out of memory on {device} with --batch-size {args.batch_size}: use a smaller"
            ) from error
        if args.dry_run:
            emit(_plan(calls))
            return 0
        return tune(calls, _gpu_milliseconds, device_name(device))


# ---------------------------------------------------------------- what is to be measured


class _Recorder(TorchDispatchMode):
    """Keeps the first call of this library's ops behind every question of tuning."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.calls: dict[tuple[str, str], Call] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from effnet_fast.kernels import tuning

        if func.namespace != "effnet_fast":
            return func(*args, **(kwargs or {}))
        with tuning.recording() as picks:
            result = func(*args, **(kwargs or {}))
        for op, key, default in picks:
            self.calls.setdefault((op, key), Call(op, key, default, func, args))
        return result


def record(program: Callable[[], object]) -> list[Call]:
    """Run ``program`` and return the distinct questions of tuning that its ops asked."""
    with _Recorder() as recorder:
        program()
    return list(recorder.calls.values())


def _train_and_infer(name: str, x: Tensor) -> None:
    """A training step, then inference: together every kernel of the model on ``x``."""
    model = create_model(name, backend="triton")
    # nn.Module.to has no overload which names memory_format with a device.
    model.to(x.device, x.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    calibrate(model, x)
    labels = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
    F.cross_entropy(model.train()(x).float(), labels).backward()
    with torch.inference_mode():
        model.eval()(x)


def _plan(calls: list[Call]) -> str:
    from effnet_fast.kernels import tuning

    lines = [f"{'op':<18}{'key':<44}{'configurations':>14}"]
    total = 0
    for call in calls:
        count = len(tuning.candidates(call.op, call.key, call.default))
        total += count
        lines.append(f"{call.op:<18}{call.key:<44}{count:>14}")
    return "\n".join([*lines, f"{len(calls)} keys, {total} measurements"])


# ---------------------------------------------------------------- measuring


def tune(calls: list[Call], timer: Timer, device: str) -> int:
    """Measure every call and write the user's table after each, so that Ctrl-C loses nothing."""
    from effnet_fast.kernels import tuning

    path = tuning.table_path(tuning.architecture())
    try:
        entries = tuning.read_table(path)
    except tuning.TuningTableError as error:
        complain(f"starting a new table: {error}")
        entries = {}
    total = sum(len(tuning.candidates(c.op, c.key, c.default)) for c in calls)
    all_right, kept = True, 0
    with tqdm(total=total, unit="run", disable=None, file=sys.stderr) as bar:
        for call in calls:
            bar.set_description(f"{call.op} {call.key}")
            verdict = measure(call, timer, bar.update)
            for config in verdict.wrong:
                all_right = False
                complain(f"{call.op} {call.key!r}: {config} gives other results; report this bug")
            keys = entries.setdefault(call.op, {})
            keys.pop(call.key, None)
            if verdict.faster:
                keys[call.key] = _entry(verdict, device)
                kept += 1
                emit(
                    f"{call.op} {call.key!r}: {verdict.default_ms:.4f} ms -> {verdict.ms:.4f} ms "
                    f"with {verdict.best}"
                )
            tuning.write_table(path, {op: k for op, k in entries.items() if k})
    tuning.forget()
    emit(f"{kept} of {len(calls)} keys beat the built-in choice; kept in {path}")
    return 0 if all_right else 1


def measure(call: Call, timer: Timer, tick: Callable[[], object]) -> Verdict:
    """Time every configuration whose results are the default's; the best meets it once more."""
    from triton import TritonError

    from effnet_fast.kernels import tuning

    with _forced(call, call.default):
        truth = _tensors(call())
        default_ms = timer(call)
    tick()
    best = Verdict(call.default, default_ms, default_ms)
    for config in tuning.candidates(call.op, call.key, call.default)[1:]:
        tick()
        with _forced(call, config):
            try:
                results = _tensors(call())
            except (TritonError, torch.OutOfMemoryError):  # too large for this GPU
                continue
            if not _agree(results, truth):
                best.wrong.append(config)
                continue
            ms = timer(call)
        if ms < best.ms:
            best.best, best.ms = config, ms
    if best.faster:
        for config in (call.default, best.best):
            with _forced(call, config):
                ms = timer(call)
            if config == call.default:
                best.default_ms = min(best.default_ms, ms)
            else:
                best.ms = max(best.ms, ms)
    return best


@contextmanager
def _forced(call: Call, config: Any) -> Iterator[None]:
    from effnet_fast.kernels import tuning

    with tuning.override(call.op, config, call.key):
        yield


def _tensors(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)


def _agree(results: list[Tensor], truth: list[Tensor]) -> bool:
    """Whether the results differ by no more than another order of summation explains."""
    for ours, theirs in zip(results, truth, strict=True):
        if theirs.numel() == 0:
            continue
        bar = max(BAR, 4 * torch.finfo(theirs.dtype).eps)
        off = (ours.double() - theirs.double()).abs().max()
        if not off <= bar * theirs.double().abs().max():  # NaN is no agreement
            return False
    return True


def _gpu_milliseconds(call: Call) -> float:
    """The median over some runs, each with an L2 cache that another write has swept."""
    from triton.testing import do_bench

    ms: float = do_bench(call, warmup=WARM_UP, rep=MEASURED, return_mode="median")
    return ms


def _entry(verdict: Verdict, device: str) -> dict[str, Any]:
    import triton

    return {
        "config": verdict.best._asdict(),
        "ms": round(verdict.ms, 6),
        "default_ms": round(verdict.default_ms, 6),
        "device": device,
        "triton": triton.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
