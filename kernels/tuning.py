"""Block shapes: the heuristic's choice, or one that was measured on this kind of GPU.

Every kernel family computes a default from the shape and asks :func:`pick` before it launches::

    config = tuning.pick("depthwise", "k5 s1 c256 w32 bf16", depthwise.default_config(...))

The answer is, in this order: what :func:`override` forces; the user's table, which
``effnet-fast tune`` writes; the repository's table (:mod:`effnet_fast.kernels.tuned`); the default.
Nothing is ever measured here, and a choice is made once per (device, op, key): from then on it
costs a dictionary look-up. A table's entry holds fields of the family's NamedTuple, all of them
or some; a field that it does not have, as after a change of the kernel, is an error that says
which file to delete, for a table that were silently ignored would look like one that is no use.

A family that can be tuned says once, at the end of its module::

    tuning.register("depthwise", candidates)

with ``candidates(default, key) -> list[Config]``: worth measuring for this key, the default among
them or not. A candidate that fails to compile or whose results differ is left out by the tuner.

The state is the process's own, not a thread's, for the backward pass runs on threads of autograd.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from triton import knobs
from triton.runtime.driver import driver

from .tuned import TABLE

Config = TypeVar("Config", bound=tuple[Any, ...])
Candidates = Callable[[Any, str], list[Any]]
Entries = dict[str, dict[str, dict[str, Any]]]

#: The layout of the user's file; a file of another layout is refused.
FORMAT = 1
#: The architecture's name under Triton's interpreter, for which no table is read.
INTERPRETER = "interpreter"


class TuningTableError(RuntimeError):
    """A table that cannot be used; the message names the file and what to do."""


class Pick(NamedTuple):
    """One question that a launch asked: the op, its shape class and the heuristic's answer."""

    op: str
    key: str
    default: Any


_candidates: dict[str, Candidates] = {}
_architectures: dict[Any, str] = {}
_choices: dict[tuple[str, str, str], Any] = {}
_tables: dict[str, Entries] = {}
_forced: dict[tuple[str, str | None], Any] = {}
_recorders: list[list[Pick]] = []


def pick(op: str, key: str, default: Config) -> Config:
    """The configuration of ``op`` for the shape class ``key`` on the present device."""
    if _forced:
        forced = _forced.get((op, key), _forced.get((op, None)))
        if forced is not None:
            if type(forced) is not type(default):
                raise TypeError(f"{op}: override with {forced!r}, expected a {type(default)!r}")
            return forced
    if _recorders:
        for recorder in _recorders:
            recorder.append(Pick(op, key, default))
        return default
    arch = architecture()
    fields = _choices.get((arch, op, key))
    if fields is None:
        fields = _choices[arch, op, key] = _chosen_fields(arch, op, key, default)
    return default._replace(**fields) if fields else default  # type: ignore[attr-defined]


def _chosen_fields(arch: str, op: str, key: str, default: Any) -> dict[str, int]:
    """What the tables change in ``default``, checked against its type."""
    if arch == INTERPRETER:
        return {}
    if arch not in _tables:
        _tables[arch] = read_table(table_path(arch))
    entry = _tables[arch].get(op, {}).get(key)
    if entry is None:
        fields, source = TABLE.get(arch, {}).get(op, {}).get(key, {}), "kernels/tuned.py"
    else:
        fields, source = entry["config"], str(table_path(arch))
    unknown = sorted(set(fields) - set(default._fields))
    if unknown:
        raise TuningTableError(
            f"{source}: {op} {key!r} sets {', '.join(unknown)}, but {type(default).__name__} has "
            f"{', '.join(default._fields)}; the table is of another version: delete the file and, "
            "if you like, run `effnet-fast tune` again"
        )
    return fields


def architecture() -> str:
    """The current device's, such as "sm90"; one look-up after the first call on each device."""
    if _interpreted():
        return INTERPRETER
    device = driver.active.get_current_device()
    if device not in _architectures:
        target = driver.active.get_current_target()
        prefix = "sm" if target.backend == "cuda" else ""
        _architectures[device] = f"{prefix}{target.arch}"
    return _architectures[device]


@cache
def _interpreted() -> bool:
    """Decided, as triton.jit's own choice is, before the first kernel was defined."""
    return bool(knobs.runtime.interpret)


# ---------------------------------------------------------------- for the tuner and for tests


def register(op: str, candidates: Candidates) -> None:
    """Say what is worth measuring for ``op``."""
    _candidates[op] = candidates


def candidates(op: str, key: str, default: Config) -> list[Config]:
    """The configurations to measure: the default first, then the family's own, none twice."""
    found = _candidates[op](default, key) if op in _candidates else []
    return list(dict.fromkeys([default, *found]))


@contextmanager
def override(op: str, config: Any, key: str | None = None) -> Iterator[None]:
    """Force ``config`` on every pick of ``op`` (of this ``key``, if given) until the block ends."""
    before = _forced.get((op, key))
    _forced[op, key] = config
    try:
        yield
    finally:
        if before is None:
            del _forced[op, key]
        else:
            _forced[op, key] = before


@contextmanager
def recording() -> Iterator[list[Pick]]:
    """Every pick until the end of the block, in order, repetitions too; all get their default.

    So the tuner starts from the heuristics, and a table that cannot be used is not in its way.
    """
    picks: list[Pick] = []
    _recorders.append(picks)
    try:
        yield picks
    finally:
        _recorders[:] = [r for r in _recorders if r is not picks]


def forget() -> None:
    """Read the tables afresh at the next pick: after one was written, or the cache moved."""
    _choices.clear()
    _tables.clear()


# ---------------------------------------------------------------- the user's file


def table_path(arch: str) -> Path:
    """``tuning-<arch>.json`` in $EFFNET_FAST_CACHE, else in the user's cache directory."""
    own = os.environ.get("EFFNET_FAST_CACHE")
    if own:
        folder = Path(own)
    else:
        shared = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = Path(shared) / "effnet_fast"
    return folder / f"tuning-{arch}.json"


def read_table(path: Path) -> Entries:
    """op -> key -> {"config": {field: int}, and how it was measured}; empty without a file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise TuningTableError(_unusable(path, str(error))) from error
    try:
        content = json.loads(text)
    except ValueError as error:
        raise TuningTableError(_unusable(path, f"not JSON: {error}")) from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise TuningTableError(_unusable(path, f"format {found}, this version reads {FORMAT}"))
    entries = content.get("ops")
    if not _well_formed(entries):
        raise TuningTableError(
            _unusable(path, '"ops" must map op -> key -> {"config": {field: integer}, ...}')
        )
    return entries


def write_table(path: Path, entries: Entries) -> None:
    """Replace the file in one step, so that no reader and no Ctrl-C ever leaves half a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, "ops": entries}, indent=1, sort_keys=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _unusable(path: Path, why: str) -> str:
    return f"cannot use the tuning table {path}: {why}; delete it, or run `effnet-fast tune` again"


def _well_formed(entries: Any) -> bool:
    return isinstance(entries, dict) and all(
        isinstance(keys, dict)
        and all(
            isinstance(entry, dict)
            and isinstance(entry.get("config"), dict)
            and all(type(value) is int for value in entry["config"].values())
            for entry in keys.values()
        )
        for keys in entries.values()
    )
