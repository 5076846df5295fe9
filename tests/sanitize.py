"""Run small cases of tests/ops under compute-sanitizer: ``python -m tests.sanitize [TOOL ...]``.

memcheck (accesses out of bounds, misaligned), racecheck (shared memory), initcheck (reads of what
nothing wrote) and synccheck (barriers), a process each, for the backends "cuda" and "triton". Needs
a GPU, both backends and the compute-sanitizer of CUDA's toolkit; without any of them it says so and
ends with status 2. The exit status is 1 if any tool found anything or a test failed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import effnet_fast

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
#: Ends of tiles, single channels, a slice, no work; a sanitizer takes up to 50 times as long.
CASES = "odd or c-not-8 or c-9 or same-k5 or sliced or batch-0 or 17-130"
BACKENDS = ("cuda", "triton")
#: What compute-sanitizer itself ends with where a tool found something.
FOUND = 86


def why_not(sanitizer: str | None, backends: Mapping[str, str | None]) -> str | None:
    """Why nothing can be sanitized, from compute-sanitizer's path and each backend's own reason."""
    for name in BACKENDS:
        if backends[name] is not None:
            return f"{name}: {backends[name]}"
    if sanitizer is None:
        return "compute-sanitizer is not in PATH; it comes with CUDA's toolkit"
    return None


def command(sanitizer: str, tool: str) -> list[str]:
    """One tool's run."""
    return [
        sanitizer, f"--tool={tool}", f"--error-exitcode={FOUND}", "--target-processes=all",
        sys.executable, "-m", "pytest", "-q", "-x", "tests/ops", "-k", CASES,
        "-p", "no:cacheprovider",
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """Each tensor an allocation of its own, so that memcheck sees where it ends."""
    return {
        **os.environ,
        "EFFNET_FAST_TEST_DEVICE": "cuda",
        "EFFNET_FAST_TEST_BACKENDS": ",".join(BACKENDS),
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
    }


def main(argv: list[str]) -> int:
    """Run the tools named, or all, and print a line for each."""
    unknown = sorted(set(argv) - set(TOOLS))
    if unknown:
        print(f"no tool named {', '.join(unknown)}; there are {', '.join(TOOLS)}", file=sys.stderr)
        return 2
    sanitizer = shutil.which("compute-sanitizer")
    reason = why_not(sanitizer, effnet_fast.backends())
    if reason is not None or sanitizer is None:
        print(f"nothing was sanitized: {reason}", file=sys.stderr)
        return 2
    good = True
    for tool in argv or TOOLS:
        start = time.monotonic()
        status = subprocess.run(command(sanitizer, tool), cwd=ROOT, env=environment()).returncode
        verdict = {0: "nothing found", FOUND: "FOUND SOMETHING"}.get(
            status, f"pytest ended with status {status}"
        )
        print(f"{tool}: {verdict}, {time.monotonic() - start:.0f} s", flush=True)
        good = good and status == 0
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
