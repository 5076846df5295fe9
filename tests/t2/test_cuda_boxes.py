"""Depthwise rows copied by boxes (csrc/cuda/box_copy.cuh) and, on a device without, vector by
vector: the same bits, in every order of threads; and what boxes do not take."""

from collections.abc import Iterator
from functools import partial
from types import ModuleType

import pytest
import torch

from tests.cases import DEPTHWISE, Case
from tests.cuda_emu import build
from tests.cuda_emu.backend import Call, emulated, in_every_order, same_bits
from tests.ops import test_forward as forward
from tests.ops import test_strides as strides

reason = build.why_not()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

NAMES = ("b0-stage2-down", "b0-stage3-down", "odd-tall", "odd-wide", "same-k5", "batch-17", "1x1")
CASES = [case for case in DEPTHWISE if case.name in NAMES]
HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture
def with_boxes(cuda_module: ModuleType) -> Iterator[ModuleType]:
    yield cuda_module
    cuda_module.emulator_set_boxes(True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_same_without_boxes(with_boxes: ModuleType, case: Case) -> None:
    native = with_boxes
    with emulated(native) as calls:
        forward.test_depthwise_inference(case, torch.bfloat16, "cuda", "silu")
    native.emulator_set_boxes(False)
    with emulated(native, "random:1"):
        without = [Call.make(call.op, call.args) for call in calls]
    assert len(calls) == 2
    for ours, other in zip(calls, without, strict=True):
        for a, b in zip(ours.results, other.results, strict=True):
            assert same_bits(a, b)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", strides.SHAPES, ids=str)
def test_strides(
    cuda_module: ModuleType, shape: tuple[int, int, int, int, int, int], dtype: torch.dtype
) -> None:
    in_every_order(cuda_module, partial(strides.test_depthwise, shape, dtype, "cuda"))
