"""What the backend "cuda" refuses, and how its errors read."""

from types import ModuleType
from typing import Any

import pytest
import torch

from effnet_fast import limits, reference
from effnet_fast.ops import on_cuda
from effnet_fast.ops.on_cuda import bridge
from tests.cuda_emu import build
from tests.cuda_emu.backend import emulated

x = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
FORWARD = (1, [1, 1, 1, 1], None, "identity", [], 0.0, "identity", "none")


def depthwise(x: torch.Tensor, kernel: int, stride: int) -> tuple[Any, ...]:
    weight = torch.randn(8, 1, kernel, kernel, dtype=x.dtype)
    return (x, weight, stride, [1, 1, 1, 1], None, "identity", [], 0.0, "identity", "none")


MLP = (torch.randn(2, 8, 1, 1), torch.randn(2), torch.randn(8, 2, 1, 1), torch.randn(8))
REFUSED = {
    "padding as wide as the kernel": (
        "depthwise",
        (x, torch.randn(8, 1, 3, 3), 1, [3, 3, 1, 1], *FORWARD[2:]),
        "less padding",
    ),
    "a squeeze too wide for a block": (
        "se_gate",
        (
            torch.randn(1, 2, 13000),
            torch.randn(2, 13000, 1, 1),
            MLP[1],
            torch.randn(13000, 2, 1, 1),
            torch.randn(13000),
            "silu",
            1,
        ),
        "shared memory",
    ),
    "a kernel size outside the family": ("depthwise", depthwise(x, 7, 1), "of (3, 5), not"),
    "a stride outside the family": ("depthwise", depthwise(x, 3, 3), "stride (1, 2), not 3"),
    "fp64": ("depthwise", depthwise(x.double(), 3, 1), "not torch.float64"),
    "NCHW": ("depthwise", depthwise(x.contiguous(), 3, 1), "channels_last"),
    "another type of weights": (
        "depthwise",
        (x.half(), torch.randn(8, 1, 3, 3), *FORWARD),
        "weights of the input's type",
    ),
    "two types of SE weights": (
        "se_gate",
        (torch.randn(1, 2, 8), MLP[0], MLP[1], MLP[2].half(), MLP[3], "silu", 1),
        "weights of one type",
    ),
    "an fp64 accumulator": (
        "bn_fold",
        (None, None, torch.randn(8), torch.rand(8), 1e-3, torch.float64),
        "accumulates in float32",
    ),
}


@pytest.mark.parametrize(("op", "args", "expected"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_has_a_reason(op: str, args: tuple[Any, ...], expected: str) -> None:
    reason = limits.cuda(op, args)
    assert reason is not None
    assert expected in reason


def test_what_is_supported_is_not_refused() -> None:
    assert limits.cuda("depthwise", depthwise(x, 5, 2)) is None
    assert limits.cuda("se_gate", (torch.randn(1, 2, 8), *MLP, "silu", 1)) is None


def product(c: int = 16, k: int = 24, dtype: torch.dtype = torch.bfloat16) -> list[Any]:
    a = torch.randn(2, c, 6, 6).to(dtype).contiguous(memory_format=torch.channels_last)
    w = torch.randn(k, c, 1, 1).to(dtype)
    return [a, w, None, "identity", None, [], 0.0, "identity", None, True]


def gradient() -> list[Any]:
    a, w, *_ = product()
    y = torch.randn(2, 24, 6, 6).bfloat16().contiguous(memory_format=torch.channels_last)
    rest = [None, "identity", None, None, None, "identity", None, None, None, True, True]
    return [y, y, a, w, torch.randn(4, 24), *rest]


def test_a_product_without_a_kernel_has_a_reason() -> None:
    assert limits.cuda_product("pointwise", tuple(product())) is None
    assert limits.cuda_product("pointwise_bwd", tuple(gradient())) is None
    wide, flat = product(40)[0], torch.randn(24 * 16 + 8).bfloat16()
    split = flat[1 : 24 * 16 + 1].view(24, 16, 1, 1)  # of parameters that share one tensor
    for op, args, at, value, expected in (
        ("pointwise", product(dtype=torch.float32), 0, None, "one 16-bit type"),
        ("pointwise", product(12), 0, None, "multiples of 8"),
        ("pointwise", product(k=20), 0, None, "multiples of 8"),
        ("pointwise", product(1600), 0, None, "at most 1568"),
        ("pointwise", product(), 0, wide[:, 4:20], "16-byte vectors"),
        ("pointwise", product(), 0, wide[:, :16, :, :5], "evenly spaced"),
        ("pointwise", product(), 8, wide[:, 4:20], "16-byte vectors"),
        ("pointwise", product(), 1, split, "16-byte boundary"),
        ("pointwise_bwd", gradient(), 3, split, "16-byte boundary"),
        ("pointwise_bwd", gradient(), 0, "absent", "activation behind"),
        ("pointwise_bwd", gradient(), 6, "silu", "activation behind"),
        ("pointwise_bwd", gradient(), 8, torch.rand(2, 24), "activation behind"),
        ("conv2d", [], 0, None, "no CUDA kernel"),
    ):  # fmt: skip
        if value is not None:
            args[at] = None if value == "absent" else value
        reason = limits.cuda_product(op, tuple(args))
        assert reason is not None, (op, at)
        assert expected in reason
    both = gradient()
    both[9], both[13] = torch.randn(2, 16), both[2]
    assert "residual" in str(limits.cuda_product("pointwise_bwd", tuple(both)))


def test_names_and_arguments_are_those_of_the_reference() -> None:
    import inspect

    for op in on_cuda.__all__:
        ours, theirs = (inspect.signature(getattr(m, op)) for m in (on_cuda, reference))
        assert list(ours.parameters) == list(theirs.parameters), op


def test_a_gradient_that_is_not_dense_is_refused() -> None:
    with pytest.raises(ValueError, match="dense channels_last"):
        bridge.dense(x[:, :4])


reason = build.why_not()


@pytest.mark.skipif(reason is not None, reason=str(reason))
class TestErrors:
    """Those of the native module."""

    def test_an_error_names_op_shape_and_cudas_message(self, cuda_module: ModuleType) -> None:
        expected = r"effnet_fast\.depthwise \(x 2x8x6x6, y 2x2, kernel 7, stride 1\): invalid arg"
        with emulated(cuda_module), pytest.raises(RuntimeError, match=expected):
            on_cuda.depthwise(*depthwise(x, 7, 1))

    def test_the_device_is_put_back(self, cuda_module: ModuleType) -> None:
        """Device 1 is made current for the op; then an op on device 0 finds device 0 current."""
        args = (8, 0, 0, (0, 0), 1, True, 0, (9, 0))
        with pytest.raises(RuntimeError, match=r"changing to device 9.*invalid device"):
            cuda_module.bn_bwd_coef(*args)
        assert cuda_module.emulator_device() == 0
        stats, affine, norm = torch.rand(2, 8), torch.empty(2, 8), torch.empty(2, 8)
        none, at = (0, 0), (1, 0)
        pointers = stats.data_ptr(), none, none, none, none
        cuda_module.bn_finalize(
            8, *pointers, 4, 0.1, 1e-3, affine.data_ptr(), norm.data_ptr(), at
        )  # fmt: skip
        assert cuda_module.emulator_device() == 0
        assert cuda_module.emulator_launch_device() == 1
