"""Run the test tiers, each in a pytest process of its own, and say what ran.

Usage: python tests/run_tiers.py [TIER ...]     (no name: all of them)

A tier fails if a test in it fails, if no test in it ran, or if none ran of a backend that it names:
a tier all skipped has shown nothing.
"""

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Tier:
    """One pytest run. `may_be_empty` says which hardware's absence excuses that no test ran.

    `backends` are those that tests/ops, which every tier but T0 may hold, runs on.
    """

    name: str
    folders: tuple[str, ...]
    backends: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    may_be_empty: str = ""
    parallel: str = ""  # a process for each core: how pytest-xdist gives them tests

    def environment(self) -> dict[str, str]:
        """That of the pytest process."""
        named = {"EFFNET_FAST_TEST_BACKENDS": ",".join(self.backends)} if self.backends else {}
        return {**os.environ, **named, **self.env}


TIERS = (
    Tier("T0", ("tests/t0",)),
    Tier("T1", ("tests/t1", "tests/ops"), ("cpu", "reference"), parallel="loadfile"),
    Tier(
        "T2", ("tests/t2", "tests/ops"), ("triton",), {"TRITON_INTERPRET": "1"}, parallel="loadfile"
    ),
    Tier("T3", ("tests/t3",)),
    Tier(
        "T4", ("tests/t4", "tests/ops"), ("cuda", "triton", "reference"),
        {"EFFNET_FAST_TEST_DEVICE": "cuda"},
        may_be_empty="no GPU on this machine", parallel="worksteal",
    ),
)  # fmt: skip


@dataclass
class Outcome:
    """What one tier's tests did; `skips` counts the reasons, `trouble` says why the tier failed.

    `ran` counts, by backend, the tests that ran and passed or failed.
    """

    passed: int = 0
    failed: int = 0
    ran: Counter[str] = field(default_factory=Counter)
    skips: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    trouble: str = ""


def read_junit(xml: Path) -> Outcome:
    """Count a pytest run's test cases; an error in a fixture or at collection is a failure."""
    outcome = Outcome()
    for case in ET.parse(xml).iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            outcome.failed += 1
        elif skipped is not None:
            outcome.skips[skipped.get("message") or "no reason given"] += 1
        else:
            outcome.passed += 1
        if skipped is None:
            named = case.iterfind("properties/property[@name='backend']")
            outcome.ran.update(p.get("value", "") for p in named)
    return outcome


def judge(tier: Tier, outcome: Outcome, status: int) -> None:
    """Set `outcome.trouble` from what the tests did and pytest's exit status (0 good, 5 empty)."""
    if status not in (0, 5) and outcome.failed == 0:
        outcome.failed = 1  # pytest itself broke: no test case carries the failure
        outcome.trouble = f"pytest ended with status {status}"
    elif outcome.failed:
        outcome.trouble = f"{outcome.failed} failed"
    elif outcome.passed == 0:
        outcome.trouble = "" if tier.may_be_empty else "no test ran"
    elif missing := [b for b in tier.backends if not outcome.ran[b]]:
        outcome.trouble = f"no test ran for backend {', '.join(missing)}"


def run(tier: Tier) -> Outcome:
    """Run one tier, pytest's progress going straight to the terminal."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        xml = Path(scratch, "junit.xml")
        command = [sys.executable, "-m", "pytest", *tier.folders, f"--junit-xml={xml}"]
        if tier.parallel:
            command += ["-n", str(len(os.sched_getaffinity(0))), "--dist", tier.parallel]
        done = subprocess.run(command, cwd=ROOT, env=tier.environment(), check=False)
        outcome = read_junit(xml) if xml.exists() else Outcome()
    outcome.seconds = time.monotonic() - start
    judge(tier, outcome, done.returncode)
    return outcome


def main(names: list[str]) -> int:
    """Run the named tiers, print the table, and return the exit status."""
    known = {tier.name: tier for tier in TIERS}
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no tier named {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    outcomes: list[tuple[Tier, Outcome]] = []
    for tier in [known[name] for name in names] or TIERS:
        print(f"\n=== {tier.name}: {' '.join(tier.folders)}", flush=True)
        outcomes.append((tier, run(tier)))

    print(f"\n{'tier':<6}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}")
    for tier, outcome in outcomes:
        note = outcome.trouble
        if not note and outcome.passed == 0:
            note = f"empty: {tier.may_be_empty}"
        counts = f"{outcome.passed:>8}{outcome.failed:>8}{outcome.skips.total():>9}"
        print(f"{tier.name:<6}{counts}{outcome.seconds:>9.1f}  {note}".rstrip())
    for tier, outcome in outcomes:
        for backend, count in outcome.ran.items():
            print(f"{tier.name} ran {count} on backend {backend}")
        for reason, count in outcome.skips.items():
            print(f"{tier.name} skipped {count}: {reason}")
    passed = sum(outcome.passed for _, outcome in outcomes)
    failed = sum(outcome.failed for _, outcome in outcomes)
    skipped = sum(outcome.skips.total() for _, outcome in outcomes)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if any(outcome.trouble for _, outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
