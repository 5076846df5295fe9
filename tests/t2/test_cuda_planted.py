"""Every planted bug is caught, and the kernels as they are pass every check, also sanitized."""

import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cuda_emu import build
from tests.cuda_emu.planted import BUGS, Bug
from tests.cuda_emu.probe import Prober

reason = build.why_not()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

TENSOR = ("depthwise_fwd.cu", "depthwise_tensor.cu", "reduce.cu")
#: The checks, and the files of kernels that each runs: a bug in a header is planted in those.
CHECKS = {
    "depthwise": TENSOR,
    "inference": TENSOR,
    "strides": TENSOR,
    "depthwise_bwd": ("depthwise_bwd.cu", "reduce.cu"),
    "pointwise": ("pointwise_fwd.cu", "pointwise_bwd.cu", "reduce.cu"),
    "squeeze_excite": ("squeeze_excite.cu", "se_gate.cu", "se_gate_bwd.cu", "reduce.cu"),
    "batch_norm": ("batch_norm.cu", "reduce.cu"),
    "far_apart": (*TENSOR, "depthwise_bwd.cu", "squeeze_excite.cu", "batch_norm.cu"),
    "infinities": (*TENSOR, "depthwise_bwd.cu"),
    "halves": (*TENSOR, "depthwise_bwd.cu"),
}
NO_LAUNCH = """#include "cuda/launch.h"
#include "cuda/cluster.cuh"
#define launch(...) cudaErrorUnknown
#define launch_clusters(...) cudaErrorUnknown
"""
WORKERS = 2


class Job(NamedTuple):
    """A module to build and judge: the sources after ``edit``, which ``kernels`` take part in."""

    name: str
    check: str
    sanitize: bool = False
    edit: Callable[[dict[str, str]], None] | None = None
    kernels: Collection[str] = ()


Verdicts = dict[tuple[str, bool, str], Future[str]]


def break_launches(texts: dict[str, str]) -> None:
    """Every launch of a file of kernels becomes an error."""
    for name in texts:
        if name.endswith(".cu"):
            texts[name] = NO_LAUNCH + texts[name]


def jobs() -> list[Job]:
    """Those that take longest first, so that all workers end together."""
    bugs = sorted(BUGS, key=lambda bug: not bug.sanitize)
    files = {Path(name).name for name in build.sources() if name.endswith(".cu")}
    return [
        *(Job("", check, sanitize) for sanitize in (True, False) for check in CHECKS),
        *(Job(b.name, b.check, b.sanitize, b.plant, CHECKS[b.check]) for b in bugs),
        *(Job("others", c, False, break_launches, files - set(CHECKS[c])) for c in CHECKS),
    ]


@pytest.fixture(scope="module")
def verdicts(cuda_emulator: build.Builder) -> Iterator[Verdicts]:
    """(the job's name, sanitized, check) -> the complaint. All are queued at once."""
    found: Verdicts = {}
    probers: dict[tuple[int, bool], Prober] = {}

    def judge(job: Job) -> str:
        module = cuda_emulator.build(job.edit, sanitize=job.sanitize, kernels=job.kernels)
        # A prober judges one module at a time: every worker has its own.
        key = threading.get_ident(), job.sanitize
        if key not in probers:
            probers[key] = Prober(sanitize=job.sanitize)
        return probers[key].complaint(module, job.check)

    for sanitize in (False, True):  # what all others are linked with
        cuda_emulator.build(sanitize=sanitize)
    pool = ThreadPoolExecutor(WORKERS)
    for job in jobs():
        key = job.name, job.sanitize, job.check
        assert key not in found, f"two bugs are called {job.name}"
        found[key] = pool.submit(judge, job)
    yield found
    pool.shutdown(cancel_futures=True)
    for prober in probers.values():
        prober.close()


@pytest.mark.parametrize("sanitize", [False, True], ids=["plain", "sanitized"])
@pytest.mark.parametrize("check", CHECKS)
def test_the_kernels_as_they_are(verdicts: Verdicts, check: str, sanitize: bool) -> None:
    assert verdicts["", sanitize, check].result() == ""


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_runs_no_kernels_but_those_it_names(verdicts: Verdicts, check: str) -> None:
    assert verdicts["others", False, check].result() == ""


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
