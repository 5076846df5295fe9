"""Runs tests against kernels with a bug planted in them, each in a forked process.

``python -m tests.t2.plant JOBS RESULTS``: reads a JSON list of jobs, writes a list of results. The
process imports what is slow once and forks for every job; the child's imports of the kernels find
the altered copy, and pytest runs the job's tests there.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
#: Of CPU time for a job. A kernel that never ends is a bug that was caught, too.
SECONDS = 120


class Job(NamedTuple):
    """Tests to run with ``old`` replaced by ``new`` in kernels/``file``; unaltered with no file."""

    name: str
    tests: list[str]
    file: str = ""
    old: str = ""
    new: str = ""


class Result(NamedTuple):
    """What the tests did: how many passed, and how each other one failed (the exception's type)."""

    passed: int
    failures: list[str]
    trouble: str = ""  # why no test's verdict is to be had


class Altered:
    """A finder for the import system: one module of effnet_fast.kernels comes from another file."""

    def __init__(self, module: str, path: Path) -> None:
        self.module, self.path = module, path

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if name != self.module:
            return None
        return importlib.util.spec_from_file_location(name, self.path)


class Verdicts:
    """A pytest plugin that keeps what became of each test."""

    def __init__(self) -> None:
        self.passed = 0
        self.failures: list[str] = []

    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        if call.excinfo is not None:
            self.failures.append(call.excinfo.type.__name__)
        elif call.when == "call":
            self.passed += 1


def altered_source(job: Job) -> str:
    """The file with the bug; an edit that does not fit exactly once is an error."""
    source = (ROOT / "kernels" / job.file).read_text()
    count = source.count(job.old)
    if count != 1:
        raise ValueError(f"{job.name}: the text to replace occurs {count} times in {job.file}")
    return source.replace(job.old, job.new)


def run_here(job: Job, scratch: Path) -> Result:
    """In the child: import the kernels afresh and run the tests."""
    if job.file:
        path = scratch / job.file
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.write_text(altered_source(job))
        except ValueError as error:
            return Result(0, [], str(error))
        finder = Altered(f"effnet_fast.kernels.{path.stem}", path)
        sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
    verdicts = Verdicts()
    options = ["-q", "-x", "-p", "no:cacheprovider"]
    status = pytest.main([*job.tests, *options], plugins=[verdicts])
    if status not in (0, 1):
        return Result(verdicts.passed, verdicts.failures, f"pytest ended with status {int(status)}")
    return Result(verdicts.passed, verdicts.failures)


def fork(job: Job, answer: Path, scratch: Path) -> int:
    """Start a child; its result goes to the file ``answer``. Returns its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
            result = run_here(job, scratch)
        answer.write_text(json.dumps(result))
        status = 0
    finally:
        os._exit(status)


def run_all(jobs: list[Job], workers: int) -> Iterator[Result]:
    """Every job's result, in order; at most ``workers`` at a time."""
    with tempfile.TemporaryDirectory() as folder:
        answers = [Path(folder, f"{i}.json") for i in range(len(jobs))]
        running: dict[int, int] = {}
        ends: dict[int, int] = {}
        for i, job in enumerate(jobs):
            if len(running) == workers:
                pid, end = os.wait()
                ends[running.pop(pid)] = os.waitstatus_to_exitcode(end)
            running[fork(job, answers[i], Path(folder, str(i)))] = i
        for pid, i in running.items():
            ends[i] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for i, answer in enumerate(answers):
            if answer.exists():
                yield Result(*json.loads(answer.read_text()))
            elif ends[i] < 0:  # out-of-bounds accesses end the process, endless loops the timer
                yield Result(0, [signal.Signals(-ends[i]).name])
            else:
                yield Result(0, [], f"the process ended with status {ends[i]}")


def main(jobs_file: str, results_file: str) -> None:
    """Read the jobs, run them, write the results."""
    from tests.t2 import interpreter

    interpreter.install()
    # What takes its time to import is imported before the forks.
    import effnet_fast  # noqa: F401
    import tests.cases  # noqa: F401

    torch.use_deterministic_algorithms(True)  # imports Inductor, as tests/ops does
    torch.use_deterministic_algorithms(False)

    jobs = [Job(*fields) for fields in json.loads(Path(jobs_file).read_text())]
    results = list(run_all(jobs, len(os.sched_getaffinity(0))))
    Path(results_file).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
