"""Every planted bug is caught, and the kernels as they are pass every check, also sanitized."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cuda_emu import build
from tests.cuda_emu.planted import BUGS, Bug
from tests.cuda_emu.probe import Prober

reason = build.why_not()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

DEPTHWISE = ("depthwise_fwd.cu", "depthwise_tensor.cu", "depthwise_bwd.cu", "reduce.cu")
#: The checks, and the files of kernels that each runs: a bug in a header is planted in those.
CHECKS = {
    "depthwise": ("depthwise_fwd.cu", "depthwise_tensor.cu", "reduce.cu"),
    "depthwise_bwd": DEPTHWISE,
    "pointwise": ("pointwise_fwd.cu", "pointwise_bwd.cu", "reduce.cu"),
    "squeeze_excite": ("squeeze_excite.cu", "se_gate.cu", "se_gate_bwd.cu", "reduce.cu"),
    "batch_norm": ("batch_norm.cu", "reduce.cu"),
    "far_apart": (*DEPTHWISE, "squeeze_excite.cu", "batch_norm.cu"),
    "infinities": DEPTHWISE,
    "halves": DEPTHWISE,
}
WORKERS = 2
Verdicts = dict[tuple[str, bool, str], Future[str]]


@pytest.fixture(scope="module")
def verdicts(cuda_emulator: build.Builder) -> Iterator[Verdicts]:
    """(name of the bug or "", sanitized, check) -> the complaint. All are queued at once."""
    found: Verdicts = {}

    def judge(bug: Bug | None, sanitize: bool, check: str) -> str:
        edit, kernels = (None, None) if bug is None else (bug.plant, CHECKS[check])
        module = cuda_emulator.build(edit, sanitize=sanitize, kernels=kernels)
        # A prober judges one module at a time: every worker has its own.
        key = threading.get_ident(), sanitize
        if key not in probers:
            probers[key] = Prober(sanitize=sanitize)
        return probers[key].complaint(module, check)

    jobs: list[tuple[Bug | None, bool, str]] = []
    jobs += [(None, sanitize, check) for check in CHECKS for sanitize in (False, True)]
    jobs += [(bug, bug.sanitize, bug.check) for bug in BUGS]
    jobs.sort(key=lambda job: not job[1])  # those that take longest first, so that all end together
    probers: dict[tuple[int, bool], Prober] = {}
    for sanitize in (False, True):  # what all others are linked with
        cuda_emulator.build(sanitize=sanitize)
    pool = ThreadPoolExecutor(WORKERS)
    for bug, sanitize, check in jobs:
        key = ("" if bug is None else bug.name, sanitize, check)
        assert key not in found, f"two bugs are called {key[0]}"
        found[key] = pool.submit(judge, bug, sanitize, check)
    yield found
    pool.shutdown(cancel_futures=True)
    for prober in probers.values():
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
