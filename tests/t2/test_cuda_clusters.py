"""The kernels that are launched in thread block clusters, on a device that has none."""

from collections.abc import Iterator
from functools import partial
from types import ModuleType

import pytest
import torch

from tests.cuda_emu import build
from tests.cuda_emu.backend import in_every_order
from tests.ops import test_backward as backward
from tests.ops import test_forward as forward

reason = build.why_not()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))


@pytest.fixture
def without_clusters(cuda_module: ModuleType) -> Iterator[ModuleType]:
    cuda_module.emulator_set_clusters(False)
    yield cuda_module
    cuda_module.emulator_set_clusters(True)


@pytest.mark.parametrize(("t", "n", "c", "r"), forward.GATES)
def test_se_gate(without_clusters: ModuleType, t: int, n: int, c: int, r: int) -> None:
    test = partial(forward.test_se_gate, t, n, c, r, torch.bfloat16, "cuda")
    in_every_order(without_clusters, test)


@pytest.mark.parametrize(("n", "c", "r"), [(17, 130, 9), (9, 300, 20), (1, 2100, 7)])
def test_se_gate_bwd(without_clusters: ModuleType, n: int, c: int, r: int) -> None:
    test = partial(backward.test_se_gate_bwd, n, c, r, "silu", torch.bfloat16, "cuda")
    in_every_order(without_clusters, test)
