"""Name what is in pictures, or in all pictures of folders."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from effnet_fast.backends import BACKENDS, BackendUnavailableError
from effnet_fast.cli.common import CommandError, checked_backend, chosen_device, complain, emit
from effnet_fast.models import EfficientNet, create_model
from effnet_fast.ops.checks import PADDINGS
from effnet_fast.preprocess import ImageError, imagenet_classes, load_image

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Formats whose files PIL recognises but cannot decode: not searched for in folders.
STUBS = frozenset({"BUFR", "GRIB", "HDF5", "MPEG"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``effnet-fast classify``."""
    parser.add_argument("paths", nargs="+", metavar="IMAGE_OR_FOLDER", help="searched recursively")
    parser.add_argument("--model", default="efficientnet_b0", help="default: %(default)s")
    parser.add_argument(
        "--weights", default="DEFAULT", metavar="NAME|PATH",
        help="a published name, or a checkpoint of torchvision, timm or lukemelas",
    )  # fmt: skip
    parser.add_argument("--padding", choices=PADDINGS, help="default: as the weights had it")
    parser.add_argument("--norm-eps", type=float, help="default: as the weights had it")
    parser.add_argument("--labels", metavar="FILE", help="class names, one per line")
    parser.add_argument("--topk", type=int, default=5, metavar="K", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="default: 16")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default: %(default)s")
    parser.add_argument("--backend", default="auto", help=f"auto, {', '.join(BACKENDS)}")
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
    device, backend = chosen_device(args.device), checked_backend(args.backend)
    labels = None if args.labels is None else _read_labels(args.labels)
    options = {"padding": args.padding, "norm_eps": args.norm_eps, "backend": backend}
    given = {name: value for name, value in options.items() if value is not None}
    model = _load(args.model, args.weights, given)
    labels = _fitting(labels, model.num_classes, args.labels)
    model = model.to(device, DTYPES[args.dtype], memory_format=torch.channels_last)  # type: ignore[call-overload]
    hidden = len(paths) < 2 or not sys.stderr.isatty()
    with tqdm(total=len(paths), unit="picture", disable=hidden, file=sys.stderr) as bar:
        for batch in _batches(paths, args.batch_size, model.recipe, report, bar):
            try:
                probabilities = _probabilities(model, torch.stack([x for _, x in batch]))
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


def _read_labels(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read --labels {path!r}: {error}") from error


def _load(name: str, weights: str, options: dict[str, Any]) -> EfficientNet:
    """The model in eval mode; every way in which it cannot be had is a CommandError."""
    try:
        model = create_model(name, weights, progress=sys.stderr.isatty(), **options)
    except (ValueError, OSError, ImportError) as error:
        raise CommandError(str(error)) from error
    if model.in_channels != 3 or model.num_classes == 0:
        raise CommandError(
            f"{weights} is for {model.in_channels} channels and {model.num_classes} classes: "
            "classify needs 3 (RGB) and at least 1"
        )
    return model.eval()


def _fitting(labels: list[str] | None, classes: int, path: str | None) -> list[str]:
    """One label for each class: the given ones, ImageNet's, or the class's number."""
    if labels is None:
        names = imagenet_classes()
        return [*names] if classes == len(names) else [f"class {i}" for i in range(classes)]
    if len(labels) != classes:
        raise CommandError(f"{path!r} has {len(labels)} lines and the model {classes} classes")
    return labels


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


def _probabilities(model: EfficientNet, images: Tensor) -> Tensor:
    """Normalised pictures [N,3,H,W] in fp32 -> [N, num_classes] in fp32, on the CPU."""
    weight = next(model.parameters())
    images = images.to(weight.device, weight.dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        return model(images).float().softmax(1).cpu()
