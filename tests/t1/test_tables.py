"""The paper's tables: counted figures agree with the paper's, or the table says why not."""

import json
from typing import Any

import pytest

from effnet_fast.cli import main
from effnet_fast.tables import TABLES, Column, Table, counted
from effnet_fast.tables.layout import billions, percent, times
from effnet_fast.tables.paper import TABLE_2

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def tables() -> dict[str, Table]:
    """All, less Table 2's groups of B5 to B7, whose counts test_profile.py holds to published."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counted, "TABLE_2", TABLE_2[:5])
        return {name: make() for name, make in TABLES.items()}


def test_table_1_is_the_papers(tables: dict[str, Table]) -> None:
    rows = tables["1"].rows
    assert [row["as_in_paper"] for row in rows] == [True] * 9
    assert sum(row["params"] for row in rows) == 5_288_548
    assert sum(row["macs"] for row in rows) == 385_814_752
    assert sum(row["layers"] for row in rows) == 18


#: Networks whose public models are not the paper's within 5 %.
OFF = {"Inception-v4", "SENet", "PNASNet"}


def test_table_2_counts_what_the_paper_prints(tables: dict[str, Table]) -> None:
    rows = {row["name"]: row for row in tables["2"].rows}
    assert len(rows) == 19
    missing = {name for name, row in rows.items() if row["params"] is None}
    assert missing == {"PolyNet", "AmoebaNet-A"}
    off = {
        name
        for name in rows.keys() - missing
        for key, unit in (("params", 1e6), ("flops", 1e9))
        if abs(rows[name][key] / unit / rows[name][f"paper_{key}"] - 1) > 0.05
    }
    assert off == OFF


def test_table_2s_ratios_are_to_the_groups_efficientnet(tables: dict[str, Table]) -> None:
    rows = {row["name"]: row for row in tables["2"].rows}
    for row in rows.values():
        if row["params"] is not None and row["name"] not in OFF:
            assert abs(row["params_ratio"] / row["paper_params_ratio"] - 1) < 0.1, row["name"]
            assert abs(row["flops_ratio"] / row["paper_flops_ratio"] - 1) < 0.1, row["name"]
    b1, resnet = rows["EfficientNet-B1"], rows["ResNet-152"]
    assert b1["flops_ratio"] == 1
    assert resnet["flops_ratio"] == resnet["flops"] / b1["flops"]


def test_table_3_is_within_5_percent_or_explained(tables: dict[str, Table]) -> None:
    rows = {(row["network"], row["scaling"]): row for row in tables["3"].rows}
    assert len(rows) == 14
    off = {key for key, row in rows.items() if abs(row["difference"]) > 0.05}
    # One digit: 0.569 is printed as 0.6.
    assert round(rows["MobileNetV1", "baseline"]["flops"] / 1e9, 1) == 0.6
    assert off == {("MobileNetV1", "baseline"), ("ResNet-50", "depth"), ("ResNet-50", "width")}
    depth, width = rows["ResNet-50", "depth"], rows["ResNet-50", "width"]
    for ours, theirs in ((depth, width), (width, depth)):
        assert abs(ours["flops"] / theirs["paper_flops"] - 1) < 0.01
    assert "exchanged" in " ".join(tables["3"].notes)


def test_without_torchvision_or_timm_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise ImportError("no such module")

    monkeypatch.setattr(counted, "import_torchvision", absent)
    few = [[row for row in group if row.name in ("EfficientNet-B1", "ResNet-152", "Xception")]
           for group in counted.TABLE_2[1:2]]  # fmt: skip
    monkeypatch.setattr(counted, "TABLE_2", few)
    rows = counted.table_2().rows
    assert [row["source"] for row in rows[1:]] == [
        "torchvision is not installed", "timm is not installed",
    ]  # fmt: skip
    assert [row["flops_ratio"] for row in rows] == [1, None, None]


# ---------------------------------------------------------------- how they are printed

SMALL = Table(
    "T", (Column("name", "n"), Column("cost", "c", billions)),
    [{"n": "a", "c": 1e9}, {"n": "bb", "c": None}], ("A note.",),
)  # fmt: skip


def test_text_and_markdown() -> None:
    text = ["T", "name     cost", "a     1.000 B", "bb          -", "A note."]
    assert SMALL.text().splitlines() == text
    assert SMALL.markdown().splitlines() == [
        "**T**", "", "| name | cost |", "| :-- | --: |", "| a | 1.000 B |", "| bb | - |", "",
        "A note.",
    ]  # fmt: skip
    assert (times(9.9), times(10.6), percent(-0.1)) == ("9.9x", "11x", "-10.0 %")


def test_the_command_prints_what_is_asked_for(capsys: Captured) -> None:
    assert main(["tables", "scaling", "1"]) == 0
    first, second = capsys.readouterr().out.split("\n\n")
    assert second.startswith("Table 1.")
    row = next(line for line in first.splitlines() if line.startswith("efficientnet_b7"))
    assert row.split()[1:7] == ["3.1", "2.0", "600", "0.5", "6.63", "-7.4"]
    assert main(["tables", "1", "--markdown"]) == 0
    assert "\n| 1 | Conv3x3 | 224 | 32 | 1 | 928 |" in capsys.readouterr().out
    assert main(["tables", "1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["1"]["rows"][0]["macs"] == 10_838_016


def test_an_unknown_table_is_refused(capsys: Captured) -> None:
    assert main(["tables", "4", "1"]) == 2
    assert "no table 4; there are 1, 2, 3, scaling" in capsys.readouterr().err
