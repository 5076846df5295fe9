"""Exact bytes of this library's schedule, kept in a file so that no change raises them unseen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench.ledger import Ledger, Rows

_REGENERATE = "regenerate it with `python -m bench.traffic --write-snapshot`"


def write(path: Path, ledgers: Mapping[str, Ledger]) -> None:
    """Write `ledgers`, by model name, as JSON: integers, bytes per image, sorted keys."""
    content = {
        "unit": "bytes per image, bf16",
        "torch": torch.__version__,
        "models": {name: _entry(ledger) for name, ledger in ledgers.items()},
    }
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def compare(path: Path, ledgers: Mapping[str, Ledger]) -> tuple[list[str], list[str]]:
    """What rose and what fell against the file, one sentence each, naming the operators.

    A model which the file lacks counts as risen: nothing would guard it. Raises ValueError where
    the file is not a snapshot.
    """
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or "models" not in content:
        raise ValueError(f"{path} is not a ledger snapshot: no 'models' in it; {_REGENERATE}")
    rose: list[str] = []
    fell: list[str] = []
    for name, ledger in ledgers.items():
        before = content["models"].get(name)
        if before is None:
            rose.append(f"{name} is not in {path}; {_REGENERATE}")
            continue
        after = _entry(ledger)
        for quantity, now in after.items():
            was = before[quantity]
            if now["bytes"] == was["bytes"]:
                continue
            change = _sentence(name, quantity, was, now)
            (rose if now["bytes"] > was["bytes"] else fell).append(change)
    if rose and content["torch"] != torch.__version__:
        rose.append(f"the snapshot was taken with torch {content['torch']}")
    return rose, fell


def _entry(ledger: Ledger) -> dict[str, dict[str, Any]]:
    ops = {"inference": _moved(ledger.inference), "training": _moved(ledger.training), "saved": {}}
    return {
        quantity: {"bytes": figure, "ops": ops[quantity]}
        for quantity, figure in ledger.figures().items()
    }


def _moved(rows: Rows) -> dict[str, int]:
    return {name: row.moved for name, row in rows.items()}


def _sentence(name: str, quantity: str, was: dict[str, Any], now: dict[str, Any]) -> str:
    ops = {
        op: now["ops"].get(op, 0) - was["ops"].get(op, 0)
        for op in sorted(was["ops"].keys() | now["ops"].keys())
    }
    changed = ", ".join(f"{op} {change:+d}" for op, change in ops.items() if change)
    total = now["bytes"] - was["bytes"]
    sentence = f"{name} {quantity}: {was['bytes']} -> {now['bytes']} bytes ({total:+d})"
    return f"{sentence}: {changed}" if changed else sentence
