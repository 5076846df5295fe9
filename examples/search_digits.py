"""Step 1 of compound scaling for real: alpha, beta and gamma searched on scikit-learn's digits.

1797 pictures of 8 x 8 pixels: every model is trained on 600 of them and judged on the others, from
two seeds. Ranked by MnasNet's objective, whose target is twice the baseline's multiply-adds. Needs
scikit-learn and some minutes on two cores; run again, it goes on with what its journal lacks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from effnet_fast.architecture import Variant
from effnet_fast.models import from_variant
from effnet_fast.profile import count
from effnet_fast.scaling import Trial, constraint_grid, grid_search, mnas_objective

#: A third of B0's depth and half its width: small enough to train in seconds.
BASELINE = Variant(width=0.5, depth=1 / 3, resolution=24, dropout=0.1)
TRAINING, BATCH, EPOCHS, SEEDS = 600, 60, 12, (0, 1)
LEARNING_RATE = 4e-3


def digits() -> tuple[Tensor, Tensor]:
    """Pictures [1797,1,8,8] of zero mean and unit variance in a fixed order, and their classes."""
    raw = load_digits()
    images = torch.from_numpy(raw.images).float()[:, None]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return ((images - images.mean()) / images.std())[order], torch.from_numpy(raw.target)[order]


def evaluate(variant: Variant) -> float:
    """The accuracy that a model of ``variant`` reaches, the mean of all seeds."""
    images, classes = digits()
    size = (variant.resolution, variant.resolution)
    images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
    images = images.contiguous(memory_format=torch.channels_last)
    right = 0
    for seed in SEEDS:
        torch.manual_seed(seed)
        model = from_variant(variant, num_classes=10, in_channels=1, stochastic_depth_prob=0.1)
        optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
        steps = EPOCHS * TRAINING // BATCH
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, steps)
        for _ in range(EPOCHS):
            for batch in torch.randperm(TRAINING).split(BATCH):
                optimiser.zero_grad()
                F.cross_entropy(model(images[batch]), classes[batch]).backward()
                optimiser.step()
                schedule.step()
        with torch.inference_mode():
            answers = model.eval()(images[TRAINING:]).argmax(1)
        right += int((answers == classes[TRAINING:]).sum())
    return right / (len(SEEDS) * (len(classes) - TRAINING))


def objective(accuracy: float, macs: int) -> float:
    """MnasNet's, for a target of twice the baseline."""
    return mnas_objective(accuracy, macs, 2 * baseline_macs())


def baseline_macs() -> int:
    """The baseline's multiply-adds, the classifier's not counted."""
    with torch.device("meta"):
        model = from_variant(BASELINE, num_classes=0)
    return count(model, BASELINE.resolution).macs


def report(trials: list[Trial]) -> str:
    """The ranked trials as a table."""
    heads = ("alpha", "beta", "gamma", "M mult-adds", "accuracy", "objective", "seconds")
    lines = ["".join(f"{head:>13}" for head in heads)]
    for t in trials:
        judged = "failed" if t.accuracy is None else f"{100 * t.accuracy:.2f} %"
        value = "" if t.accuracy is None else f"{objective(t.accuracy, t.macs):.4f}"
        cells = (t.alpha, t.beta, t.gamma, f"{t.macs / 1e6:.3f}", judged, value, f"{t.seconds:.1f}")
        lines.append("".join(f"{cell!s:>13}" for cell in cells))
    return "\n".join(lines)


def main() -> int:
    """Search and print; 1 if an evaluation failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--journal", type=Path, default=Path("search_digits.jsonl"))
    parser.add_argument("--workers", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--step", type=float, default=0.1, help="of the grid; default: 0.1")
    args = parser.parse_args()
    trials = grid_search(
        evaluate,
        grid=constraint_grid(args.step),
        baseline=BASELINE,
        journal=args.journal,
        workers=args.workers,
        objective=objective,
    )
    print(report(trials))
    return 1 if any(t.accuracy is None for t in trials) else 0


if __name__ == "__main__":
    sys.exit(main())
