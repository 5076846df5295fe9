"""Published weights by name, and the way from any ``weights=`` argument to tensors and recipe.

Sources: torchvision 0.28's ``EfficientNet_B*_Weights`` for B0 to B7, and for Lite0 to Lite4 the
``tf_efficientnet_lite*`` files of timm's release v0.1-weights with timm 1.0's pre-processing
(https://github.com/huggingface/pytorch-image-models, results/results-imagenet.csv for acc@1).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor
from pathlib import Path
from typing import Any

import torch

from effnet_fast import architecture
from effnet_fast.checkpoints import (
    Checkpoint,
    CheckpointError,
    Hints,
    Padding,
    convert,
    read_file,
    unwrap,
)
from effnet_fast.checkpoints import load_into as load_into  # models take all of it from here
from effnet_fast.preprocess import HALF, IMAGENET_MEAN, IMAGENET_STD, Interpolation, Recipe, Triple


class DownloadError(OSError):
    """Published weights could not be fetched, or arrived damaged."""


@dataclass(frozen=True)
class WeightsEntry:
    """One published set of weights: where it is, its recipe, and its acc@1 on ImageNet-1k in %."""

    url: str
    recipe: Recipe
    acc1: float


def _torchvision(
    file: str, crop: int, resize: int, acc1: float, interpolation: Interpolation = "bicubic"
) -> WeightsEntry:
    url = f"https://download.pytorch.org/models/efficientnet_{file}.pth"
    return WeightsEntry(url, Recipe(crop, resize, interpolation), acc1)


def _lite(
    file: str, crop: int, crop_pct: float, acc1: float, interpolation: Interpolation = "bicubic"
) -> WeightsEntry:
    base = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights"
    recipe = Recipe(crop, floor(crop / crop_pct), interpolation, HALF, HALF)
    return WeightsEntry(f"{base}/tf_efficientnet_{file}.pth", recipe, acc1)


_V1, _V2 = "IMAGENET1K_V1", "IMAGENET1K_V2"

#: Model name -> weights name -> entry. "DEFAULT" stands for a model's last entry. The eight hex
#: digits that end a file's name begin its SHA-256.
WEIGHTS: dict[str, dict[str, WeightsEntry]] = {
    "efficientnet_b0": {_V1: _torchvision("b0_rwightman-7f5810bc", 224, 256, 77.692)},
    "efficientnet_b1": {
        _V1: _torchvision("b1_rwightman-bac287d4", 240, 256, 78.642),
        _V2: _torchvision("b1-c27df63c", 240, 255, 79.838, "bilinear"),
    },
    "efficientnet_b2": {_V1: _torchvision("b2_rwightman-c35c1473", 288, 288, 80.608)},
    "efficientnet_b3": {_V1: _torchvision("b3_rwightman-b3899882", 300, 320, 82.008)},
    "efficientnet_b4": {_V1: _torchvision("b4_rwightman-23ab8bcd", 380, 384, 83.384)},
    "efficientnet_b5": {_V1: _torchvision("b5_lukemelas-1a07897c", 456, 456, 83.444)},
    "efficientnet_b6": {_V1: _torchvision("b6_lukemelas-24a108a5", 528, 528, 84.008)},
    "efficientnet_b7": {_V1: _torchvision("b7_lukemelas-c5b4e57e", 600, 600, 84.122)},
    "efficientnet_lite0": {_V1: _lite("lite0-0aa007d2", 224, 0.875, 74.830)},
    "efficientnet_lite1": {_V1: _lite("lite1-bde8b488", 240, 0.882, 76.644)},
    "efficientnet_lite2": {_V1: _lite("lite2-dcccb7df", 260, 0.890, 77.464)},
    "efficientnet_lite3": {_V1: _lite("lite3-b733e338", 300, 0.904, 79.808, "bilinear")},
    "efficientnet_lite4": {_V1: _lite("lite4-741542c3", 380, 0.920, 81.532, "bilinear")},
}

_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".pth.tar")


def default_recipe(
    lite: bool,
    resolution: int,
    *,
    padding: Padding = "symmetric",
    mean: Triple | None = None,
    std: Triple | None = None,
) -> Recipe:
    """The pre-processing where a model's weights do not say: bicubic, native size.

    ``resolution``: side of the square input, pixels. Weights from TensorFlow
    (``padding="same"``) were evaluated with a margin of 32 pixels around the crop, the others with
    the crop at 0.875 of the shorter side. ``mean`` and ``std``: by default 0.5 for Lite and
    ImageNet's for the rest.
    """
    resize = resolution + 32 if padding == "same" else round(resolution / 0.875)
    return Recipe(
        resolution,
        resize,
        mean=mean or (HALF if lite else IMAGENET_MEAN),
        std=std or (HALF if lite else IMAGENET_STD),
    )


def resolve(
    name: str,
    weights: Any,
    *,
    stage_depths: Sequence[int],
    default_eps: float,
    default_momentum: float,
    padding: Padding | None = None,
    norm_eps: float | None = None,
    progress: bool = True,
) -> tuple[Checkpoint, Recipe]:
    """The checkpoint that ``weights`` means for model ``name``, and its pre-processing.

    ``weights``: a published name ("DEFAULT", "IMAGENET1K_V1",
    "EfficientNet_B0_Weights.IMAGENET1K_V1"), a member of torchvision's enum, a path (a str that
    ends in .pth, .pt, .bin or .safetensors or has a separator in it, or a PathLike), or a
    state_dict. The other arguments are those of :func:`~effnet_fast.checkpoints.convert`;
    ``progress`` shows a bar while downloading.

    The recipe is the published one for published weights, also where such a file is given by its
    path; that of the ``config.json`` beside a file of timm's; that of the model's first published
    weights for other files with torchvision's keys, this library's own included; else
    :func:`default_recipe`.

    Raises ValueError for an unknown name or weights of another model, TypeError for anything that
    is none of these, FileNotFoundError, :class:`~effnet_fast.checkpoints.CheckpointError` and
    :class:`DownloadError`.
    """
    entries = WEIGHTS[name]
    hints, recipe = Hints(), None
    if isinstance(weights, Mapping):
        state_dict, where = unwrap(weights, "the state_dict"), "the state_dict"
    elif _is_path(weights):
        where = os.fspath(weights)
        state_dict, hints = read_file(where)
        published = {_file_of(entry): entry.recipe for entry in entries.values()}
        recipe = published.get(Path(where).name)
    else:
        entry = _entry(name, weights)
        where, recipe = entry.url, entry.recipe
        hints = Hints(_file_of(entry))
        state_dict = unwrap(_download(entry, progress), where)
    checkpoint = convert(
        state_dict,
        stage_depths=stage_depths,
        default_eps=default_eps,
        default_momentum=default_momentum,
        hint=hints.name,
        padding=padding,
        norm_eps=norm_eps,
        where=where,
    )
    if recipe is None and hints.config:
        recipe = _timm_recipe(name, checkpoint, hints.config)
        checkpoint = replace(checkpoint, mean=recipe.mean, std=recipe.std)
    if recipe is None and checkpoint.source == "torchvision":
        recipe = replace(entries[_V1].recipe, mean=checkpoint.mean, std=checkpoint.std)
    if recipe is None:
        recipe = _default_recipe_of(name, checkpoint)
    return checkpoint, recipe


def _is_path(weights: Any) -> bool:
    if isinstance(weights, str):
        return weights.endswith(_SUFFIXES) or "/" in weights or os.sep in weights
    return isinstance(weights, os.PathLike)


def _entry(name: str, weights: Any) -> WeightsEntry:
    """The entry that a name or a member of torchvision's enum means."""
    if isinstance(weights, str):
        group, _, member = weights.rpartition(".")
    elif hasattr(weights, "url") and hasattr(weights, "name"):  # an enum member, unimported
        group, member = type(weights).__name__, weights.name
    else:
        raise TypeError(
            f"weights is a {type(weights).__name__}: expected a name, a torchvision weights enum "
            "member, a path or a state_dict"
        )
    entries = WEIGHTS[name]
    expected = f"EfficientNet_{name.removeprefix('efficientnet_').title()}_Weights"
    if group not in ("", expected):
        raise ValueError(f"{group}.{member} is not for {name}: expected {expected}")
    if member == "DEFAULT":
        return [*entries.values()][-1]
    if member not in entries:
        raise ValueError(
            f"unknown weights {str(weights)!r} for {name}: known are {', '.join(entries)} and "
            "DEFAULT; a path to a checkpoint or a state_dict is taken too"
        )
    return entries[member]


