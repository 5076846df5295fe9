"""The records of measurements: what a file must hold, and that a run writes such a file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import contest, fma, records, throughput
from bench.records import Record, Writer, read
from effnet_fast.cli.providers import Provider

B0 = "efficientnet_b0"
MS = {"p20": 1.0, "p50": 1.5, "p80": 2.0}
GOOD = Record("model", "compile", "inference", "efficientnet_b0", [1, 3, 8, 8], "float32", MS,
              "passed")  # fmt: skip
RESULTS = sorted((Path(__file__).parents[2] / "bench" / "results").glob("*.jsonl"))


def test_a_record_comes_back_as_written(tmp_path: Path) -> None:
    writer = Writer(tmp_path, torch.device("cpu"))
    writer.add(GOOD)
    (line,) = read(writer.path)
    writer.close()
    assert {k: line[k] for k in ("op", "backend", "shape", "ms", "gate")} == {
        "op": "model", "backend": "compile", "shape": [1, 3, 8, 8], "ms": MS, "gate": "passed",
    }  # fmt: skip
    assert line["environment"]["torch"] == torch.__version__
    stamp, *_, sha = writer.path.stem.split("-")
    assert stamp == line["environment"]["utc"]
    assert line["environment"]["commit"].startswith(sha) or sha == "nogit"


def test_a_file_is_never_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = records.environment(torch.device("cpu"))
    monkeypatch.setattr(records, "environment", lambda device: same)
    Writer(tmp_path, torch.device("cpu")).close()
    with pytest.raises(FileExistsError):
        Writer(tmp_path, torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"gate": "off by 1"}, "no speed on a red gate"),
        ({"ms": None}, "no speed on a red gate"),
        ({"ms": {"p50": 1.0}}, "p20, p50 and p80"),
        ({"shape": "1x3"}, "shape"),
        ({"speedup": 2.0}, "expected the fields"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    writer = Writer(tmp_path, torch.device("cpu"))
    writer.add(GOOD)
    writer.close()
    good = json.loads(writer.path.read_text())
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps({**good, **changes}) + "\n")
    with pytest.raises(ValueError, match=rf"bad\.jsonl, line 2: .*{match}"):
        list(read(path))


def test_a_run_checks_before_it_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny images, stock against ours; then a provider that is wrong gets no time."""
    monkeypatch.setattr(throughput, "ceilings", lambda *_: None)
    command = ["efficientnet_b0", "--resolution", "40", "--repeats", "1", "--batch-size", "4",
               "--device", "cpu", "--providers", "eager-nchw", "reference"]  # fmt: skip
    assert throughput.main([*command, "--out", str(tmp_path / "good")]) == 0
    lines = [line for file in (tmp_path / "good").iterdir() for line in read(file)]
    assert len(lines) == 6
    assert {line["gate"] for line in lines} == {"passed"}

    plain = contest.build

    def planted(label: str, *rest: Any) -> Provider:
        provider = plain(label, *rest)
        if label == "reference":
            with torch.no_grad():
                next(provider.model.parameters())[0, 0, 0, 0] += 0.1
        return provider

    monkeypatch.setattr(contest, "build", planted)
    assert throughput.main([*command, "--out", str(tmp_path / "bad")]) == 1
    lines = [line for file in (tmp_path / "bad").iterdir() for line in read(file)]
    for line in lines:
        assert (line["ms"] is None) == (line["backend"] == "reference"), line["gate"]


def test_an_unknown_provider_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        throughput.main([B0, "--providers", "engine", "caffe+graph"])
    assert "unknown provider 'caffe'; known: eager-nchw, " in capsys.readouterr().err


def test_files_from_before_a_field_was_thought_of_are_read(tmp_path: Path) -> None:
    writer = Writer(tmp_path, torch.device("cpu"))
    writer.add(GOOD)
    writer.close()
    line = json.loads(writer.path.read_text())
    path = tmp_path / "old.jsonl"
    path.write_text(json.dumps({k: v for k, v in line.items() if k not in records.LATER}) + "\n")
    (read_back,) = read(path)
    assert read_back == line
    assert [read_back[name] for name in records.LATER] == [None, None]


def test_the_ceilings_are_measured_into_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(fma, "ROUNDS", 1000)
    for name in ("with", "without"):
        writer = Writer(tmp_path / name, cpu)
        throughput.ceilings(cpu, torch.float32, writer)
        writer.close()
        lines = {line["op"]: line for line in read(writer.path)}
        assert {line["mode"] for line in lines.values()} == {"ceiling"}
        assert lines["copy"]["bytes"] == 2 * lines["copy"]["shape"][0]
        if name == "without":
            assert lines.keys() == {"copy", "matmul"}
            break
        vector = lines["fma"]["flops"] / (2 * 12 * 1000 * torch.get_num_threads())
        assert vector in (4, 8, 16)  # floats: SSE, AVX, AVX-512
        monkeypatch.setattr(fma.shutil, "which", lambda name: None)


@pytest.mark.skipif(not RESULTS, reason="no record is committed yet")
@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.name)
def test_committed_records_are_readable(path: Path) -> None:
    assert list(read(path))
