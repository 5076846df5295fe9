"""Name what is in pictures, or in all pictures of folders."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from effnet_fast.backends import BACKENDS, BackendUnavailableError, requested
from effnet_fast.cli.common import CommandError, chosen_device, complain, emit
from effnet_fast.cli.loading import add_model_arguments, load_model
from effnet_fast.engine import optimize_for_inference
from effnet_fast.models import EfficientNet
from effnet_fast.preprocess import ImageError, load_image

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Formats whose files PIL recognises but cannot decode: not searched for in folders.
STUBS = frozenset({"BUFR", "GRIB", "HDF5", "MPEG"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``effnet-fast classify``."""
    parser.add_argument("paths", nargs="+", metavar="IMAGE_OR_FOLDER", help="searched recursively")
    add_model_arguments(parser)
    parser.add_argument(
        "--backend", choices=("engine", "auto", *BACKENDS),
        help="engine: optimize_for_inference, on a CPU the default (unless EFFNET_FAST_BACKEND "
        "is set); the others run the model itself, op by op",
    )  # fmt: skip
    parser.add_argument("--topk", type=int, default=5, metavar="K", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="default: 16")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="one JSON object per picture and line")


def run(args: argparse.Namespace) -> int:
    """Classify; status 1 if anything was skipped."""
    if args.topk < 1 or args.batch_size < 1:
        raise CommandError(
            f"--topk and --batch-size must be >= 1, got {args.topk}, {args.batch_size}"
        )
    report = _Report(args.json)
    paths = _collect(args.paths, report)
    if not paths:
        raise CommandError("no pictures to classify")
    device = chosen_device(args.device)
    backend = args.backend or _default_backend(device)
    model, labels = load_model(args, "auto" if backend == "engine" else backend)
    classify = _classifier(model, backend, device, DTYPES[args.dtype])
    hidden = len(paths) < 2 or not sys.stderr.isatty()
    with tqdm(total=len(paths), unit="picture", disable=hidden, file=sys.stderr) as bar:
        for batch in _batches(paths, args.batch_size, model.recipe, report, bar):
            try:
                probabilities = classify(torch.stack([x for _, x in batch]))
            except BackendUnavailableError as error:
                raise CommandError(str(error)) from error
            except torch.OutOfMemoryError as error:
                raise CommandError(
                    f"out of memory on {device} with --batch-size {args.batch_size}: use a smaller"
                ) from error
            for (path, _), row in zip(batch, probabilities, strict=True):
                if row.isfinite().all():
                    report.answer(path, row, labels, args.topk)
                else:
                    report.skip(path, f"the output is not finite in {args.dtype}; try float32")
            bar.update(len(batch))
    return 1 if report.skipped else 0


@dataclass
class _Report:
    """Answers to stdout, what was skipped to stderr (and, as JSON, to stdout too)."""

    as_json: bool
    skipped: int = 0

    def skip(self, path: str, reason: str) -> None:
        self.skipped += 1
        complain(f"skipped: {reason}" if path in reason else f"skipped {path}: {reason}")
        if self.as_json:
            emit(json.dumps({"path": path, "error": reason}))

    def answer(self, path: str, probabilities: Tensor, labels: list[str], topk: int) -> None:
        values, indices = probabilities.topk(min(topk, len(labels)))
        best = [(labels[i], i, p) for p, i in zip(values.tolist(), indices.tolist(), strict=True)]
        if self.as_json:
            predictions = [{"label": n, "index": i, "probability": p} for n, i, p in best]
            emit(json.dumps({"path": path, "predictions": predictions}))
        else:
            emit("\n".join([path, *(f"  {p:.3f}  {name}" for name, _, p in best)]))


def _collect(given: list[str], report: _Report) -> list[str]:
    """The files among ``given``, and those under its folders with an extension that PIL reads."""
    extensions = {
        extension
        for extension, format in Image.registered_extensions().items()
        if format in Image.OPEN and format not in STUBS
    }

    def unreadable(error: OSError) -> None:
        report.skip(str(error.filename), error.strerror or type(error).__name__)

    paths = []
    for entry in given:
        if not os.path.isdir(entry):
            paths.append(entry)
            continue
        found = [
            os.path.join(folder, name)
            for folder, _, names in os.walk(entry, onerror=unreadable)
            for name in names
            if os.path.splitext(name)[1].lower() in extensions
        ]
        if not found:
            report.skip(entry, "no pictures in this folder")
        paths += sorted(found)
    return paths


def _batches(
    paths: list[str], size: int, recipe: Callable[[Image.Image], Tensor], report: _Report, bar: tqdm
) -> Iterator[list[tuple[str, Tensor]]]:
    """Up to ``size`` pictures at a time, in order, those that cannot be read reported."""
    batch: list[tuple[str, Tensor]] = []
    for path in paths:
        try:
            batch.append((path, recipe(load_image(path))))
        except ImageError as error:
            report.skip(path, str(error))
            bar.update()
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _default_backend(device: torch.device) -> str:
    """The native engine on a CPU, unless the environment asks for a backend of the model's ops."""
    try:
        asked = requested(None)
    except ValueError as error:
        raise CommandError(str(error)) from error
    return "engine" if device.type == "cpu" and asked == "auto" else "auto"


def _classifier(
    model: EfficientNet, backend: str, device: torch.device, dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """Normalised pictures [N,3,H,W] in fp32 -> probabilities [N, num_classes] in fp32, on the CPU.

    Raises CommandError where there is no engine of this model in ``dtype``.
    """
    if backend == "engine":
        try:
            engine = optimize_for_inference(model.to(device), dtype=dtype)
        except ValueError as error:
            raise CommandError(
                f"{error}; --backend auto runs the model itself, op by op"
            ) from error
        return lambda images: torch.as_tensor(engine(images.to(device))).softmax(1).cpu()
    layout = torch.channels_last
    model.to(device, dtype, memory_format=layout)  # type: ignore[call-overload]

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            x = images.to(device, dtype, memory_format=layout)
            return model(x).float().softmax(1).cpu()

    return run
