"""The gate on exact figures: the committed ledger holds, and a planted rise is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import gate, snapshot, traffic
from bench.ledger import Ledger, Row
from bench.schedules import RESOLUTIONS
from tests.t3 import cuda_resources, triton_resources

Captured = pytest.CaptureFixture[str]

LEDGER = Ledger(
    inference={"lib::expand": Row(2, 100, 50)},
    training={"lib::expand": Row(2, 100, 50), "lib::wgrad": Row(1, 30, 10)},
    saved=70,
)
RISEN = Ledger(
    inference=LEDGER.inference,
    training={"lib::expand": Row(2, 90, 50), "lib::wgrad": Row(1, 30, 21)},
    saved=70,
)
FALLEN = Ledger(inference=LEDGER.inference, training=LEDGER.training, saved=69)
SPLIT = Ledger(
    inference={"lib::expand": Row(1, 50, 25), "lib::shrink": Row(2, 50, 25)},
    training=LEDGER.training,
    saved=70,
)


def test_no_figure_has_risen() -> None:
    """The committed ledger of this library's schedule, every model, to the byte and the launch."""
    rose, fell = gate.ledger()
    assert rose == []
    assert fell == [], "a figure fell: python -m bench.gate ledger --write keeps it"


def test_snapshot_names_what_rose(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    snapshot.write(path, {"b0": LEDGER})
    assert snapshot.compare(path, {"b0": LEDGER}) == ([], [])
    (rose,), fell = snapshot.compare(path, {"b0": RISEN})
    assert rose == "b0 training: 190 -> 191 bytes (+1): lib::expand -10, lib::wgrad +11"
    assert fell == []
    assert snapshot.compare(path, {"b0": FALLEN}) == ([], ["b0 saved: 70 -> 69 bytes (-1)"])


def test_one_more_launch_of_the_same_bytes_is_a_rise(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    snapshot.write(path, {"b0": LEDGER})
    (rose,), fell = snapshot.compare(path, {"b0": SPLIT})
    assert rose == "b0 inference launches: 2 -> 3 (+1): lib::expand -1, lib::shrink +2"
    assert fell == []


def test_a_model_the_snapshot_lacks_fails(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    snapshot.write(path, {"b0": LEDGER})
    (rose,), _ = snapshot.compare(path, {"b1": LEDGER})
    assert rose.startswith("b1 is not in")


def test_a_file_that_is_no_snapshot_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match="not a ledger snapshot"):
        snapshot.compare(path, {"b0": LEDGER})


@pytest.mark.parametrize(("now", "status"), [(LEDGER, 0), (FALLEN, 0), (RISEN, 1), (SPLIT, 1)])
def test_it_exits_with_one_where_a_figure_rose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, now: Ledger, status: int
) -> None:
    monkeypatch.setattr(gate, "LEDGER", tmp_path / "ledger.json")
    monkeypatch.setattr(traffic, "ledger", lambda schedule, name: LEDGER)
    assert gate.main(["ledger", "--write"]) == 0
    monkeypatch.setattr(traffic, "ledger", lambda schedule, name: now)
    assert gate.main(["ledger"]) == status
    rose = [line for line in capsys.readouterr().err.splitlines() if "rose: " in line]
    assert len(rose) == (len(RESOLUTIONS) if status else 0)


def test_resources_of_cuda_kernels_may_not_rise(monkeypatch: pytest.MonkeyPatch) -> None:
    release, budget = cuda_resources.read_budget()
    monkeypatch.setattr(cuda_resources, "release", lambda: release)
    assert cuda_resources.risen(budget) == []
    architecture, kernels = next(iter(budget.items()))
    name, held = next(iter(kernels.items()))
    more = {architecture: {name: held._replace(registers=held.registers + 1, spill_stores=4)}}
    assert cuda_resources.risen(more) == [
        f"sm_{architecture}: {name}: registers {held.registers} -> {held.registers + 1}",
        f"sm_{architecture}: {name}: spill_stores {held.spill_stores} -> 4",
    ]
    less = {architecture: {name: held._replace(registers=held.registers - 1)}}
    assert cuda_resources.risen(less) == []
    assert cuda_resources.risen({architecture: {"new_kernel": held}}) == [
        f"sm_{architecture}: new_kernel is not in cuda_budget.json"
    ]
    monkeypatch.setattr(cuda_resources, "release", lambda: "1.0")
    with pytest.raises(ValueError, match=r"of nvcc .*, this is 1\.0"):
        cuda_resources.risen(budget)


def test_resources_of_triton_kernels_may_not_rise(monkeypatch: pytest.MonkeyPatch) -> None:
    held = json.loads(triton_resources.BUDGET.read_text())
    assert triton_resources.risen(held["kernels"]) == []
    name, kernels = next(iter(held["kernels"].items()))
    kernel, (registers, shared, spills) = next(iter(kernels.items()))
    more = {name: {kernel: [registers, shared + 16, spills + 2]}}
    assert triton_resources.risen(more) == [
        f"{name}: {kernel}: shared {shared} -> {shared + 16}",
        f"{name}: {kernel}: spills {spills} -> {spills + 2}",
    ]
    assert triton_resources.risen({name: {"new_kernel": [1, 0, 0]}}) == [
        f"{name}: new_kernel is not in triton_budget.json"
    ]
    monkeypatch.setattr(triton_resources.triton, "__version__", "1.0")
    with pytest.raises(ValueError, match=r"of Triton .*, this is 1\.0"):
        triton_resources.risen(held["kernels"])


def test_a_part_that_cannot_be_compared_is_no_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(gate, "find_nvcc", lambda: None)
    assert gate.main(["cuda"]) == 2
    assert "cuda: cannot be compared: nvcc is neither in" in capsys.readouterr().err


def test_an_unknown_part_is_named(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        gate.main(["time"])
    assert "unknown part 'time'; known: ledger, cuda, triton" in capsys.readouterr().err
