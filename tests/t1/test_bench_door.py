"""`pytest bench/ --benchmark-only`: what it selects, and that its times are those taken in turn."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pytest_benchmark.stats import Stats
from torch import Tensor

from bench.arena import Entry, Replay
from bench.contest import Entrant
from bench.kernels import Call, Layers, main, peers_on
from bench.model_contest import hold_what_fits
from bench.op_contest import hold
from bench.records import read
from bench.throughput import RESNETS

ROOT = Path(__file__).parents[2]


#: Prints the names of what pytest selects by each of several sets of options, in one process.
COLLECT = """
import json, sys, pytest
class Names:
    def pytest_collection_finish(self, session):
        self.found = [item.name for item in session.items]
found = {}
for options in json.loads(sys.argv[1]):
    names = Names()
    pytest.main(["bench/", "--collect-only", "-qq", *options], plugins=[names])
    found[" ".join(options)] = names.found
print("\\n" + json.dumps(found))
"""


def run(*command: str) -> str:
    # Not as a worker of pytest-xdist, under which pytest-benchmark times nothing.
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    env["OMP_NUM_THREADS"] = "1"
    line = [sys.executable, *command]
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_options_select_what_they_say() -> None:
    markers = [["-m", f"{name} and not full"] for name in ("inference", "latency", "ops")]
    sets = [[], ["--full"], ["-k", "b0 and batch_1"], *markers]
    found = json.loads(run("-c", COLLECT, json.dumps(sets)).splitlines()[-1])

    def models(names: list[str]) -> set[str]:
        return {" ".join(re.split(r"\[|-", name)[1:3]) for name in names if "_model[" in name}

    default, full = found[""], found["--full"]
    assert models(default) == {f"b{i} inference" for i in (0, 1, 4)}
    family = (*(f"b{i}" for i in range(8)), *RESNETS)
    assert models(full) == {f"{m} {mode}" for m in family for mode in ("inference", "training")}
    assert any("b0-depthwise-inference-k3s1-c32-112" in name for name in default)
    assert set(default) < set(full)
    assert models(found["-k b0 and batch_1"]) == {"b0 inference"}
    for name, test in (("inference", "test_model["), ("latency", "test_lat"), ("ops", "test_op[")):
        names = found[f"-m {name} and not full"]
        assert names
        assert all(found_name.startswith(test) for found_name in names)
        assert set(names) < set(default)


def test_a_contest_is_recorded_and_reported_as_it_was_taken(tmp_path: Path) -> None:
    """Three labels of one op, from the samples through the record to pytest-benchmark's file."""
    table = tmp_path / "pytest-benchmark.json"
    said = run(
        "-m", "pytest", "bench/bench_ops.py", "--benchmark-only", "-q", "-k",
        "b0-depthwise-inference-k3s2-c96", "--out", str(tmp_path), f"--benchmark-json={table}",
        "--threads", "2", "--dtype", "bfloat16",
    )  # fmt: skip
    (path,) = tmp_path.glob("*.jsonl")
    lines = {line["backend"]: line for line in read(path) if line["mode"] != "ceiling"}
    assert lines.keys() == {"cpu", "reference", "eager"}
    copy, matmul = [*read(path)][:2]
    assert (copy["op"], matmul["op"], matmul["dtype"]) == ("copy", "matmul", "bfloat16")
    assert copy["environment"]["threads"] == 2  # OMP_NUM_THREADS is 1
    shown = json.loads(table.read_text())["benchmarks"]
    assert len(shown) == 3
    for benchmark in shown:
        line = lines[benchmark["params"]["label"]]
        assert benchmark["stats"]["rounds"] == 20
        assert round(1e3 * benchmark["stats"]["median"], 6) == round(line["ms"]["p50"], 6)
        assert benchmark["extra_info"]["gate"] == "passed"
    assert f"written: {path}" in said
    assert "| depthwise, inference | eager | 1 |" in said


class Off(Call):
    """A call whose backend "off" gives 0.1 % too much."""

    def __call__(self, label: str) -> list[Tensor]:
        found = super().__call__("reference" if label == "off" else label)
        return [1.001 * t for t in found] if label == "off" else found


@pytest.mark.parametrize("mode", ["inference", "training", "backward"])
def test_an_op_that_is_wrong_by_fp64_is_not_timed(mode: str) -> None:
    made = Layers(1, torch.float32, torch.device("cpu"))
    call = next(call for call in made.depthwise(3, 2, 8, 8) if call.mode == mode)
    off = Off(call.op, call.mode, call.case, call.args, call.peers)
    found = {label: entry.record for label, entry in hold(off, ["reference", "off"]).items()}
    assert found["reference"] is not None
    assert found["reference"].gate == "passed"
    assert found["off"] is not None
    assert found["off"].gate.startswith("off by 1.0e-03")
    assert found["off"].ms is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_whole_models_compute_in_the_type_asked_for(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    held: list[Entrant] = []

    def holder(entrants: dict[str, Entrant], mode: str) -> dict[str, Entry]:
        held.extend(entrants.values())
        return {}

    monkeypatch.setattr("bench.model_contest.hold", holder)
    hold_what_fits(["engine"], "efficientnet_b0", 2, False, torch.device("cpu"), dtype)
    assert [(e.label, e.x.dtype, e.x.shape[0]) for e in held] == [("engine", dtype, 2)]


def test_a_convolution_is_labelled_by_whose_kernels_it_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert peers_on(torch.device("cuda:1"))[1:3] == ("cudnn", "cudnn-nchw")
    calls = {c.mode: c for c in Layers(1, torch.float32, torch.device("cpu")).depthwise(3, 1, 8, 6)}
    assert [*calls["plain"].peers] == ["copy", "onednn", "onednn-nchw"]
    assert [*calls["backward"].peers] == ["onednn", "onednn-nchw"]
    with pytest.raises(SystemExit):
        main(["--device", "cpu", "--backends", "cudnn"])
    assert "unknown backend 'cudnn' on cpu; known: cuda, " in capsys.readouterr().err


def test_the_clock_shows_the_samples_and_nothing_between() -> None:
    clock, stats = Replay(), Stats()
    clock.load([3.0, 1.0, 2.0])
    for _ in range(3):
        before = clock()
        stats.update(round(clock() - before, 9))
    assert stats.data == [0.003, 0.001, 0.002]
    assert clock() == clock()
