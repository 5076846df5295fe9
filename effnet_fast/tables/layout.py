"""A table as data, and as text, Markdown or JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Column:
    """``head``, what a row calls the value, and how the value is written; None is written "-"."""

    head: str
    key: str
    write: Callable[[Any], str] = str

    def cell(self, row: dict[str, Any]) -> str:
        """This column of ``row``."""
        value = row[self.key]
        return "-" if value is None else self.write(value)


@dataclass(frozen=True)
class Table:
    """``rows`` hold plain values by key; ``notes`` are sentences about them."""

    title: str
    columns: tuple[Column, ...]
    rows: list[dict[str, Any]]
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """In columns: words at the left, numbers at the right."""
        cells = self._cells()
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        right = [self._is_numeric(c) for c in self.columns]
        lines = [
            "  ".join(
                f"{cell:>{w}}" if r else f"{cell:<{w}}"
                for cell, w, r in zip(row, widths, right, strict=True)
            ).rstrip()
            for row in cells
        ]
        return "\n".join([self.title, *lines, *self.notes])

    def markdown(self) -> str:
        """As GitHub renders it."""
        head, *body = self._cells()
        rule = ["--:" if self._is_numeric(c) else ":--" for c in self.columns]
        lines = [f"| {' | '.join(row)} |" for row in (head, rule, *body)]
        return "\n\n".join([f"**{self.title}**", "\n".join(lines), *self.notes])

    def facts(self) -> dict[str, Any]:
        """What ``json.dumps`` writes: unrounded values."""
        return {"title": self.title, "rows": self.rows, "notes": list(self.notes)}

    def _cells(self) -> list[list[str]]:
        return [
            [c.head for c in self.columns],
            *([c.cell(r) for c in self.columns] for r in self.rows),
        ]

    def _is_numeric(self, column: Column) -> bool:
        values = [row[column.key] for row in self.rows]
        return all(v is None or isinstance(v, int | float) for v in values)


def millions(n: float) -> str:
    """5288548 -> 5.29 M."""
    return f"{n / 1e6:.2f} M"


def billions(n: float) -> str:
    """4089184256 -> 4.089 B."""
    return f"{n / 1e9:.3f} B"


def times(ratio: float) -> str:
    """4.8325 -> 4.8x; 10.6 -> 11x, as the paper writes it."""
    return f"{ratio:.1f}x" if ratio < 9.95 else f"{ratio:.0f}x"


def percent(share: float) -> str:
    """0.0123 -> +1.2 %."""
    return f"{100 * share:+.1f} %"
