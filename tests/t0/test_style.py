"""Lint, formatting and types, by the tools' own verdict; and how long a line of C++ may be."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = {
    "lint": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "."],
    "types": ["mypy", "effnet_fast", "bench", "kernels"],
}


@pytest.mark.parametrize("command", TOOLS.values(), ids=TOOLS)
def test_the_tool_is_content(command: list[str]) -> None:
    line = [sys.executable, "-m", *command]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


LONGEST = 100


def too_long(folder: Path) -> list[str]:
    """Every line beyond LONGEST of the sources in ``folder``, by its number."""
    return [
        f"{path.relative_to(folder)}:{number}: {len(line)} characters"
        for path in sorted(folder.rglob("*.*"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if len(line) > LONGEST
    ]


def test_lines_of_cpp() -> None:
    """ruff's limit, for what ruff does not read."""
    assert too_long(ROOT / "csrc") == []


def test_a_long_line_is_seen(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.cuh").write_text("int a;\n// " + 98 * "x" + "\n")
    assert too_long(tmp_path) == ["sub/a.cuh:2: 101 characters"]
