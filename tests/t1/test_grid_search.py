"""The grid search: ranked, parallel, resumable, and alive when an evaluation is not."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from effnet_fast.architecture import Variant
from effnet_fast.scaling import Trial, grid_search
from tests.t1.evaluators import judge

BASELINE = Variant(0.25, 0.3, 224, 0.2)
#: By resolution: 381 is killed (at once, so that its worker is missed), 224 twice is good, 269
#: raises, 314 is NaN, 246 is good.
GRID = [(1.0, 1.0, 1.7), (2.0, 1.0, 1.0), (1.0, 1.4, 1.0), (1.4, 1.0, 1.2), (1.0, 1.0, 1.4),
        (1.7, 1.0, 1.1)]  # fmt: skip


class Run(NamedTuple):
    trials: list[Trial]
    calls: list[list[str]]
    journal: list[str]


class Searches(NamedTuple):
    first: Run
    again: Run


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> Searches:
    """A search in which three evaluations fail, and the same once more when two are healed."""
    folder = tmp_path_factory.mktemp("search")
    runs = []
    for workers in (2, 1):
        trials = grid_search(
            partial(judge, str(folder)), grid=GRID, baseline=BASELINE,
            journal=folder / "journal.jsonl", workers=workers,
        )  # fmt: skip
        calls = [line.split() for line in (folder / "calls").read_text().splitlines()]
        runs.append(Run(trials, calls, (folder / "journal.jsonl").read_text().splitlines()))
        (folder / "healed").touch()
    return Searches(*runs)


def points(trials: list[Trial]) -> list[tuple[float, float, float]]:
    return [(t.alpha, t.beta, t.gamma) for t in trials]


def test_the_best_come_first_and_the_failed_last(searches: Searches) -> None:
    trials = searches.first.trials
    assert points(trials)[:3] == [(2.0, 1.0, 1.0), (1.7, 1.0, 1.1), (1.0, 1.4, 1.0)]
    assert [t.accuracy for t in trials[:3]] == [0.3 * 2 / 10, 0.3 * 1.7 / 10, 0.3 / 10]
    assert [t.accuracy for t in trials[3:]] == [None] * 3
    assert {t.variant.resolution for t in trials[3:]} == {269, 314, 381}
    assert all(t.macs > 0 for t in trials)


def test_every_failure_says_what_happened(searches: Searches) -> None:
    errors = {t.variant.resolution: t.error or "" for t in searches.first.trials[3:]}
    assert "ArithmeticError: no such luck" in errors[269]
    assert "returned nan, which is no accuracy" in errors[314]
    assert errors[381] == "the process of this evaluation ended with status -9"
    assert all(t.error is None for t in searches.first.trials[:3])


def test_two_worked_at_a_time_and_no_more_than_were_needed(searches: Searches) -> None:
    """The first two calls waited for each other; the killed one's place was taken."""
    first = searches.first.calls
    assert len(first) == len(GRID)
    assert first[0][0] != first[1][0]
    assert len({call[0] for call in first}) in (2, 3)


def test_the_second_search_runs_what_the_first_could_not(searches: Searches) -> None:
    new = searches.again.calls[len(GRID) :]
    assert sorted(int(call[3]) for call in new) == [269, 314, 381]
    assert all(t.error is None and t.accuracy is not None for t in searches.again.trials)
    kept = {
        p: t.seconds
        for p, t in zip(points(searches.first.trials), searches.first.trials, strict=True)
    }
    for t in searches.again.trials:
        if t.variant.resolution < 250:
            assert round(kept[t.alpha, t.beta, t.gamma], 3) == t.seconds


def test_the_journal_has_a_line_for_every_evaluation(searches: Searches) -> None:
    header, *records = [json.loads(line) for line in searches.again.journal]
    assert header["baseline"]["width"] == 0.25
    assert len(records) == len(GRID) + 3
    assert searches.again.journal[: len(GRID) + 1] == searches.first.journal
    best = next(r for r in records if r["alpha"] == 2.0)
    assert (best["depth"], best["resolution"], best["accuracy"]) == (0.6, 224, 0.06)


# ---------------------------------------------------------------- the journal, without processes


def finished(path: Path, grid: list[tuple[float, float, float]] = GRID[1:3], **other: Any) -> Any:
    """A search of points that `path` has: no evaluation is needed."""
    return grid_search(refuse, grid=grid, journal=path, **{"baseline": BASELINE, **other})


def refuse(variant: Variant) -> float:
    raise AssertionError(f"evaluated {variant}")


@pytest.fixture
def journal(searches: Searches, tmp_path: Path) -> Path:
    path = tmp_path / "journal.jsonl"
    path.write_text("\n".join(searches.again.journal) + "\n")
    return path


def test_what_is_finished_is_not_run_and_can_be_ranked_anew(journal: Path) -> None:
    seen = []

    def cheapest(accuracy: float, macs: int) -> float:
        seen.append((accuracy, macs))
        return -macs

    before = journal.read_text()
    trials = finished(journal, GRID, objective=cheapest)
    assert [t.macs for t in trials] == sorted(t.macs for t in trials)
    assert len(set(seen)) == len(GRID)
    assert journal.read_text() == before


def test_a_line_cut_short_is_dropped(journal: Path) -> None:
    whole = journal.read_text()
    journal.write_text(whole + '{"alpha": 1.0, "be')
    finished(journal)
    assert journal.read_text() == whole


DAMAGE: dict[str, tuple[Callable[[str], str], str]] = {
    "no JSON": (lambda s: s.replace('"accuracy"', "accuracy", 1), "line 2 is no record"),
    "no record": (lambda s: s + "[1, 2]\n", "is no record of a grid search"),
    "other file": (lambda s: '{"op": "depthwise"}\n', "is the journal of another search"),
}


@pytest.mark.parametrize(("damage", "complaint"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_journal_is_refused(
    journal: Path, damage: Callable[[str], str], complaint: str
) -> None:
    journal.write_text(damage(journal.read_text()))
    with pytest.raises(ValueError, match=complaint):
        finished(journal)


def test_the_journal_of_another_baseline_is_refused(journal: Path) -> None:
    with pytest.raises(ValueError, match="journal of another search"):
        finished(journal, baseline=Variant(0.5, 0.3, 224, 0.2))
    with pytest.raises(ValueError, match="journal of another search"):
        finished(journal, resolution_multiple=8)


def test_what_cannot_be_searched() -> None:
    with pytest.raises(ValueError, match="workers must be >= 1, got 0"):
        grid_search(refuse, grid=GRID[:1], baseline=BASELINE, workers=0)
    with pytest.raises(TypeError, match="use a function that a module defines at its top level"):
        grid_search(lambda v: 0.0, grid=GRID[:1], baseline=BASELINE)
    with pytest.raises(ValueError, match=r"is not within 1\.0 of 2"):
        grid_search(refuse, grid=[(3.0, 2.0, 1.0)], baseline=BASELINE)
