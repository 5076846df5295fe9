"""Bad input gets one clear error that names what was wrong, and loses nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor

import effnet_fast as ef


@pytest.fixture(scope="module")
def model() -> ef.EfficientNet:
    torch.manual_seed(0)
    return ef.efficientnet_b0(num_classes=10).eval()


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (torch.randn(3, 32, 32), ValueError, r"\[N, C, H, W\].*\(3, 32, 32\)"),
        (torch.randn(1, 1, 3, 32, 32), ValueError, r"\[N, C, H, W\]"),
        (torch.randn(1, 4, 32, 32), ValueError, r"3 channels.*\(1, 4, 32, 32\)"),
        (torch.randn(1, 32, 32, 3), ValueError, "3 channels"),
        (torch.randn(1, 3, 0, 32), ValueError, "at least 1x1"),
        (torch.randn(1, 3, 32, 32).double(), TypeError, r"float64.*float32"),
        (torch.randn(1, 3, 32, 32).half(), TypeError, r"float16.*float32"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), TypeError, "floating point.*uint8"),
        (torch.empty(1, 3, 32, 32, device="meta"), ValueError, r"meta.*cpu"),
    ],
)
def test_images(model: ef.EfficientNet, x: Tensor, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        model(x)


@pytest.mark.parametrize("training", [True, False])
def test_empty_batch(training: bool) -> None:
    """An empty result, zero gradients, untouched running statistics."""
    model = ef.efficientnet_b0(num_classes=10).train(training)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(0, 3, 32, 32, requires_grad=True)
    y = model(x)
    assert y.shape == (0, 10)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.eval()(x.detach()).shape == (0, 10)
    with torch.no_grad():
        assert model(x).shape == (0, 10)


def test_nan_and_infinity_propagate(model: ef.EfficientNet) -> None:
    x = torch.randn(3, 3, 32, 32)
    clean = model(x)
    x[1, 0, 5, 5] = float("nan")
    y = model(x)
    assert y[1].isnan().all()
    assert torch.equal(y[[0, 2]], clean[[0, 2]]), "the other images are their own"
    x[1, 0, 5, 5] = float("inf")
    assert not model(x)[1].isfinite().all()


def test_the_smallest_images(model: ef.EfficientNet) -> None:
    for size in ((1, 1), (1, 40), (31, 2)):
        assert model(torch.randn(2, 3, *size)).isfinite().all()


def test_too_few_values_for_batch_statistics() -> None:
    """As torch: one value per channel has no variance."""
    model = ef.efficientnet_b0()
    with pytest.raises(ValueError, match=r"more than 1 value per channel.*eval mode"):
        model(torch.randn(1, 3, 32, 32))
    model(torch.randn(1, 3, 64, 32))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"padding": "valid"}, ValueError, "known: symmetric, same"),
        ({"in_channels": 0}, ValueError, "in_channels"),
        ({"num_classes": -1}, ValueError, "num_classes"),
        ({"stochastic_depth_prob": 1.5}, ValueError, r"\[0, 1\]"),
        ({"norm_layer": torch.nn.BatchNorm2d}, TypeError, "norm_layer.*known.*norm_eps"),
        ({"width": 2}, TypeError, "width"),
    ],
)
def test_options(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        ef.efficientnet_b0(**options)


def test_unknown_model_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'efficientnet_b9'.*efficientnet_lite4"):
        ef.create_model("efficientnet_b9")


def test_a_foreign_layer_is_refused() -> None:
    model = ef.efficientnet_b0()
    model.features[0][1] = torch.nn.GroupNorm(4, 32)
    with pytest.raises(TypeError, match=r"batch norm.*GroupNorm"):
        model(torch.randn(2, 3, 64, 64))


C = 6


def depthwise(**changes: Any) -> Tensor:
    arguments: dict[str, Any] = {
        "x": torch.randn(2, C, 5, 5), "weight": torch.randn(C, 1, 3, 3),
        "bn_weight": torch.ones(C), "bn_bias": torch.zeros(C),
        "running_mean": torch.zeros(C), "running_var": torch.ones(C), **changes,
    }  # fmt: skip
    return ef.ops.depthwise_conv_bn_act(**arguments)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"x": torch.randn(C, 5, 5)}, ValueError, r"\[N, C, H, W\]"),
        ({"x": torch.randn(2, C, 5, 5).half()}, TypeError, "float16.*float32"),
        ({"weight": torch.randn(C, 2, 3, 3)}, ValueError, r"\[C, 1, k, k\]"),
        ({"weight": torch.randn(C + 1, 1, 3, 3)}, ValueError, "C = 6"),
        ({"weight": torch.randn(C, 1, 3, 5)}, ValueError, r"\[C, 1, k, k\]"),
        ({"weight": torch.empty(C, 1, 3, 3, device="meta")}, ValueError, "meta"),
        ({"bn_weight": torch.ones(C + 1)}, ValueError, r"bn_weight.*\(6,\)"),
        ({"running_var": torch.ones(C, dtype=torch.int64)}, ValueError, "running_var"),
        ({"bn_bias": torch.empty(C, device="meta")}, ValueError, "bn_bias is on meta"),
        ({"running_mean": None}, ValueError, "training=True"),
        ({"stride": 0}, ValueError, "stride"),
        ({"stride": (1, 2)}, ValueError, "stride"),
        ({"padding": -1}, ValueError, "padding"),
        ({"padding": "valid"}, ValueError, "'symmetric', 'same'"),
        ({"padding": (1, 2, 3)}, ValueError, "2 ints or 4 ints"),
        ({"weight": torch.randn(C, 1, 7, 7), "padding": 0}, ValueError, "leaves no output"),
        ({"activation": "swish"}, ValueError, "known: identity, relu, relu6, silu"),
        ({"x": torch.randn(1, C, 1, 1), "training": True}, ValueError, "more than 1 value"),
    ],
)
def test_depthwise_conv_bn_act(changes: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        depthwise(**changes)


@pytest.mark.parametrize("padding", [1, (1, 1), (1, 1, 1, 1), [1, 1], None, "symmetric"], ids=str)
def test_paddings_that_mean_the_same(padding: Any) -> None:
    torch.manual_seed(1)
    expected = depthwise()
    torch.manual_seed(1)
    assert torch.equal(depthwise(padding=padding), expected)


def test_depthwise_without_statistics_or_affine() -> None:
    y = depthwise(running_mean=None, running_var=None, bn_weight=None, bn_bias=None, training=True,
                  activation="identity")  # fmt: skip
    assert y.mean((0, 2, 3)).abs().max() < torch.finfo(torch.float32).eps * 10


def squeeze(**changes: Any) -> Tensor:
    arguments: dict[str, Any] = {
        "x": torch.randn(2, C, 5, 5), "w_reduce": torch.randn(4, C, 1, 1),
        "b_reduce": torch.randn(4), "w_expand": torch.randn(C, 4, 1, 1), "b_expand": torch.randn(C),
        **changes,
    }  # fmt: skip
    return ef.ops.squeeze_excite(**arguments)


def test_an_se_width_that_does_not_divide_the_channels_works() -> None:
    assert squeeze().shape == (2, C, 5, 5)  # 4 does not divide 6


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"x": torch.randn(2, 5, 5)}, ValueError, r"\[N, C, H, W\]"),
        ({"w_reduce": torch.randn(4, C)}, ValueError, r"w_reduce must be \[R, C, 1, 1\]"),
        ({"w_reduce": torch.randn(4, C + 1, 1, 1)}, ValueError, "C = 6"),
        ({"w_expand": torch.randn(C, 3, 1, 1)}, ValueError, r"w_expand must be \[C, R, 1, 1\]"),
        ({"b_reduce": torch.randn(2, 2)}, ValueError, "b_reduce"),
        ({"b_expand": torch.randn(C + 1)}, ValueError, "b_expand"),
        ({"w_reduce": torch.empty(4, C, 1, 1, device="meta")}, ValueError, "meta"),
        ({"activation": "gelu"}, ValueError, "known"),
    ],
)
def test_squeeze_excite(changes: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        squeeze(**changes)
