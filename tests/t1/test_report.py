"""Records as tables, comparisons, pictures and README's section."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import readme, report
from bench.analysis import (
    beyond_noise,
    ceilings,
    contests,
    least_bytes,
    load,
    of_run,
    roof,
)
from bench.costs import ledger, profile
from bench.ledger import moved
from bench.records import Record, Writer, slug
from bench.tables import comparison, tables

Captured = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]
B0 = "efficientnet_b0"


def run(folder: Path, utc: str, times: dict[str, float | None], **environment: Any) -> Path:
    """A record of B0 by these providers, ms each (None: a red gate), with both ceilings."""
    writer = Writer(folder, torch.device("cpu"))
    writer.add(Record("copy", "torch", "ceiling", "copy", [1], "uint8", band(1.0), "passed",
                      bytes=10**8))  # fmt: skip
    writer.add(Record("matmul", "torch", "ceiling", "matmul", [1], "float32", band(1.0), "passed",
                      flops=10**9))  # fmt: skip
    for label, ms in times.items():
        writer.add(Record(
            "model", label, "inference", B0, [1, 3, 64, 64], "float32", ms and band(ms),
            "off by 1.0e-01, bar 1.0e-04" if ms is None else "passed", bytes=12_000_000,
            flops=64_000_000, peak_memory=34_000_000, launches=66,
        ))  # fmt: skip
    for side in (4, 8):
        writer.add(Record("depthwise", "reference", "inference", f"k3 s1 c8 {side}x{side}",
                          [1, 8, side, side], "float32", band(side / 2), "passed",
                          bytes=10**8))  # fmt: skip
    writer.close()
    lines = [json.loads(text) for text in writer.path.read_text().splitlines()]
    known = {"device": "A CPU", "threads": 2, "commit": "abcdef0123", "dirty": False, "utc": utc}
    for line in lines:
        line["environment"] |= known | environment
    path = folder / f"{utc}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    writer.path.unlink()
    return path


def band(ms: float) -> dict[str, float]:
    return {"p20": 0.9 * ms, "p50": ms, "p80": 1.1 * ms}


TIMES = {"engine": 10.0, "reference": 40.0, "eager-nchw": 20.0, "openvino": 11.0, "timm": None}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return run(tmp_path, "20260101T000000Z", TIMES)


def row(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {start} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_table_has_the_figures_the_speedups_and_the_red_gate(path: Path) -> None:
    text = tables(load([path]))
    assert "copy 100.0 GB/s, matrix product 1000 Gflop/s" in text
    # The arithmetic takes 0.064 ms; the bytes of ours are the roof, whoever computes.
    line = load([path])[2]
    bound = roof(line, ceilings(load([path]), path.name))
    assert bound == 1e3 * (least_bytes(line) or 0) / 1e11 > 0.064
    assert row(text, "eager-nchw") == [
        "eager-nchw", "20", "18-22", "50.0", "2.00x", f"{100 * bound / 20:.0f}", "34", "12", "",
        "66",
    ]  # fmt: skip
    assert row(text, "**engine**")[4] == ""
    assert row(text, "**reference**")[4] == "4.00x"
    assert row(text, "openvino")[4] == "1.10x ~"
    assert row(text, "timm")[1] == "not timed: off by 1.0e-01, bar 1.0e-04"
    assert row(text, "depthwise, inference")[1:5] == ["reference", "2", "6", "25-50"]


def test_the_roof_is_of_bytes_or_arithmetic_whichever_takes_longer(path: Path) -> None:
    line = load([path])[2]
    expected = moved(ledger("ours", B0, 64, 64, torch.float32).inference)
    assert least_bytes(line) == expected + 4 * profile(B0, 64, 64).params
    assert roof(line, {"copy": 1e15, "matmul": 1e9}) == 64.0
    assert roof(line, {"copy": 1e15, "matmul": 1e9, "fma": 2e9}) == 32.0
    assert roof(line, {}) is None
    assert roof(line | {"mode": "latency"}, {"copy": 1e15, "matmul": 1e9}) is None
    assert least_bytes(line | {"case": "resnet50"}) is None


def test_a_contest_is_of_one_file_and_of_the_newest(tmp_path: Path, path: Path) -> None:
    newer = run(tmp_path, "20260202T000000Z", {"engine": 5.0, "timm": 6.0})
    other = run(tmp_path, "20251231T000000Z", {"engine": 7.0}, device="Another CPU")
    found = contests(load([newer, path, other]))
    assert [[line["backend"] for line in contest] for contest in found] == [
        ["timm", "engine"], ["engine"],
    ]  # fmt: skip
    assert [contest[0]["file"] for contest in found] == [newer.name, other.name]


def test_differences_within_the_noise_are_called_so(tmp_path: Path, path: Path) -> None:
    after = run(tmp_path, "20260202T000000Z",
                {"engine": 11.0, "reference": 80.0, "eager-nchw": 10.0, "timm": 9.0, "compile": 1},
                commit="fedcba9876", threads=4)  # fmt: skip
    lines = load([path, after])
    text = comparison(of_run(lines, str(path)), of_run(lines, "fedcba9"))
    cells = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    verdicts = {row[2]: row[6] for row in cells if len(row) > 7 and "model" in row[1]}
    assert verdicts["engine"] == "within the noise"
    assert verdicts["eager-nchw"] == "**faster, 0.50x the time**"
    assert verdicts["timm"] == "gate: off by 1.0e-01, bar 1.0e-04 -> passed"
    assert "threads differs: 2 against 4" in text
    assert "measured in one of them alone: 1 before, 1 after" in text
    assert verdicts["reference"] == "**slower, 2.00x the time**"


def test_bands_that_touch_are_noise() -> None:
    a = {"ms": {"p20": 1.0, "p50": 2.0, "p80": 3.0}}
    assert not beyond_noise(a, {"ms": {"p20": 3.0, "p50": 4.0, "p80": 5.0}})
    assert beyond_noise(a, {"ms": {"p20": 3.1, "p50": 4.0, "p80": 5.0}})
    assert beyond_noise({"ms": {"p20": 3.1, "p50": 4.0, "p80": 5.0}}, a)


def test_the_papers_table_sets_both_models_side_by_side(tmp_path: Path) -> None:
    writer = Writer(tmp_path, torch.device("cpu"))
    for case, label, ms in (
        ("resnet152", "compile", 570.0), ("efficientnet_b1", "compile", 100.0),
        ("efficientnet_b1", "engine", 50.0),
    ):  # fmt: skip
        side = 224 if case == "resnet152" else 240
        writer.add(Record("model", label, "latency", case, [1, 3, side, side], "float32", band(ms),
                          "passed", flops=1))  # fmt: skip
    writer.close()
    text = readme.section(load([writer.path]))
    assert "The paper's Table 4 (there 5.7x): one image at a time on one thread, ms:" in text
    assert row(text, "compile") == ["compile", "570", "100", "5.7x"]
    assert row(text, "ours, engine") == ["ours, engine", "", "50", ""]


def test_resnet50_is_set_beside_b0_where_both_were_measured(tmp_path: Path) -> None:
    writer = Writer(tmp_path, torch.device("cpu"))
    for case, ms in (("resnet50", 400.0), (B0, 80.0)):
        writer.add(Record("model", "compile", "inference", case, [8, 3, 224, 224], "float32",
                          band(ms), "passed", flops=1))  # fmt: skip
    writer.close()
    text = readme.section(load([writer.path]))
    assert "| compile | 20 | 100 | 5.0x |" in text
    assert "Table 4" not in text
    assert "resnet50-b0.png" in {*_drawn(writer.path, tmp_path / "pictures")}


def test_what_is_no_record_is_named(tmp_path: Path, capsys: Captured) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{}\n")
    assert report.main([str(bad)]) == 2
    assert f"{bad}, line 1: expected the fields" in capsys.readouterr().err
    assert report.main([str(tmp_path / "absent.jsonl")]) == 2
    assert "absent.jsonl" in capsys.readouterr().err


def test_an_unknown_run_lists_the_known(path: Path, capsys: Captured) -> None:
    assert report.main(["--compare", str(path), "0000000", str(path)]) == 2
    assert f"called '0000000'; there are ['{path.name}']" in capsys.readouterr().err


def test_readme_is_what_the_generator_gives(tmp_path: Path) -> None:
    """Of the committed records: python -m bench.report --readme."""
    copy = tmp_path / "README.md"
    copy.write_text(readme.README.read_text())
    readme.write(load(sorted(report.RESULTS.glob("*.jsonl"))), copy)
    assert copy.read_text() == readme.README.read_text(), "run python -m bench.report --readme"


def test_one_command_writes_the_section_and_its_pictures(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    file = tmp_path / "README.md"
    file.write_text(f"{readme.BEGIN}\n{readme.END}\n")
    monkeypatch.setattr(readme, "README", file)
    monkeypatch.setattr(readme, "PICTURES", tmp_path / "pictures")
    monkeypatch.setattr(report, "RESULTS", path.parent)
    assert report.main(["--readme"]) == 0
    names = [drawn.name for drawn in (tmp_path / "pictures").iterdir()]
    assert names == ["a-cpu-inference-batch-1-speedup.png"]
    assert f"(pictures/{names[0]})" in file.read_text()


def test_the_section_is_written_between_the_markers(tmp_path: Path, path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text(f"before\n{readme.BEGIN}\nstale\n{readme.END}\nafter\n")
    readme.write(load([path]), file)
    text = file.read_text()
    assert text.startswith(f"before\n{readme.BEGIN}\n")
    assert text.endswith(f"{readme.END}\nafter\n")
    assert "stale" not in text
    assert row(text, "ours, engine") == ["ours, engine", "**10**"]
    assert f"`bench/results/{path.name}`: copy 100.0 GB/s" in text
    file.write_text("no markers")
    with pytest.raises(ValueError, match="lacks the markers"):
        readme.write(load([path]), file)


def test_types_have_tables_of_their_own(tmp_path: Path, path: Path) -> None:
    other = run(tmp_path, "20260102T000000Z", {"engine": 6.0, "openvino": 7.0})
    other.write_text(other.read_text().replace('"float32"', '"bfloat16"'))
    fp32, bf16 = readme.section(load([path, other])).split("batch 1, ")[2:0:-1]
    assert (fp32.split(",")[0], bf16.split(",")[0]) == ("float32", "bfloat16")
    assert row(fp32, "ours, engine") == ["ours, engine", "**10**"]
    assert row(bf16, "ours, engine") == ["ours, engine", "**6**"]


def _drawn(path: Path, folder: Path) -> list[str]:
    """The pictures of a record, less the device's name."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert report.main([str(path), "--pictures", str(folder)]) == 0
    (line, *_) = load([path])
    prefix = f"{slug(line['environment']['device'])}-"
    return [file.name.removeprefix(prefix) for file in folder.iterdir()]


def test_pictures_are_drawn_of_all_that_there_is(tmp_path: Path, path: Path) -> None:
    names = _drawn(path, tmp_path / "pictures")
    kinds = ("inference-batch-1-throughput", "inference-batch-1-speedup", "roofline",
             "ops-inference")  # fmt: skip
    assert {*names} == {f"{kind}.{suffix}" for kind in kinds for suffix in ("png", "svg")}
    drawing = (tmp_path / "pictures" / "a-cpu-inference-batch-1-throughput.svg").read_text()
    assert drawing.count("<!-- ours, ") == 2