def _file_of(entry: WeightsEntry) -> str:
    return entry.url.rpartition("/")[2]


def _download(entry: WeightsEntry, progress: bool) -> Any:
    """What is in the file at ``entry.url``, through torch.hub's cache, its hash checked."""
    try:
        return torch.hub.load_state_dict_from_url(
            entry.url, map_location="cpu", progress=progress, check_hash=True, weights_only=True
        )
    except OSError as error:
        raise DownloadError(
            f"cannot download {entry.url} ({error}): fetch it on another machine and pass "
            "weights=PATH, or put it in torch.hub's checkpoint folder"
        ) from error
    # torch.hub raises RuntimeError on a wrong hash; a cached file is not hashed again, and
    # torch.load raises many types on a damaged one.
    except Exception as error:
        cached = Path(torch.hub.get_dir(), "checkpoints", _file_of(entry))
        advice = f"delete {str(cached)!r} and try again" if cached.exists() else "try again"
        raise DownloadError(f"{entry.url} arrived damaged ({error}): {advice}") from error


def _default_recipe_of(name: str, checkpoint: Checkpoint) -> Recipe:
    v = architecture.variant(name)
    return default_recipe(
        v.lite,
        v.resolution,
        padding=checkpoint.padding,
        mean=checkpoint.mean,
        std=checkpoint.std,
    )


def _timm_recipe(name: str, checkpoint: Checkpoint, config: Mapping[str, Any]) -> Recipe:
    """The recipe in timm's ``pretrained_cfg``; what it leaves out is as :func:`default_recipe`."""
    try:
        default = _default_recipe_of(name, checkpoint)
        crop = int(config["input_size"][-1]) if "input_size" in config else default.crop
        return Recipe(
            crop,
            floor(crop / config.get("crop_pct", default.crop / default.resize)),
            config.get("interpolation", default.interpolation),
            _triple(config.get("mean", default.mean)),
            _triple(config.get("std", default.std)),
        )
    except (ValueError, TypeError, LookupError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"the config.json beside {checkpoint.where} has pre-processing that is not understood: "
            f"{error}"
        ) from error


def _triple(values: Any) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
