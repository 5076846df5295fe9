"""`pytest bench/ --benchmark-only`: what it selects, and that its times are those taken in turn."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.stats import Stats

from bench.arena import Replay
from bench.records import read

ROOT = Path(__file__).parents[2]


def door(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "bench/", "--benchmark-only", "-q", *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def selected(*options: str) -> list[str]:
    done = door("--collect-only", *options)
    assert done.returncode in (0, 5), done.stdout + done.stderr
    return [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]


def test_the_default_and_the_full_run_select_what_they_say() -> None:
    default, full = selected(), selected("--full")
    models = {"-".join(name.split("[")[1].split("-")[:2]) for name in default if "_model[" in name}
    assert models == {f"b{i}-inference" for i in (0, 1, 4)}
    everything = {"-".join(name.split("[")[1].split("-")[:2]) for name in full if "_model[" in name}
    assert everything == {f"b{i}-{mode}" for i in range(8) for mode in ("inference", "training")}
    assert any("b0-depthwise-inference-k3s1-c32-112" in name for name in default)
    assert any(name.startswith("test_latency[efficientnet_b1 ") for name in default)
    assert set(default) < set(full)


def test_a_contest_is_recorded_and_reported_as_it_was_taken(tmp_path: Path) -> None:
    """Two labels of one op, from the samples through the record to pytest-benchmark's file."""
    table = tmp_path / "pytest-benchmark.json"
    done = door("-k", "b0-depthwise-inference-k3s2-c96", "-m", "ops", "--out", str(tmp_path),
                f"--benchmark-json={table}")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("*.jsonl")
    lines = {line["backend"]: line for line in read(path) if line["mode"] != "ceiling"}
    assert lines.keys() == {"reference", "eager"}
    assert [line["op"] for line in read(path)][:2] == ["copy", "matmul"]
    shown = json.loads(table.read_text())["benchmarks"]
    assert len(shown) == 2
    for benchmark in shown:
        line = lines[benchmark["params"]["label"]]
        assert benchmark["stats"]["rounds"] == 20
        assert round(1e3 * benchmark["stats"]["median"], 6) == round(line["ms"]["p50"], 6)
        assert benchmark["extra_info"]["gate"] == "passed"
    assert f"written: {path}" in done.stdout
    assert "copy" in done.stdout


def test_the_clock_shows_the_samples_and_nothing_between() -> None:
    clock, stats = Replay(), Stats()
    clock.load([3.0, 1.0, 2.0])
    for _ in range(3):
        before = clock()
        stats.update(round(clock() - before, 9))
    assert stats.data == [0.003, 0.001, 0.002]
    assert clock() == clock()


@pytest.mark.parametrize("marker", ["inference", "latency", "ops"])
def test_markers_select(marker: str) -> None:
    names = selected("-m", f"{marker} and not full")
    assert names
    expected = {"inference": "test_model[", "latency": "test_latency[", "ops": "test_op["}[marker]
    assert all(name.startswith(expected) for name in names)
