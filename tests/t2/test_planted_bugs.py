"""The suite sees bugs: each of those in planted_bugs.py, put into a kernel, makes a test fail."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.t2.plant import ROOT, Job, Result
from tests.t2.planted_bugs import BUGS

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1: run tier T2"
)
#: What a wrong kernel may do: give wrong numbers, loop for ever, or touch what is not its own. A
#: planted bug that fails otherwise is a typing error in the plant.
HONEST = {"AssertionError", "SIGPROF", "SIGSEGV", "SIGBUS", "SIGABRT"}


def run(jobs: list[Job], folder: Path) -> list[Result]:
    """In a process of its own, in which no kernel was imported yet."""
    jobs_file, results_file = folder / "jobs.json", folder / "results.json"
    jobs_file.write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "tests.t2.plant", str(jobs_file), str(results_file)]
    env = {**os.environ, "EFFNET_FAST_TEST_BACKENDS": "triton"}
    env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # Hypothesis's takes a second of every job
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [Result(*fields) for fields in json.loads(results_file.read_text())]


def line(name: str, result: Result) -> str:
    ways = ", ".join(f"{n} {kind}" for kind, n in Counter(result.failures).items())
    verdict = "caught" if set(result.failures) & HONEST else "MISSED"
    return f"{name:<72}{verdict:<8}{result.trouble or ways or 'no test failed'}"


@pytest.fixture(scope="session")
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Result]]:
    """By bug, and by the tests' names for the same tests on the kernels as they are."""
    wanted = {item.name for item in request.session.items}
    bugs = [b for b in BUGS if f"test_a_planted_bug_is_caught[{b.name}]" in wanted]
    selections = {" ".join(bug.tests): bug.tests for bug in bugs}
    jobs = [*bugs, *(Job(name, tests) for name, tests in selections.items())]
    found = dict(zip([j.name for j in jobs], run(jobs, tmp_path_factory.mktemp("p")), strict=True))
    yield found
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print()
        for bug in bugs:
            print(line(f"{bug.file}: {bug.name}", found[bug.name]))


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught(bug: Job, results: dict[str, Result]) -> None:
    intact, broken = results[" ".join(bug.tests)], results[bug.name]
    assert not intact.trouble
    assert not intact.failures, "its tests fail without it"
    assert intact.passed
    assert not broken.trouble
    assert broken.failures, "no test failed"
    assert set(broken.failures) <= HONEST, "the plant itself is broken"


def test_the_list_is_long_enough_and_names_are_unique() -> None:
    names = [bug.name for bug in BUGS]
    assert len(set(names)) == len(names) >= 15
