"""The runner of compute-sanitizer, less the GPU."""

import subprocess
import sys

import pytest

from tests import sanitize


def test_what_is_missing_is_named() -> None:
    path, here = "/usr/bin/compute-sanitizer", {"cuda": None, "triton": None}
    assert sanitize.why_not(path, here) is None
    assert "compute-sanitizer is not in PATH" in str(sanitize.why_not(None, here))
    for name in sanitize.BACKENDS:
        reason = sanitize.why_not(path, here | {name: "torch sees no CUDA device"})
        assert reason == f"{name}: torch sees no CUDA device"


def test_an_unknown_tool_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert sanitize.main(["memcheck", "lint"]) == 2
    assert "no tool named lint; there are memcheck" in capsys.readouterr().err


def test_the_cases_it_selects_are_there() -> None:
    """A case that was renamed would leave the sanitizers without work, in silence."""
    command = sanitize.command("compute-sanitizer", "memcheck")
    selected = command[command.index(sys.executable) :]
    done = subprocess.run(
        [*selected, "--collect-only"],
        cwd=sanitize.ROOT,
        env=sanitize.environment() | {"EFFNET_FAST_TEST_DEVICE": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in (*sanitize.CASES.split(" or "), *sanitize.BACKENDS):
        assert name in done.stdout, name
