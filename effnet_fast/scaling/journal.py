"""The record of a grid search: one JSON object a line, the first says which search it is."""

from __future__ import annotations

import json
import os
from os import PathLike
from pathlib import Path
from typing import Any

Point = tuple[float, float, float]


class Journal:
    """``finished``: point (alpha, beta, gamma) -> its record, of those that have an accuracy.

    Every record is on disk when :meth:`append` returns. A last line that was cut short, as a killed
    search leaves it, is removed. ValueError: the file is of another search, or no journal.
    """

    def __init__(self, path: str | PathLike[str] | None, header: dict[str, Any]) -> None:
        self.finished: dict[Point, dict[str, Any]] = {}
        self._path = None if path is None else Path(path)
        if self._path is None:
            return
        # As JSON has it: tuples are lists.
        header = json.loads(json.dumps({"format": "effnet_fast.scaling.grid_search", **header}))
        lines = self._whole_lines(self._path) if self._path.exists() else []
        records = [self._parse(number, line) for number, line in enumerate(lines, 1)]
        if not records:
            self.append(header)
        elif records[0] != header:
            raise ValueError(
                f"{self._path} is the journal of another search: it begins with {records[0]}, and "
                f"this search is {header}; name another file"
            )
        for record in records[1:]:
            if record["accuracy"] is not None:
                self.finished[record["alpha"], record["beta"], record["gamma"]] = record

    @staticmethod
    def _whole_lines(path: Path) -> list[bytes]:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
        return content[:whole].splitlines()

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads(line)
            if number > 1:
                _ = [record[k] for k in ("alpha", "beta", "gamma", "accuracy", "seconds")]
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"{self._path}, line {number} is no record of a grid search ({error}): repair it "
                "or name another file"
            ) from error
        return record

    def append(self, record: dict[str, Any]) -> None:
        """Write one record and wait for the disk."""
        if self._path is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
