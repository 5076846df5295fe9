"""The paper's figure 7 on data that packages ship: what each way of scaling makes a model look at.

Digits (scikit-learn's) stand at random places on photographs of brick, grass and gravel
(scikit-image's). Five models learn which digit it is and nothing about where: a small baseline, and
the baseline scaled to the same cost in depth, in width, in resolution, and in all of them. Class
activation maps then show where each of them found the digit; printed is, for each, its accuracy and
how much of a map's mass lies on the digit.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import skimage
import torch
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

import effnet_fast as ef
from effnet_fast.architecture import Variant
from effnet_fast.cam import class_activation_map
from effnet_fast.heatmap import normalised, overlay
from effnet_fast.models import from_variant
from effnet_fast.profile import count
from effnet_fast.scaling import CompoundScaling

BASELINE = Variant(width=0.25, depth=1 / 3, resolution=96, dropout=0.1)
#: Pixels of a scene and of a digit in it, before the scene is resized for a model.
SCENE, DIGIT = 96, 40
BATCH, LEARNING_RATE, JUDGED, DRAWN = 16, 4e-3, 256, 4
#: The digits that are told apart: so few are learnt in minutes.
CLASSES = (0, 1, 2)
PHOTOS = ("brick.png", "grass.png", "gravel.png")


class Scenes:
    """Random pictures of digits on photographs, from a seed."""

    def __init__(self, training: bool, seed: int) -> None:
        raw = load_digits()
        order = torch.randperm(len(raw.images), generator=torch.Generator().manual_seed(0))
        part = order[:1400] if training else order[1400:]
        part = part[torch.isin(torch.from_numpy(raw.target)[part], torch.tensor(CLASSES))]
        self.digits = torch.from_numpy(raw.images).float()[part] / 16
        self.classes = torch.from_numpy(raw.target)[part]
        folder = Path(skimage.__file__).parent / "data"
        self.photos = [self._grey(folder / name) for name in PHOTOS]
        self.random = torch.Generator().manual_seed(seed)

    @staticmethod
    def _grey(path: Path) -> Tensor:
        with Image.open(path) as photo:
            grey = photo.convert("L")
        flat = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8)
        return flat.view(grey.height, grey.width).float() / 255

    def _below(self, limit: int) -> int:
        return int(torch.randint(limit, (), generator=self.random))

    def batch(self, n: int) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
        """Scenes [n,1,SCENE,SCENE] in [0, 1], classes [n], and each digit's top left corner."""
        scenes, classes, corners = [], [], []
        for _ in range(n):
            photo, i = self.photos[self._below(len(self.photos))], self._below(len(self.digits))
            y, x = (self._below(side - SCENE) for side in photo.shape)
            scene = photo[y : y + SCENE, x : x + SCENE] * 0.4
            top, left = self._below(SCENE - DIGIT + 1), self._below(SCENE - DIGIT + 1)
            ink = F.interpolate(self.digits[None, None, i], size=(DIGIT, DIGIT), mode="bilinear")
            place = scene[top : top + DIGIT, left : left + DIGIT]
            place.copy_(torch.maximum(place, ink[0, 0]))
            scenes.append(scene)
            classes.append(self.classes[i])
            corners.append((top, left))
        return torch.stack(scenes)[:, None], torch.stack(classes), corners


def inputs(scenes: Tensor, resolution: int) -> Tensor:
    """Scenes as a model of ``resolution`` takes them."""
    size = (resolution, resolution)
    x = F.interpolate(scenes, size=size, mode="bilinear", align_corners=False, antialias=True)
    return ((x - 0.4) / 0.25).contiguous(memory_format=torch.channels_last)


def trained(variant: Variant, steps: int, seed: int, name: str) -> ef.EfficientNet:
    """A model of ``variant`` after ``steps`` batches, the same scenes for every variant."""
    torch.manual_seed(seed)
    model = from_variant(
        variant, num_classes=len(CLASSES), in_channels=1, stochastic_depth_prob=0.0
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, steps)
    scenes = Scenes(True, seed)
    for _ in tqdm(range(steps), name, unit="step", disable=None):
        x, classes, _ = scenes.batch(BATCH)
        optimiser.zero_grad()
        F.cross_entropy(model(inputs(x, variant.resolution)), classes).backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def on_digit(heat: Tensor, corner: tuple[int, int]) -> float:
    """The share of a map's mass that lies on the digit's square."""
    mass, (top, left) = normalised(heat, (SCENE, SCENE)), corner
    return float(mass[top : top + DIGIT, left : left + DIGIT].sum() / mass.sum().clamp(min=1e-9))


def sheet(scenes: Tensor, maps: dict[str, Tensor]) -> Image.Image:
    """A row for each scene: itself, and the map of each model over it."""
    zoom, margin = 2 * SCENE, 14
    columns = ["scene", *maps]
    page = Image.new("RGB", (zoom * len(columns), (zoom * len(scenes)) + margin), "white")
    write = ImageDraw.Draw(page)
    for c, name in enumerate(columns):
        write.text((zoom * c + 4, 1), name, fill="black")
    for r, scene in enumerate(scenes):
        grey = (scene[0] * 255).round().to(torch.uint8).contiguous()
        picture = Image.frombytes("L", (SCENE, SCENE), grey.numpy().tobytes()).resize((zoom, zoom))
        page.paste(picture, (0, margin + zoom * r))
        for c, found in enumerate(maps.values(), 1):
            page.paste(overlay(picture, found[r]), (zoom * c, margin + zoom * r))
    return page


def main() -> int:
    """Train five models, print the comparison, and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", default="figure_7.jpg", help="default: %(default)s")
    parser.add_argument("--phi", type=float, default=1.0, help="2^phi times the cost; default: 1")
    parser.add_argument("--steps", type=int, default=400, help="of training; default: 400")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    ways = {
        "deeper": CompoundScaling.depth_only(BASELINE),
        "wider": CompoundScaling.width_only(BASELINE),
        "higher resolution": CompoundScaling.resolution_only(BASELINE),
        "compound": CompoundScaling(baseline=BASELINE),
    }
    variants = {"baseline": BASELINE, **{k: way.variant(args.phi) for k, way in ways.items()}}
    scenes, classes, corners = Scenes(False, args.seed + 1).batch(JUDGED)
    maps = {}
    print(f"{'model':<19}{'M mult-adds':>12}{'accuracy':>10}{'mass on the digit':>19}")
    for name, v in variants.items():
        model = trained(v, args.steps, args.seed, name)
        found = class_activation_map(model, inputs(scenes, v.resolution), classes)
        right = (found.logits.argmax(1) == classes).float().mean()
        mass = [on_digit(heat, at) for heat, at in zip(found.maps, corners, strict=True)]
        share = sum(mass) / len(mass)
        macs = count(model, v.resolution).macs / 1e6
        print(f"{name:<19}{macs:>12.2f}{100 * right:>8.1f} %{100 * share:>17.1f} %", flush=True)
        maps[name] = found.maps[:DRAWN]
    chance = (DIGIT / SCENE) ** 2
    print(f"The digit's square is {100 * chance:.1f} % of a scene.")
    sheet(scenes[:DRAWN], maps).save(args.output, quality=80)
    return 0


if __name__ == "__main__":
    sys.exit(main())
