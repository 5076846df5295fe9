"""Exact bytes and launches of this library's schedule, kept in a file so that no change raises them
unseen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench.ledger import Ledger, Rows

_REGENERATE = "regenerate it with `python -m bench.gate ledger --write`"


def write(path: Path, ledgers: Mapping[str, Ledger]) -> None:
    """Write `ledgers`, by model name, as JSON: integers, sorted keys."""
    content = {
        "unit": "bytes per image, bf16; launches of operators that move bytes",
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
            if now["total"] == was["total"]:
                continue
            change = _sentence(name, quantity, was, now)
            (rose if now["total"] > was["total"] else fell).append(change)
    if rose and content["torch"] != torch.__version__:
        rose.append(f"the snapshot was taken with torch {content['torch']}")
    return rose, fell


def _entry(ledger: Ledger) -> dict[str, dict[str, Any]]:
    runs = {"inference": ledger.inference, "training": ledger.training}
    launches = {f"{mode} launches": _launches(rows) for mode, rows in runs.items()}
    ops = {**{mode: _moved(rows) for mode, rows in runs.items()}, "saved": {}, **launches}
    totals = ledger.figures() | {name: sum(calls.values()) for name, calls in launches.items()}
    return {name: {"total": total, "ops": ops[name]} for name, total in totals.items()}


def _moved(rows: Rows) -> dict[str, int]:
    return {name: row.moved for name, row in rows.items()}


def _launches(rows: Rows) -> dict[str, int]:
    return {name: row.calls for name, row in rows.items()}


def _sentence(name: str, quantity: str, was: dict[str, Any], now: dict[str, Any]) -> str:
    ops = {
        op: now["ops"].get(op, 0) - was["ops"].get(op, 0)
        for op in sorted(was["ops"].keys() | now["ops"].keys())
    }
    changed = ", ".join(f"{op} {change:+d}" for op, change in ops.items() if change)
    change = now["total"] - was["total"]
    unit = "" if quantity.endswith("launches") else " bytes"
    sentence = f"{name} {quantity}: {was['total']} -> {now['total']}{unit} ({change:+d})"
    return f"{sentence}: {changed}" if changed else sentence
