"""The data of ``train.py``: an image folder, a data set of torchvision's, or scikit-learn's digits.

A data set is two sets of (picture, class), for training and for judging, and the number of classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from effnet_fast.preprocess import Recipe, to_rgb
from effnet_fast.stock import import_torchvision

Transform = Callable[[Image.Image], Tensor]
#: AutoAugment's policies, by the data that each was found on; only digits must not be mirrored.
POLICIES = {"imagenet": "IMAGENET", "cifar10": "CIFAR10", "svhn": "SVHN"}
MIRRORED = ("imagenet", "cifar10")


#: Of torchvision's data sets that have splits, those whose training pictures are not in "train".
TRAINING_SPLITS = {
    "FGVCAircraft": ("trainval",),
    "Flowers102": ("train", "val"),
    "OxfordIIITPet": ("trainval",),
}


class Data(NamedTuple):
    """Pictures to train on and to judge by."""

    training: Dataset[tuple[Tensor, int]]
    validation: Dataset[tuple[Tensor, int]]
    classes: int


def load(name: str, root: Path, augment: str, recipe: Recipe, download: bool) -> Data:
    """The data set ``name`` with its pictures as inputs for a model.

    Args:
        name: "folder" (``root``/train and ``root``/val, a folder for each class), "digits", or a
            classification data set of ``torchvision.datasets`` ("CIFAR100", "Flowers102", ...).
        root: where the data are, or go.
        augment: of training pictures: one of :data:`POLICIES`, or "none".
        recipe: of validation pictures, and of training pictures without augmentation.
        download: whether torchvision may fetch what is not there.

    Raises:
        ValueError: no such data set. FileNotFoundError, RuntimeError: it is not at ``root``.
    """
    change = recipe if augment == "none" else augmented(augment, recipe)
    if name == "digits":
        return Data(Digits(True, change), Digits(False, recipe), 10)
    torchvision = import_torchvision()
    if name == "folder":
        folders = torchvision.datasets.ImageFolder(root / "train", change)
        others = torchvision.datasets.ImageFolder(root / "val", recipe)
        if folders.classes != others.classes:
            raise ValueError(f"{root}/train and {root}/val have different classes")
        return Data(folders, others, len(folders.classes))
    kind: Any = getattr(torchvision.datasets, name, None)
    parameters = inspect.signature(kind).parameters if inspect.isclass(kind) else {}
    if "train" in parameters:
        training: list[dict[str, Any]] = [{"train": True}]
        validation: dict[str, Any] = {"train": False}
    elif "split" in parameters:
        training = [{"split": part} for part in TRAINING_SPLITS.get(name, ("train",))]
        validation = {"split": "test"}
    else:
        raise ValueError(
            f"unknown data set {name!r}: folder, digits, or one of torchvision.datasets that has "
            "train= or split="
        )
    options = {"download": download} if "download" in parameters else {}
    parts = [kind(root, transform=change, **part, **options) for part in training]
    judged = kind(root, transform=recipe, **validation, **options)
    # Most name their classes; SVHN and some more have labels only.
    classes = len(parts[0].classes) if hasattr(parts[0], "classes") else max(judged.labels) + 1
    return Data(ConcatDataset(parts), judged, int(classes))


def augmented(policy: str, recipe: Recipe) -> Transform:
    """Random crop, mirroring where it makes sense, AutoAugment, normalisation by ``recipe``."""
    t = import_torchvision().transforms
    steps = [to_rgb]
    if policy in MIRRORED:
        steps += [t.RandomResizedCrop(recipe.crop), t.RandomHorizontalFlip()]
    else:
        steps.append(t.Resize((recipe.crop, recipe.crop)))
    steps += [
        t.AutoAugment(getattr(t.AutoAugmentPolicy, POLICIES[policy])),
        t.ToTensor(),
        t.Normalize(recipe.mean, recipe.std),
    ]
    return t.Compose(steps)


class Digits(Dataset[tuple[Tensor, int]], Sized):
    """scikit-learn's 1797 handwritten digits of 8 x 8 pixels: four fifths to train on."""

    def __init__(self, training: bool, transform: Transform) -> None:
        from sklearn.datasets import load_digits

        raw = load_digits()
        order = torch.randperm(len(raw.images), generator=torch.Generator().manual_seed(0))
        cut = 4 * len(order) // 5
        self._indices = (order[:cut] if training else order[cut:]).tolist()
        self._pictures = (raw.images * (255 / 16)).round().astype("uint8")
        self._classes = raw.target.tolist()
        self._transform = transform

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        index = self._indices[position]
        return self._transform(Image.fromarray(self._pictures[index])), self._classes[index]
