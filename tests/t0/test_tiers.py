"""The gate itself: what makes a tier fail."""

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.run_tiers import ROOT, TIERS, Outcome, Tier, judge, main, read_junit
from tests.t3.cuda_resources import ARCHITECTURES

TIER = Tier("TX", ("tests/tx",))
NO_GPU = Tier("TX", ("tests/tx",), ("triton",), may_be_empty="no GPU")
BOTH = Tier("TX", ("tests/tx",), ("triton", "reference"))
CASES = {
    "good": (TIER, Outcome(passed=3), 0, ""),
    "a failure": (TIER, Outcome(passed=3, failed=1), 1, "1 failed"),
    "all skipped": (TIER, Outcome(), 0, "no test ran"),
    "nothing collected": (TIER, Outcome(), 5, "no test ran"),
    "excused": (NO_GPU, Outcome(), 5, ""),
    "excused, yet failing": (NO_GPU, Outcome(failed=2), 1, "2 failed"),
    "both backends": (BOTH, Outcome(passed=3, ran=Counter(triton=1, reference=2)), 0, ""),
    "a backend that no test ran for": (
        BOTH,
        Outcome(passed=3, ran=Counter(reference=3)),
        0,
        "no test ran for backend triton",
    ),
    "pytest broke": (NO_GPU, Outcome(), 4, "pytest ended with status 4"),
    "pytest broke after good tests": (TIER, Outcome(passed=3), 3, "pytest ended with status 3"),
}


@pytest.mark.parametrize(("tier", "outcome", "status", "trouble"), CASES.values(), ids=CASES)
def test_a_tier_is_judged(tier: Tier, outcome: Outcome, status: int, trouble: str) -> None:
    judge(tier, outcome, status)
    assert outcome.trouble == trouble
    assert (outcome.failed > 0) == (status not in (0, 5))


def test_cases_are_counted_with_their_reasons(tmp_path: Path) -> None:
    xml = tmp_path / "junit.xml"
    xml.write_text(
        "<testsuites><testsuite><testcase/><testcase><failure/></testcase>"
        "<testcase><error/></testcase><testcase><skipped message='no GPU'/></testcase>"
        "<testcase><properties><property name='backend' value='triton'/></properties>"
        "<skipped message='no GPU'/></testcase>"
        "<testcase><properties><property name='backend' value='reference'/></properties></testcase>"
        "</testsuite></testsuites>"
    )
    outcome = read_junit(xml)
    assert outcome.ran == Counter(reference=1)
    assert (outcome.passed, outcome.failed, dict(outcome.skips)) == (2, 2, {"no GPU": 2})


def test_an_unknown_tier_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["T0", "T99"]) == 2
    assert "no tier named T99; there are T0, T1" in capsys.readouterr().err


def test_ci_compiles_every_architecture_once() -> None:
    """Those that setup.py builds for: some in CI's native module, the others in tier T3."""
    all_of = re.search(r"^ARCHS = \(([^)]+)\)", (ROOT / "setup.py").read_text(), re.MULTILINE)
    built = re.search(r'EFFNET_FAST_CUDA_ARCHS="([\d;]+)"', (ROOT / ".ci/run").read_text())
    assert all_of is not None
    assert built is not None
    in_t3 = [int(architecture.rstrip("a")) for architecture in ARCHITECTURES]
    found = sorted([*map(int, built[1].split(";")), *in_t3])
    assert found == [int(arch) for arch in all_of[1].split(",")]


def test_every_folder_of_a_tier_is_there_and_every_folder_is_in_one() -> None:
    named = {folder for tier in TIERS for folder in tier.folders}
    holding = {str(p.parent.relative_to(ROOT)) for p in ROOT.glob("tests/**/test_*.py")}
    assert holding == named
