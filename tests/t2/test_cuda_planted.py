"""Every planted bug is caught, and the kernels as they are pass every check, also sanitized."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import pytest

from tests.cuda_emu import build
from tests.cuda_emu.planted import BUGS, Bug
from tests.cuda_emu.probe import Prober

reason = build.why_not()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

CHECKS = ("depthwise", "depthwise_bwd", "pointwise", "squeeze_excite", "batch_norm", "far_apart")
CHECKS += ("inference", "strides", "infinities", "halves")
WORKERS = 2
Verdicts = dict[tuple[str, bool, str], Future[str]]


@pytest.fixture(scope="module")
def verdicts(cuda_emulator: build.Builder) -> Iterator[Verdicts]:
    """(name of the bug or "", sanitized, check) -> the complaint. All are queued at once."""
    found: Verdicts = {}

    def judge(probers: dict[bool, Prober], bug: Bug | None, sanitize: bool, check: str) -> str:
        module = cuda_emulator.build(None if bug is None else bug.plant, sanitize=sanitize)
        if sanitize not in probers:
            probers[sanitize] = Prober(sanitize=sanitize)
        return probers[sanitize].complaint(module, check)

    jobs: list[tuple[Bug | None, bool, str]] = []
    jobs += [(None, sanitize, check) for check in CHECKS for sanitize in (False, True)]
    jobs += [(bug, bug.sanitize, bug.check) for bug in BUGS]
    # One thread per worker, each with probers of its own, which judge one module at a time.
    pools = [ThreadPoolExecutor(1) for _ in range(WORKERS)]
    probers: list[dict[bool, Prober]] = [{} for _ in range(WORKERS)]
    for sanitize in (False, True):  # what all others are linked with
        cuda_emulator.build(sanitize=sanitize)
    for worker, (bug, sanitize, check) in zip(cycle(range(WORKERS)), jobs, strict=False):
        key = ("" if bug is None else bug.name, sanitize, check)
        assert key not in found, f"two bugs are called {key[0]}"
        found[key] = pools[worker].submit(judge, probers[worker], bug, sanitize, check)
    yield found
    for pool in pools:
        pool.shutdown(cancel_futures=True)
    for own in probers:
        for prober in own.values():
            prober.close()


@pytest.mark.parametrize("sanitize", [False, True], ids=["plain", "sanitized"])
@pytest.mark.parametrize("check", CHECKS)
def test_the_kernels_as_they_are(verdicts: Verdicts, check: str, sanitize: bool) -> None:
    assert verdicts["", sanitize, check].result() == ""


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught(verdicts: Verdicts, bug: Bug) -> None:
    assert verdicts[bug.name, bug.sanitize, bug.check].result() != ""


def test_an_edit_needs_its_place() -> None:
    nowhere = Bug("nothing", "cuda/ops.h", "text that is not there", "", "depthwise")
    with pytest.raises(AssertionError, match="has 0 places"):
        nowhere.plant(build.sources())


def test_a_module_that_does_not_load_is_a_complaint(tmp_path: Path) -> None:
    prober = Prober()
    try:
        assert "ImportError" in prober.complaint(tmp_path / "_C.so", "depthwise")
    finally:
        prober.close()
