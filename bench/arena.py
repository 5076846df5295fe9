"""What stands between pytest-benchmark, which times one test after the other, and timing in turn.

The tests of one contest differ in their parameter ``label`` alone. The first of them to run holds
the contest for all that were selected; each then reports its own samples, by a clock that shows
pytest-benchmark the times that were taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.records import Record, Writer


class Replay:
    """pytest-benchmark's clock: read before and after a call, it shows the next sample passing."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps: list[float] = []

    def load(self, milliseconds: Sequence[float]) -> None:
        """These samples are next."""
        self.steps = [step for ms in reversed(milliseconds) for step in (ms / 1e3, 0.0)]

    def __call__(self) -> float:
        self.now += self.steps.pop() if self.steps else 0.0
        return self.now


CLOCK = Replay()


@dataclass(frozen=True)
class Entry:
    """What a contest found for one label: its record and samples in ms, or why it took no part."""

    record: Record | None = None
    samples: Sequence[float] = ()
    left_out: str = ""


Contest = Callable[[list[str]], dict[str, Entry]]


class Arena:
    """Holds one contest at a time, for all selected tests that belong to it, and records it.

    Progress bars are seen within ``shown()``.
    """

    def __init__(
        self,
        items: Sequence[pytest.Item],
        writer: Callable[[], Writer],
        shown: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.items, self.writer, self.shown = items, writer, shown
        self.key: object = None
        self.entries: dict[str, Entry] = {}

    def enter(self, item: pytest.Item, benchmark: BenchmarkFixture, hold: Contest) -> None:
        """Report ``item``'s part of its contest to ``benchmark``; ``hold`` takes the labels."""
        key, label = _key(item)
        if key != self.key:
            self.key, self.entries = key, {}  # the last contest's models are freed first
            labels = [_key(other)[1] for other in self.items if _key(other)[0] == key]
            with self.shown():
                writer = self.writer()
                found = hold(labels)
            for entry in found.values():
                if entry.record is not None:
                    writer.add(entry.record)
            self.entries = found
        entry = self.entries[label]
        if entry.record is None:
            pytest.skip(entry.left_out)
        if entry.record.gate == "out of memory":
            pytest.skip("out of memory")
        assert entry.record.gate == "passed", f"{entry.record.gate}: not timed"
        r = entry.record
        benchmark.group = f"{r.case}, {r.op} {r.mode}, {r.dtype}, {'x'.join(map(str, r.shape))}"
        benchmark.extra_info |= asdict(r)
        CLOCK.load(entry.samples)
        benchmark.pedantic(lambda: None, rounds=len(entry.samples))


def _key(item: pytest.Item) -> tuple[object, str]:
    """What the tests of one contest have in common, and the label."""
    callspec = getattr(item, "callspec", None)
    params: dict[str, Any] = {} if callspec is None else dict(callspec.params)
    label = params.pop("label", "")
    return (item.path, getattr(item, "originalname", item.name), str(params)), label
