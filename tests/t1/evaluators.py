"""What test_grid_search.py sends to worker processes; they import this file."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from effnet_fast.architecture import Variant


def judge(folder: str, variant: Variant) -> float:
    """The variant's depth over 10, and a line in `folder` for every call.

    The first two calls wait for each other, and what comes after a kill until it was noticed. A
    resolution over 250 raises, over 300 is NaN, over 350 kills the process; unless the file
    "healed" is there.
    """
    root = Path(folder)
    with (root / "calls").open("a") as file:
        file.write(f"{os.getpid()} {variant.depth} {variant.width} {variant.resolution}\n")
    wait_until(lambda: len((root / "calls").read_text().splitlines()) > 1)
    killed = root / "killed"
    if not (root / "healed").exists():
        if variant.resolution > 350:
            killed.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        if killed.exists():
            wait_until(lambda: not Path("/proc", killed.read_text()).exists())
        if variant.resolution > 300:
            return float("nan")
        if variant.resolution > 250:
            raise ArithmeticError("no such luck")
    return variant.depth / 10


def wait_until(come: Callable[[], bool]) -> None:
    """At most a minute."""
    deadline = time.monotonic() + 60
    while not come():
        if time.monotonic() > deadline:
            raise TimeoutError("what was waited for did not come")
        time.sleep(0.01)
