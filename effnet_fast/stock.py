"""Stock PyTorch to measure against: torchvision's own EfficientNet."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

_kept: list[torch.library.Library] = []  # a Library's registrations last as long as the object


def import_torchvision() -> ModuleType:
    """The torchvision module; raises ImportError where it is not installed.

    torchvision's import registers fake kernels for operators of its binary part, which beside a
    CPU-only torch does not load; the two it insists on are declared first. Models need neither.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
        return importlib.import_module("torchvision")
