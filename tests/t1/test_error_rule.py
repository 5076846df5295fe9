"""The error rule can fail: each planted mistake of a kernel is one it must see."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.error_rule import assert_within, ulp, violations

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def dropped_tap(x: Tensor, w: Tensor) -> Tensor:
    w = w.clone()
    w[:, :, 0, 0] = 0
    return F.conv2d(x, w, padding=1, groups=x.shape[1])


def missing_row_block(x: Tensor, w: Tensor) -> Tensor:
    y = F.conv2d(x, w, padding=1, groups=x.shape[1])
    y[:, :, -1] = 0
    return y


def unwritten_tail(x: Tensor, w: Tensor) -> Tensor:
    y = F.conv2d(x, w, padding=1, groups=x.shape[1])
    y[-1, -1, -1, -1] = float("nan")
    return y


def halo_off_by_one(x: Tensor, w: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (2, 0, 1, 1)), w, groups=x.shape[1])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bug", [dropped_tap, missing_row_block, unwritten_tail, halo_off_by_one])
def test_a_broken_convolution_fails(
    bug: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype
) -> None:
    x, w = torch.randn(2, 8, 9, 9).to(dtype), torch.randn(8, 1, 3, 3).to(dtype)
    truth = F.conv2d(x.double(), w.double(), padding=1, groups=8)
    base = F.conv2d(x, w, padding=1, groups=8)
    assert violations(bug(x, w), base, truth)


def test_a_biased_variance_fails() -> None:
    x = torch.randn(2, 8, 9, 9)
    truth = x.double().var((0, 2, 3))
    biased = x.var((0, 2, 3), correction=0)
    squares = (x.double() - x.double().mean((0, 2, 3), keepdim=True)) ** 2
    assert violations(biased, x.var((0, 2, 3)), truth, terms=squares / 162, n=162)


def test_a_missing_term_of_a_sum_fails() -> None:
    x = torch.rand(10_000)
    assert violations(x[1:].sum(), x.sum(), x.double().sum(), terms=x, n=10_000)


def test_a_slightly_wrong_scale_fails_by_the_rms() -> None:
    truth = torch.randn(1000, dtype=torch.float64)
    base = truth.float()
    assert any("rms" in v for v in violations(base * (1 + 1e-6), base, truth))


@pytest.mark.parametrize("dtype", FLOATS)
def test_another_order_of_summation_passes(dtype: torch.dtype) -> None:
    x = torch.randn(64, 4096).to(dtype)
    ours = x.float().flip(1).sum(1).to(dtype)
    assert_within(ours, x.sum(1), x.double().sum(1), terms=x, n=4096)


def test_shape_and_type_come_first() -> None:
    truth = torch.zeros(3, dtype=torch.float64)
    assert "shape" in violations(torch.zeros(2), torch.zeros(3), truth)[0]
    assert "type" in violations(torch.zeros(3).half(), torch.zeros(3), truth)[0]
    with pytest.raises(TypeError, match="fp64"):
        violations(torch.zeros(3), torch.zeros(3), torch.zeros(3))


def test_infinity_is_no_violation_where_the_truth_overflows() -> None:
    truth = torch.tensor([1e300], dtype=torch.float64) * 1e300
    inf = torch.tensor([float("inf")])
    assert not violations(inf, inf, truth)
    assert violations(torch.zeros(1), inf, truth)


def test_ulp() -> None:
    assert ulp(1.0, torch.bfloat16) == 2.0**-7
    assert ulp(-3.0, torch.float32) == 2.0**-22
