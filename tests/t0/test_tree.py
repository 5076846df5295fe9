"""Rules for the source files that no linter knows."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("effnet_fast", "kernels", "csrc", "bench", "tests", "examples")
SUFFIXES = {".py", ".pyi", ".cpp", ".cu", ".cuh", ".h"}
MOST_LINES = 500
TORCH_HEADER = re.compile(r'^\s*#\s*include\s*[<"](torch|ATen|c10|caffe2)/', re.MULTILINE)
PYTHON_HEADER = re.compile(r'^\s*#\s*include\s*[<"](pybind11/|Python\.h)', re.MULTILINE)


def sources(*folders: str) -> list[Path]:
    found = [p for name in folders for p in (ROOT / name).rglob("*") if p.suffix in SUFFIXES]
    assert found
    return found


def tolerances(source: str) -> Iterator[int]:
    """Lines on which a call is given a tolerance: rtol=, atol=, or approx's rel=, abs=."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            names = {"rtol", "atol"}
            if ast.unparse(node.func).split(".")[-1] == "approx":
                names |= {"rel", "abs"}
            yield from (word.value.lineno for word in node.keywords if word.arg in names)


def test_no_file_is_too_long() -> None:
    counts = {p: p.read_text().count("\n") for p in [ROOT / "setup.py", *sources(*FOLDERS)]}
    assert {str(p): n for p, n in counts.items() if n > MOST_LINES} == {}


def test_tolerances_stand_in_the_error_rule_only() -> None:
    files = [p for p in sources("tests") if p.suffix == ".py" and p.name != "error_rule.py"]
    found = [f"{p.relative_to(ROOT)}:{line}" for p in files for line in tolerances(p.read_text())]
    assert found == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("torch.allclose(a, b, rtol=0.1, atol=0)", 2),
        ("assert x == pytest.approx(1.0, rel=1e-3)", 1),
        ("sum(x, abs=1)", 0),
        ("check(a, b, dtype=x)", 0),
    ],
)
def test_a_planted_tolerance_is_found(source: str, count: int) -> None:
    assert len(list(tolerances(source))) == count


def test_native_sources_include_no_torch_header() -> None:
    assert [p for p in sources("csrc") if TORCH_HEADER.search(p.read_text())] == []


def test_only_the_bridge_includes_python() -> None:
    found = {p for p in sources("csrc") if PYTHON_HEADER.search(p.read_text())}
    assert found
    assert {p for p in found if p.parent != ROOT / "csrc"} == set()


@pytest.mark.parametrize("line", ["#include <torch/extension.h>", '  # include "c10/cuda/X.h"'])
def test_a_planted_torch_header_is_found(line: str) -> None:
    assert TORCH_HEADER.search(f"#pragma once\n{line}\n")
