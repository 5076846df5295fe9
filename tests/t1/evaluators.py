"""What test_grid_search.py sends to worker processes; they import this file."""

import os
import signal
import time
from pathlib import Path

from effnet_fast.architecture import Variant


def judge(folder: str, variant: Variant) -> float:
    """The variant's depth over 10, and a line in `folder` for every call.

    The first two calls wait for each other. A resolution over 250 raises, over 300 is NaN, over 350
    kills the process; unless the file "healed" is there.
    """
    root = Path(folder)
    with (root / "calls").open("a") as file:
        file.write(f"{os.getpid()} {variant.depth} {variant.width} {variant.resolution}\n")
    deadline = time.monotonic() + 60
    while len((root / "calls").read_text().splitlines()) < 2:
        if time.monotonic() > deadline:
            raise TimeoutError("the other worker did not come")
        time.sleep(0.01)
    if not (root / "healed").exists():
        if variant.resolution > 350:
            os.kill(os.getpid(), signal.SIGKILL)
        if variant.resolution > 300:
            return float("nan")
        if variant.resolution > 250:
            raise ArithmeticError("no such luck")
    return variant.depth / 10
