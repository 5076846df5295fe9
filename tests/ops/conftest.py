"""The same tests on every backend and device: which of them, tests/cases.py reads from the
environment, and tests/run_tiers.py sets it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from effnet_fast.backends import backends
from tests.cases import DEVICE, INTERPRETED, SIXTEEN_BIT

HERE = Path(__file__).parent


def is_left_out(item: pytest.Item) -> bool:
    """A 16-bit case beyond those that the interpreter has time for; one that a backend refuses.

    What "cuda" refuses is for tests/t2/test_cuda_limits.py, what "cpu" does for
    tests/t1/test_cpu_backend.py.
    """
    params = item.callspec.params if hasattr(item, "callspec") else {}
    if params.get("backend") == "cpu" and params.get("dtype") == torch.float16:
        return True
    if "case" not in params:
        return False
    case = params["case"]
    if params.get("backend") == "cuda" and not case.fits_cuda():
        return True
    half = params.get("dtype", torch.float32) != torch.float32
    return INTERPRETED and half and case.name not in SIXTEEN_BIT


def why_not_here(item: pytest.Item) -> str | None:
    """Why a GPU's test cannot run on this machine: a tier that names the backend then fails."""
    if not torch.cuda.is_available():
        return "no GPU on this machine"
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return backends().get(params.get("backend"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if item.path.is_relative_to(HERE) and is_left_out(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
    for item in items:
        if item.path.is_relative_to(HERE):
            # The deterministic mode is here for what it does to fresh memory.
            item.add_marker(pytest.mark.filterwarnings("ignore:.*determinis"))
            reason = why_not_here(item) if DEVICE == "cuda" else None
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _backend_in_the_report(
    request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    """tests/run_tiers.py wants to know that every backend it named was tested."""
    if "backend" in request.fixturenames:
        record_property("backend", request.getfixturevalue("backend"))


@pytest.fixture(autouse=True)
def _fp32_products_in_fp32() -> Iterator[None]:
    """Not in TF32, which torch allows for convolutions on a GPU: of the two sides of a comparison
    cuDNN takes it for one and not for the other."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(autouse=True)
def _poisoned_memory_on_the_device() -> Iterator[None]:
    """Tensors are made on the device under test, and fresh memory is NaN, so that what a kernel
    leaves unwritten shows: torch fills every ``torch.empty`` in its deterministic mode."""
    before = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.device(DEVICE):
            yield
    finally:
        torch.set_deterministic_debug_mode(before)
