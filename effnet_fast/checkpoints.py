"""Checkpoints of other EfficientNets, read and renamed to torchvision's state_dict keys.

Three namings are known by their keys: torchvision's (and this library's own), timm's
(``conv_stem``, ``blocks.1.0.conv_pw``) and that of lukemelas/EfficientNet-PyTorch and its Lite
fork (``_conv_stem``, ``_blocks.1._expand_conv``). A checkpoint's tensors do not say with which
padding, batch-norm eps and input normalisation they were trained; :class:`Checkpoint` carries
those beside them. Nothing is run from a file: pickles are read with ``weights_only=True``.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from effnet_fast.preprocess import HALF, IMAGENET_MEAN, IMAGENET_STD, Triple

Source = Literal["torchvision", "timm", "lukemelas"]
Padding = Literal["symmetric", "same"]
StateDict = dict[str, Tensor]

_HEAD, _STEM = "classifier.1.weight", "features.0.0.weight"


class CheckpointError(ValueError):
    """A checkpoint cannot be read, is of no known format, or does not fit the model."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights under torchvision's keys, with what the model and its input must be like for them.

    ``where``: the path, URL or name to put in messages. ``padding``: "symmetric" as torch's
    convolutions, or "same" as TensorFlow's. ``mean``, ``std``: of the input, RGB in [0, 1].
    """

    state_dict: StateDict
    source: Source
    padding: Padding
    norm_eps: float
    norm_momentum: float
    mean: Triple
    std: Triple
    where: str = "state_dict"

    def model_options(self) -> dict[str, Any]:
        """The options of the model that these weights fit: padding, batch norm, and the sizes.

        ``num_classes`` and ``in_channels`` are left out where their tensor is missing or of the
        wrong rank, which :func:`load_into` then reports.
        """
        options: dict[str, Any] = {
            "padding": self.padding,
            "norm_eps": self.norm_eps,
            "norm_momentum": self.norm_momentum,
        }
        head, stem = (self.state_dict.get(key) for key in (_HEAD, _STEM))
        if head is not None and head.dim() == 2:
            options["num_classes"] = head.shape[0]
        if stem is not None and stem.dim() == 4:
            options["in_channels"] = stem.shape[1]
        return options


@dataclass(frozen=True)
class Hints:
    """What a file says beside its tensors.

    ``name``: the architecture where a file names one, else the file's own name. ``config``: the
    pre-processing of timm's config.json beside the file (``input_size``, ``mean``, ...), or {}.
    """

    name: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------- reading


def read_file(path: str | os.PathLike[str]) -> tuple[StateDict, Hints]:
    """The state_dict in a file, under its own keys, and what the file says besides.

    ``.safetensors`` through the safetensors package, anything else through ``torch.load`` on the
    CPU with ``weights_only=True``. Containers are opened as :func:`unwrap` says; timm's
    ``config.json`` in the same folder is read for checkpoints of timm only. Raises
    FileNotFoundError for a missing file and :class:`CheckpointError` for any other trouble.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such checkpoint: {str(path)!r}")
    loaded: Any = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state_dict = unwrap(loaded, str(path))
    name, config = path.name, dict[str, Any]()
    if isinstance(loaded, Mapping) and isinstance(loaded.get("arch"), str):
        name = loaded["arch"]  # timm's training script writes it
    beside = path.parent / "config.json"
    if _source_of(state_dict) == "timm" and beside.exists():
        architecture, config = _read_timm_config(beside)
        name = architecture or name
    return state_dict, Hints(name, config)


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    # torch.load raises RuntimeError, UnpicklingError, EOFError, KeyError and others on files that
    # are damaged or no checkpoint at all, by whichever byte it trips over first.
    except Exception as error:
        text = str(error)
        blocked = re.search(r"GLOBAL (\S+)", text)
        if isinstance(error, pickle.UnpicklingError) and blocked:
            reason = (
                f"it needs code ({blocked[1]}), and only tensors are loaded (weights_only): "
                "save model.state_dict(), not the model"
            )
        elif isinstance(error, pickle.UnpicklingError):
            reason = "it is damaged, or was not written by torch.save"
        elif "TorchScript" in text:
            reason = "it is a TorchScript archive: save model.state_dict() instead"
        elif isinstance(error, OSError):
            reason = text
        else:
            first = (text.splitlines() or [""])[0][:160]
            reason = f"damaged, cut short, or no checkpoint ({type(error).__name__}: {first})"
        raise CheckpointError(f"cannot read {str(path)!r}: {reason}") from error


