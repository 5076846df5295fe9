"""The CUDA C++ kernels on a CPU (tests/cuda_emu): the tests of tests/ops, in three thread orders.

Every test here is one of tests/ops with backend="cuda", on the cases that the CUDA kernels take.
Orders matter to a kernel whatever type it stores: bf16 runs in all three, other types in the random
one.
"""

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.cases import FLOATS
from tests.cuda_emu import build
from tests.cuda_emu.backend import ORDERS, in_every_order
from tests.ops import test_backward as backward
from tests.ops import test_forward as forward
from tests.ops import test_parameters as parameters

reason = build.why_not()
pytestmark = [
    pytest.mark.skipif(reason is not None, reason=str(reason)),
    pytest.mark.parametrize("dtype", FLOATS, ids=str),
]


@pytest.fixture(autouse=True)
def _backend_in_the_report(record_property: Callable[[str, object], None]) -> None:
    record_property("backend", "cuda (emulated)")


def supported(mark: pytest.Mark) -> pytest.Mark:
    """Without the cases that the CUDA kernels do not take: test_cuda_limits.py is about those."""
    if mark.name != "parametrize" or mark.args[0] not in ("case", "momentum"):
        return mark
    if mark.args[0] == "momentum":  # a factor: one is as good as three
        return pytest.mark.parametrize("momentum", mark.args[1][:1], **mark.kwargs).mark
    cases = [c for c in mark.args[1] if c.fits_cuda()]
    return pytest.mark.parametrize("case", cases, **mark.kwargs).mark


def emulated(test: Callable[..., None]) -> Callable[..., None]:
    """``test`` of tests/ops, on the emulator, with its own parameters."""

    @functools.wraps(test)
    def run(cuda_module: ModuleType, **arguments: Any) -> None:
        orders = ORDERS if arguments["dtype"] == torch.bfloat16 else ORDERS[-1:]
        in_every_order(cuda_module, functools.partial(test, backend="cuda", **arguments), orders)

    signature = inspect.signature(test)
    own = [p for name, p in signature.parameters.items() if name != "backend"]
    module = inspect.Parameter("cuda_module", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = signature.replace(parameters=[*own, module])  # type: ignore[attr-defined]
    run.pytestmark = [supported(m) for m in getattr(test, "pytestmark", [])]  # type: ignore[attr-defined]
    return run


test_depthwise_training = emulated(forward.test_depthwise_training)
test_depthwise_inference = emulated(forward.test_depthwise_inference)
test_se_pool_and_gate = emulated(forward.test_se_pool_and_gate)
test_se_gate = emulated(forward.test_se_gate)
test_bn_residual = emulated(forward.test_bn_residual)
test_bn_finalize = emulated(forward.test_bn_finalize)
test_gradient_on_load = emulated(backward.test_gradient_on_load)
test_gradient_through_other_activations = emulated(backward.test_gradient_through_other_activations)
test_depthwise_bwd = emulated(backward.test_depthwise_bwd)
test_se_bwd_reduce = emulated(backward.test_se_bwd_reduce)
test_se_gate_bwd = emulated(backward.test_se_gate_bwd)
test_bn_bwd_coef = emulated(backward.test_bn_bwd_coef)

test_convolutions = emulated(parameters.test_convolutions)
test_convolutions_backward = emulated(parameters.test_convolutions_backward)
test_squeeze_and_excitation = emulated(parameters.test_squeeze_and_excitation)
test_batch_norm = emulated(parameters.test_batch_norm)

# Matrix products, around which the passes are ours (ops/on_cuda/products.py).
test_pointwise_training = emulated(forward.test_pointwise_training)
test_pointwise_inference = emulated(forward.test_pointwise_inference)
test_pointwise_pool = emulated(forward.test_pointwise_pool)
test_stem = emulated(forward.test_stem)
test_pointwise_bwd_project = emulated(backward.test_pointwise_bwd_project)
test_pointwise_bwd_expand = emulated(backward.test_pointwise_bwd_expand)
test_stem_bwd = emulated(backward.test_stem_bwd)
