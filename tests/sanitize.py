"""Run small cases of tests/ops under compute-sanitizer: ``python -m tests.sanitize [TOOL ...]``.

memcheck (accesses out of bounds, misaligned), racecheck (shared memory), initcheck (reads of what
nothing wrote) and synccheck (barriers), a process each, for the backends "cuda", where it was
built, and "triton". Needs a GPU and the compute-sanitizer of CUDA's toolkit; without either it says
so and ends with status 2. The exit status is 1 if any tool found anything or a test failed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
#: Ends of tiles, single channels, a slice, no work; a sanitizer takes up to 50 times as long.
CASES = "odd or odd-tall or c-not-8 or c-9 or stride2-odd or same-k5 or sliced or batch-0 or 17-130"
#: What compute-sanitizer itself ends with where a tool found something.
FOUND = 86


def why_not(which: str | None, cuda: bool) -> str | None:
    """Why nothing can be sanitized here: ``which`` is compute-sanitizer's path, ``cuda`` a GPU."""
    if not cuda:
        return "torch sees no GPU on this machine"
    if which is None:
        return "compute-sanitizer is not in PATH; it comes with CUDA's toolkit"
    return None


def command(sanitizer: str, tool: str) -> list[str]:
    """One tool's run."""
    return [
        sanitizer, f"--tool={tool}", f"--error-exitcode={FOUND}", "--target-processes=all",
        sys.executable, "-m", "pytest", "-q", "-x", "tests/ops", "-k", CASES,
        "-p", "no:cacheprovider",
    ]  # fmt: skip


def environment(backends: tuple[str, ...]) -> dict[str, str]:
    """Each tensor an allocation of its own, so that memcheck sees where it ends."""
    return {
        **os.environ,
        "EFFNET_FAST_TEST_DEVICE": "cuda",
        "EFFNET_FAST_TEST_BACKENDS": ",".join(backends),
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
    }


def main(argv: list[str]) -> int:
    """Run the tools named, or all, and print a line for each."""
    unknown = sorted(set(argv) - set(TOOLS))
    if unknown:
        print(f"no tool named {', '.join(unknown)}; there are {', '.join(TOOLS)}", file=sys.stderr)
        return 2
    import torch

    from tests.run_tiers import gpu_backends

    sanitizer = shutil.which("compute-sanitizer")
    reason = why_not(sanitizer, torch.cuda.is_available())
    if reason is not None or sanitizer is None:
        print(f"nothing was sanitized: {reason}", file=sys.stderr)
        return 2
    backends = tuple(b for b in gpu_backends() if b != "reference")
    verdicts = {}
    for tool in argv or TOOLS:
        start = time.monotonic()
        done = subprocess.run(command(sanitizer, tool), cwd=ROOT, env=environment(backends))
        found = {0: "nothing found", FOUND: "FOUND SOMETHING"}
        verdicts[tool] = found.get(done.returncode, f"pytest ended with {done.returncode}")
        print(f"{tool}: {verdicts[tool]}, {time.monotonic() - start:.0f} s", flush=True)
    print("\n".join(f"{tool:<10} {verdict}" for tool, verdict in verdicts.items()))
    return 0 if set(verdicts.values()) == {"nothing found"} else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
