"""The model that a command is told to use, with its weights, and the names of its classes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from effnet_fast.cli.common import CommandError, checked_backend
from effnet_fast.models import EfficientNet, create_model
from effnet_fast.ops.checks import PADDINGS
from effnet_fast.preprocess import imagenet_classes


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what :func:`load_model` reads, but for its ``backend``, and ``--device``."""
    parser.add_argument("--model", default="efficientnet_b0", help="default: %(default)s")
    parser.add_argument(
        "--weights", default="DEFAULT", metavar="NAME|PATH",
        help="a published name, or a checkpoint of torchvision, timm or lukemelas",
    )  # fmt: skip
    parser.add_argument("--padding", choices=PADDINGS, help="default: as the weights had it")
    parser.add_argument("--norm-eps", type=float, help="default: as the weights had it")
    parser.add_argument("--labels", metavar="FILE", help="class names, one per line")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i")


def load_model(args: argparse.Namespace, backend: str) -> tuple[EfficientNet, list[str]]:
    """The model in eval mode on the CPU, with this backend, and a label for each of its classes."""
    backend = checked_backend(backend)
    labels = None if args.labels is None else _read_labels(args.labels)
    options = {"padding": args.padding, "norm_eps": args.norm_eps, "backend": backend}
    given = {name: value for name, value in options.items() if value is not None}
    model = _load(args.model, args.weights, given)
    return model, _fitting(labels, model.num_classes, args.labels)


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
            "pictures need 3 (RGB) and at least 1"
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