def _read_safetensors(path: Path) -> StateDict:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(
            f"reading {str(path)!r} needs the safetensors package: "
            'pip install "effnet-fast[safetensors]"'
        ) from error
    try:
        tensors: StateDict = load_file(path, device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"cannot read {str(path)!r}: damaged, cut short, or no checkpoint ({error})"
        ) from error
    return tensors


def _read_timm_config(path: Path) -> tuple[str, dict[str, Any]]:
    """``(architecture.tag, pretrained_cfg)`` of timm's config.json; ("", {}) of another's."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"cannot read {str(path)!r}, beside a timm file: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        return "", {}
    details = config.get("pretrained_cfg") or config  # older exports have the fields at the top
    if not isinstance(details, dict):
        raise CheckpointError(f"cannot read {str(path)!r}: pretrained_cfg is no object")
    return f"{config['architecture']}.{details.get('tag', '')}", details


def unwrap(loaded: Any, where: str) -> StateDict:
    """The state_dict within what a file or a caller holds, checked to be names to tensors.

    Opened: ``{"state_dict": ...}``, ``{"model": ...}``, ``{"state_dict_ema": ...}``, the first of
    them that is there. Taken off where every key has it: the prefix ``module.`` of
    DataParallel and ``_orig_mod.`` of torch.compile.
    """
    for container in ("state_dict", "model", "state_dict_ema"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(container), Mapping):
            loaded = loaded[container]
            break
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointError(f"{where} holds {_describe(loaded)}: expected a state_dict")
    wrong = [k for k, v in loaded.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
    if wrong:
        raise CheckpointError(
            f"{where} is no state_dict: not a name with a tensor: {_first(wrong)}"
        )
    state_dict = dict(loaded)
    while prefix := next(
        (p for p in ("module.", "_orig_mod.") if all(k.startswith(p) for k in state_dict)), ""
    ):
        state_dict = {key.removeprefix(prefix): value for key, value in state_dict.items()}
    return state_dict


def _describe(thing: Any) -> str:
    return "nothing" if isinstance(thing, Mapping) else f"a {type(thing).__name__}"


# ---------------------------------------------------------------- renaming

_PATTERNS: dict[Source, re.Pattern[str]] = {
    "torchvision": re.compile(r"features\.\d+\.\d+\."),
    "timm": re.compile(r"conv_stem\.|blocks\.\d+\.\d+\."),
    "lukemelas": re.compile(r"_conv_stem\.|_blocks\.\d+\."),
}
_TIMM_KEY = r"blocks\.(\d+)\.(\d+)\.(?P<name>.+)"
_LUKEMELAS_KEY = r"_blocks\.(\d+)\.(?P<name>.+)"
_TIMM_OUTER = {
    "conv_stem": "features.0.0",
    "bn1": "features.0.1",
    "conv_head": "features.8.0",
    "bn2": "features.8.1",
    "classifier": "classifier.1",
}
_LUKEMELAS_OUTER = {
    "_conv_stem": "features.0.0",
    "_bn0": "features.0.1",
    "_conv_head": "features.8.0",
    "_bn1": "features.8.1",
    "_fc": "classifier.1",
}
# Names within a block, as part of the block and module of that part. timm's first stage has no
# expansion and is another class there, in which conv_pw is the projection.
_TIMM_FIRST = {
    "conv_dw": "depthwise.0",
    "bn1": "depthwise.1",
    "se.conv_reduce": "se.fc1",
    "se.conv_expand": "se.fc2",
    "conv_pw": "project.0",
    "bn2": "project.1",
}
_TIMM_BLOCK = {
    "conv_pw": "expand.0",
    "bn1": "expand.1",
    "conv_dw": "depthwise.0",
    "bn2": "depthwise.1",
    "se.conv_reduce": "se.fc1",
    "se.conv_expand": "se.fc2",
    "conv_pwl": "project.0",
    "bn3": "project.1",
}
_LUKEMELAS_BLOCK = {
    "_expand_conv": "expand.0",
    "_bn0": "expand.1",
    "_depthwise_conv": "depthwise.0",
    "_bn1": "depthwise.1",
    "_se_reduce": "se.fc1",
    "_se_expand": "se.fc2",
    "_project_conv": "project.0",
    "_bn2": "project.1",
}


def _source_of(keys: Mapping[str, Tensor]) -> Source | None:
    for source, pattern in _PATTERNS.items():
        if any(pattern.match(key) for key in keys):
            return source
    return None


def _rename(key: str, source: Source, has_se: bool, places: Sequence[tuple[int, int]]) -> str:
    """torchvision's key for one of timm's or lukemelas's; a key that is neither stays.

    ``places``: (stage, block in the stage) of lukemelas's flat block number.
    """
    timm = source == "timm"
    outer = _TIMM_OUTER if timm else _LUKEMELAS_OUTER
    module, _, leaf = key.rpartition(".")
    if module in outer:
        return f"{outer[module]}.{leaf}"
    found = re.fullmatch(_TIMM_KEY if timm else _LUKEMELAS_KEY, module)
    if found is None:
        return key
    if timm:
        stage, block = int(found[1]), int(found[2])
        names = _TIMM_BLOCK if stage else _TIMM_FIRST
    elif int(found[1]) < len(places):
        (stage, block), names = places[int(found[1])], _LUKEMELAS_BLOCK
    else:
        return key
    parts = ["expand"] * (stage > 0) + ["depthwise"] + ["se"] * has_se + ["project"]
    part, _, rest = names.get(found["name"], "").partition(".")
    if part not in parts:
        return key
    return f"features.{stage + 1}.{block}.block.{parts.index(part)}.{rest}.{leaf}"


# ---------------------------------------------------------------- what the tensors do not say

_TF_NAME = re.compile(r"(?<![a-z])tf_efficientnet_(b|lite)\d")
_TORCH_NAME = re.compile(r"(?<![a-z_])efficientnet_(b|lite)\d")
_HALF_NAME = re.compile(r"(?<![a-z])(ap|adv|advprop|ra4)(?![a-z0-9])")


def convert(
    state_dict: Mapping[str, Tensor],
    *,
    stage_depths: Sequence[int],
    default_eps: float,
    default_momentum: float,
    hint: str = "",
    padding: Padding | None = None,
    norm_eps: float | None = None,
    where: str = "state_dict",
) -> Checkpoint:
    """``state_dict`` under torchvision's keys, with the padding, eps and normalisation it needs.

    ``stage_depths``: blocks in each of the variant's 7 stages. ``default_eps`` and
    ``default_momentum``: the variant's batch norm, taken for torchvision's keys. ``hint``: a file
    or architecture name, such as ``tf_efficientnet_b0_ap``. ``padding`` and ``norm_eps``, where
    given, are believed. ``where``: for messages.

    ========================  =========  ==========  ========  =====================
    keys                      padding    eps         momentum  mean, std
    ========================  =========  ==========  ========  =====================
    torchvision               symmetric  default     default   ImageNet's; Lite 0.5
    lukemelas                 same       1e-3        0.01      ImageNet's; Lite 0.5
    timm, tf_efficientnet_*   same       1e-3        0.1       ImageNet's; Lite 0.5
    timm, efficientnet_*      symmetric  1e-5        0.1       ImageNet's
    ========================  =========  ==========  ========  =====================

    mean and std are 0.5 too where the name says AdvProp (``ap``, ``adv``) or timm's ``ra4``.
    timm's keys do not tell its two families apart: where the hint does not either,
    :class:`CheckpointError` asks for padding and norm_eps. It is also raised for keys of no known
    format. Keys unknown within a format are kept as they are, for :func:`load_into` to report;
    ``num_batches_tracked``, which files from before torch 0.4.1 lack, is filled in as 0.
    """
    source = _source_of(state_dict)
    if source is None:
        raise CheckpointError(
            f"{where} is no EfficientNet of a known format: expected the keys of torchvision, "
            f"timm or lukemelas/EfficientNet-PyTorch, got {_first(list(state_dict))}"
        )
    hint = hint.lower()
    has_se = any(re.search(r"\.(fc1|fc2|conv_reduce|_se_reduce)\.", key) for key in state_dict)
    torch_name, tf_name = bool(_TORCH_NAME.search(hint)), bool(_TF_NAME.search(hint))
    momentum = {"torchvision": default_momentum, "timm": 0.1, "lukemelas": 0.01}[source]
    told: tuple[Padding, float]
    if source == "torchvision":
        told = "symmetric", default_eps
    elif source == "lukemelas" or tf_name:
        told = "same", 1e-3
    elif torch_name:
        told = "symmetric", 1e-5
    elif padding is None or norm_eps is None:
        raise CheckpointError(
            f"{where} is a checkpoint of timm, whose keys do not tell its two families apart, nor "
            f'does the name {hint!r}: pass padding="same", norm_eps=1e-3 for tf_efficientnet_*, '
            'or padding="symmetric", norm_eps=1e-5 for efficientnet_*'
        )
    else:
        told = padding, norm_eps
    torch_lite = source == "timm" and told[0] == "symmetric"
    half = bool(_HALF_NAME.search(hint)) or not (has_se or torch_lite)
    converted = dict(state_dict)
    if source != "torchvision":
        places = [(stage, block) for stage, n in enumerate(stage_depths) for block in range(n)]
        converted = {
            _rename(key, source, has_se, places): value for key, value in state_dict.items()
        }
    for key in list(converted):
        if key.endswith(".running_mean"):
            counter = f"{key.removesuffix('running_mean')}num_batches_tracked"
            converted.setdefault(counter, torch.zeros((), dtype=torch.int64))
    return Checkpoint(
        state_dict=converted,
        source=source,
        padding=padding if padding is not None else told[0],
        norm_eps=norm_eps if norm_eps is not None else told[1],
        norm_momentum=momentum,
        mean=HALF if half else IMAGENET_MEAN,
        std=HALF if half else IMAGENET_STD,
        where=where,
    )


# ---------------------------------------------------------------- loading


def load_into(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy ``checkpoint`` into ``model``, in the model's types and on its devices: all or nothing.

    Raises one :class:`CheckpointError` with every kind of trouble, its count and first three
    cases: missing keys, unexpected keys, other shapes, tensors that cannot be copied (a float for
    an integer or the reverse, quantised, sparse, or without data). The model is then untouched.
    """
    own, given = model.state_dict(), checkpoint.state_dict
    shared = [key for key in own if key in given]
    shapes = [key for key in shared if own[key].shape != given[key].shape]
    problems = {
        "missing": [key for key in own if key not in given],
        "unexpected": [key for key in given if key not in own],
        "of another shape": [
            f"{key} (checkpoint {[*given[key].shape]}, model {[*own[key].shape]})" for key in shapes
        ],
        "of an unfit type": [
            f"{key} (checkpoint {_kind(given[key])}, model {own[key].dtype})"
            for key in shared
            if not _copyable(given[key], own[key])
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(k)} {what}: {_first(k)}" for what, k in problems.items() if k)
        advice = _advice(own, given, shapes, bool(problems["missing"] or problems["unexpected"]))
        raise CheckpointError(
            f"{checkpoint.where} ({checkpoint.source} keys) does not fit the model: "
            f"{listed}.{advice}"
        )
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(given[key])


def _copyable(given: Tensor, own: Tensor) -> bool:
    plain = given.layout is torch.strided and not given.is_meta and not given.is_complex()
    same_kind = given.is_floating_point() == own.is_floating_point()
    return plain and same_kind and not given.is_quantized


def _kind(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "without data"
    return str(tensor.dtype if tensor.layout is torch.strided else tensor.layout)


def _advice(own: StateDict, given: StateDict, shapes: list[str], other_keys: bool) -> str:
    """What a user most likely has to change."""
    if other_keys or set(shapes) - {_HEAD, _STEM, "classifier.1.bias"}:
        return " Is it of another variant?"
    advice = ""
    for key, option, axis in ((_HEAD, "num_classes", 0), (_STEM, "in_channels", 1)):
        if key not in shapes:
            continue
        theirs, ours = [*given[key].shape], [*own[key].shape]
        if theirs[:axis] + theirs[axis + 1 :] == ours[:axis] + ours[axis + 1 :]:
            advice += f" Build the model with {option}={theirs[axis]}, not {ours[axis]}."
    return advice


def _first(items: Sequence[Any]) -> str:
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(str(item) for item in items[:3]) + more
