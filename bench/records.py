"""Records of measurements: one immutable JSON-lines file per run, one measurement per line.

A line holds what was measured (op, backend, mode, case, shape, dtype), the figures (milliseconds at
the 20th, 50th and 80th percentile, bytes and flops of one call, peak memory in bytes, launches),
whether the result was checked before it was timed (gate), and the environment. Speed-ups are never
stored: they are computed from two lines of one file.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import torch

from effnet_fast.cli.common import device_name

#: Field -> type in the file; None is allowed where ``| None`` stands.
FIELDS: dict[str, Any] = {
    "op": str, "backend": str, "mode": str, "case": str, "shape": list, "dtype": str,
    "ms": dict | None, "bytes": int | None, "flops": int | None, "peak_memory": int | None,
    "gate": str, "environment": dict, "launches": int | None, "saved": int | None,
}  # fmt: skip
#: Fields that files written before they were thought of lack; they read as None.
LATER = ("launches", "saved")


@dataclass(frozen=True)
class Record:
    """One measurement, less its environment.

    ``gate``: "passed", or what the check found; ``ms`` is then None: no speed on a red gate.
    ``bytes`` and ``flops``: of one call, where they are known. ``peak_memory``: bytes that the
    provider takes at the most, see :mod:`bench.memory`. ``launches``: operators that move bytes;
    ``saved``: bytes kept for the backward pass; both by the ledger (:mod:`bench.costs`).
    """

    op: str
    backend: str
    mode: str
    case: str
    shape: list[int]
    dtype: str
    ms: dict[str, float] | None
    gate: str
    bytes: int | None = None
    flops: int | None = None
    peak_memory: int | None = None
    launches: int | None = None
    saved: int | None = None


def environment(device: torch.device) -> dict[str, Any]:
    """What a figure depends on and a reader may want to know."""
    return {
        "utc": datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def slug(device: str) -> str:
    """A device's name in a file's."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def _git(*arguments: str) -> str:
    """git's answer about this checkout; empty where there is none."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


class Writer:
    """Appends records to a new file in ``folder``, each line on the disk before the next begins."""

    def __init__(self, folder: str | os.PathLike[str], device: torch.device) -> None:
        self.environment = environment(device)
        e = self.environment
        name = (
            f"{e['utc']}-{slug(e['device'])}-torch{e['torch']}-{e['commit'][:7] or 'nogit'}.jsonl"
        )
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.path = Path(folder, name)
        self._file: TextIO = self.path.open("x")

    def add(self, record: Record) -> None:
        """Write one line."""
        line = asdict(record) | {"environment": self.environment}
        check(line)
        self._file.write(json.dumps(line, sort_keys=True) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """No more lines."""
        self._file.close()


def read(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The lines of a file, each checked; ValueError names the line that is not as it should be."""
    with open(path) as file:
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text)
                if isinstance(line, dict):
                    line = dict.fromkeys(LATER) | line
                check(line)
            except ValueError as error:
                raise ValueError(f"{os.fspath(path)}, line {number}: {error}") from error
            yield line


def check(line: Mapping[str, Any]) -> None:
    """Raise ValueError unless ``line`` has exactly the fields of :data:`FIELDS`."""
    if not isinstance(line, Mapping) or line.keys() != FIELDS.keys():
        found = sorted(line) if isinstance(line, Mapping) else type(line).__name__
        raise ValueError(f"expected the fields {sorted(FIELDS)}, got {found}")
    for name, kind in FIELDS.items():
        if not isinstance(line[name], kind):
            raise ValueError(f"{name} is {line[name]!r}, expected {kind}")
    if (line["ms"] is not None) != (line["gate"] == "passed"):
        raise ValueError(f"gate {line['gate']!r} with ms {line['ms']!r}: no speed on a red gate")
    if line["ms"] is not None and sorted(line["ms"]) != ["p20", "p50", "p80"]:
        raise ValueError(f"ms needs p20, p50 and p80, got {line['ms']!r}")
