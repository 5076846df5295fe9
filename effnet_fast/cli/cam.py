"""Show where in a picture a model sees a class, as a heat map over the picture."""

from __future__ import annotations

import argparse

import torch
from PIL import Image

from effnet_fast.backends import BACKENDS, BackendUnavailableError
from effnet_fast.cam import class_activation_map, grad_cam
from effnet_fast.cli.common import CommandError, chosen_device, emit
from effnet_fast.cli.loading import add_model_arguments, load_model
from effnet_fast.heatmap import overlay
from effnet_fast.preprocess import ImageError, load_image

METHODS = {"cam": class_activation_map, "grad-cam": grad_cam}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``effnet-fast cam``."""
    parser.add_argument("photo", metavar="PHOTO", help="all of it is looked at, not a crop")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="a picture to write")
    parser.add_argument(
        "--class", dest="wanted", metavar="NAME",
        help="a class's name, an unmistakable part of it, or its number; default: the likeliest",
    )  # fmt: skip
    parser.add_argument("--method", choices=METHODS, default="cam", help="default: %(default)s")
    add_model_arguments(parser)
    parser.add_argument("--backend", default="auto", help=f"auto, {', '.join(BACKENDS)}")


def run(args: argparse.Namespace) -> int:
    """Write the picture and say which class it shows, with its probability."""
    if args.output.rpartition(".")[2].lower() not in _writable():
        raise CommandError(
            f"cannot write {args.output!r}: no picture format has that extension; use .png or .jpg"
        )
    device = chosen_device(args.device)
    try:
        photo = load_image(args.photo)
    except ImageError as error:
        raise CommandError(str(error)) from error
    model, labels = load_model(args, args.backend)
    wanted = None if args.wanted is None else _index_of(args.wanted, labels)
    x = model.recipe.whole(photo)[None].to(device, memory_format=torch.channels_last)
    try:
        result = METHODS[args.method](model.to(device), x, wanted)
    except BackendUnavailableError as error:
        raise CommandError(str(error)) from error
    index = int(result.classes[0])
    try:
        overlay(photo, result.maps[0]).save(args.output)
    except OSError as error:
        raise CommandError(f"cannot write {args.output!r}: {error}") from error
    probability = float(result.logits[0].float().softmax(0)[index])
    emit(f"{probability:.3f}  {labels[index]}  -> {args.output}")
    return 0


def _writable() -> set[str]:
    """The extensions of the formats that PIL writes, without their dots."""
    found = Image.registered_extensions()
    return {extension[1:] for extension, format in found.items() if format in Image.SAVE}


def _index_of(wanted: str, labels: list[str]) -> int:
    """The class that ``wanted`` means: by number, by its whole name, or by a part of one name."""
    if wanted.isdecimal():
        if int(wanted) < len(labels):
            return int(wanted)
        raise CommandError(f"no class {wanted}: the model has 0 to {len(labels) - 1}")
    names = [label.lower() for label in labels]
    found = [i for i, name in enumerate(names) if name == wanted.lower()]
    found = found or [i for i, name in enumerate(names) if wanted.lower() in name]
    if len(found) == 1:
        return found[0]
    if not found:
        raise CommandError(f"no class is named {wanted!r}; --labels names the model's own")
    some = ", ".join(f"{labels[i]!r} ({i})" for i in found[:10])
    raise CommandError(f"{len(found)} classes are named {wanted!r}: {some}; say which")
