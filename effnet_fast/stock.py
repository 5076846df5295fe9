"""Stock PyTorch to measure against: torchvision's own EfficientNet, and weights to do it with."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

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


def calibrate(model: nn.Module, x: Tensor) -> None:
    """Make a randomly initialised model comparable: running statistics of one pass over ``x``.

    With the initial ones logits are around 1e-13, which hides every error; with those of images of
    another size they can be 1e6 and rounding errors of order 1. ``x`` is [N, 3, H, W] with N large
    enough for statistics on the smallest maps. Dropout and stochastic depth are off; the model is
    left in eval mode with its own momenta.
    """
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.train().momentum = 1.0
    with torch.no_grad():
        model(x)
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum
    model.eval()
