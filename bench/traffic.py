"""Print the bytes EfficientNet moves and saves per image, beside the budgets; needs no GPU.

    python -m bench.traffic                                  # B0 to B7, eager and this library
    python -m bench.traffic efficientnet_b0 --by-op          # which operators move the bytes
    python -m bench.traffic efficientnet_b0 --schedules eager compile ours --json

`python -m bench.gate ledger` holds the figures against committed ones. Each model is in bf16 and
channels_last at its native resolution. `bench.ledger` says how bytes are counted, `bench.schedules`
what the schedules are and how the budgets differ from eager.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial

from bench.ledger import Ledger, Rows, moved, per_image
from bench.schedules import BUDGETS, RESOLUTIONS, SCHEDULES, compiled_saved

_MB = 1e6
# schedule -> model -> quantity -> bytes per image
Figures = dict[str, dict[str, dict[str, int]]]


def ledger(schedule: str, name: str) -> Ledger:
    """The ledger of model `name`, run by `schedule`, at its native resolution in bf16."""
    return per_image(partial(SCHEDULES[schedule], name), _shape(name))


def _shape(name: str) -> tuple[int, int, int]:
    return 3, RESOLUTIONS[name], RESOLUTIONS[name]


def table(figures: Figures, names: Sequence[str]) -> str:
    """MB per image as text: a row for each schedule and budget, a column for each model."""
    columns = [list(RESOLUTIONS).index(name) for name in names]
    lines = [_line("MB per image, bf16", [name.removeprefix("efficientnet_") for name in names])]
    for quantity, budgets in BUDGETS.items():
        lines.append("")
        for schedule, models in figures.items():
            if all(quantity in models[name] for name in names):
                cells = [_mb(models[name][quantity] / _MB) for name in names]
                lines.append(_line(f"{quantity}, {schedule}", cells))
        for label, budget in budgets.items():
            cells = [_mb(budget[column]) for column in columns]
            lines.append(_line(f"{quantity}, budget {label}", cells))
    return "\n".join(lines)


def _line(label: str, cells: Sequence[str]) -> str:
    return f"{label:<28}" + "".join(f"{cell:>9}" for cell in cells)


def _mb(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def by_op(rows: Rows) -> str:
    """MB per image as text: a row for each operator, the most bytes first."""
    lines = [f"{'operator':<44}{'calls':>7}{'read MB':>10}{'written MB':>12}{'share':>8}"]
    total = moved(rows)
    for name, row in sorted(rows.items(), key=lambda item: -item[1].moved):
        share = row.moved / total
        read, written = row.read / _MB, row.written / _MB
        lines.append(f"{name:<44}{row.calls:>7}{read:>10.3f}{written:>12.3f}{share:>8.1%}")
    return "\n".join(lines)


def _report(names: Sequence[str], schedules: Sequence[str], ops: bool, as_json: bool) -> None:
    figures: Figures = {}
    rows: dict[tuple[str, str, str], Rows] = {}
    for schedule in schedules:
        figures[schedule] = {}
        for name in names:
            if schedule == "compile":
                # AOTAutograd functionalizes: in-place activations make no difference to it.
                saved = compiled_saved(partial(SCHEDULES["eager"], name), _shape(name))
                figures[schedule][name] = {"saved": saved}
                continue
            counted = ledger(schedule, name)
            figures[schedule][name] = counted.figures()
            rows[name, schedule, "inference"] = counted.inference
            rows[name, schedule, "training"] = counted.training
    if as_json:
        print(json.dumps({"unit": "bytes per image, bf16", "figures": figures}, indent=1))
        return
    print(table(figures, names))
    for key, counted_rows in rows.items() if ops else ():
        print(f"\n{', '.join(key)}\n{by_op(counted_rows)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.traffic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: B0 to B7")
    parser.add_argument(
        "--schedules",
        nargs="+",
        choices=[*SCHEDULES, "compile"],
        default=list(SCHEDULES),
        help="default: all but compile, which is slow",
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--json", action="store_true", help="exact bytes as JSON")
    action.add_argument("--by-op", action="store_true", help="also a table of operators")
    options = parser.parse_args(argv)
    names = options.models or list(RESOLUTIONS)
    unknown = [name for name in names if name not in RESOLUTIONS]
    if unknown:
        parser.error(f"unknown model {unknown[0]!r}: expected some of {', '.join(RESOLUTIONS)}")
    _report(names, options.schedules, options.by_op, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
