"""The models are torchvision's: parameters, names, initial weights, results; and what is added."""

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import effnet_fast as ef
from bench.parity import gradients, logits, run, timm_pair, torchvision_pair
from effnet_fast.modules import MBConv
from effnet_fast.stock import calibrate, import_torchvision
from tests.error_rule import assert_within

stock_models = import_torchvision().models

PARAMETERS = {
    "efficientnet_b0": 5_288_548, "efficientnet_b1": 7_794_184, "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232, "efficientnet_b4": 19_341_616, "efficientnet_b5": 30_389_784,
    "efficientnet_b6": 43_040_704, "efficientnet_b7": 66_347_960,
}  # fmt: skip
#: tensorflow/tpu, models/official/efficientnet/lite: 4.7, 5.4, 6.1, 8.2 and 13.0 million; exact by
#: timm's models.
LITE = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "efficientnet_lite3",
        "efficientnet_lite4"]  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_is_torchvisions(name: str) -> None:
    """Keys in order, shapes, initial weights bit for bit, BN settings, parameter count."""
    torch.manual_seed(7)
    stock = getattr(stock_models, name)()
    after = torch.rand(3)
    torch.manual_seed(7)
    ours = getattr(ef, name)()
    assert torch.equal(torch.rand(3), after), "the generator is left as torchvision leaves it"
    theirs, mine = stock.state_dict(), ours.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[k], theirs[k]) for k in theirs)
    assert sum(p.numel() for p in ours.parameters()) == PARAMETERS[name]
    for path, module in stock.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            twin = ours.get_submodule(path)
            assert (twin.eps, twin.momentum) == (module.eps, module.momentum)
        if isinstance(module, nn.Dropout) or type(module).__name__ == "StochasticDepth":
            assert ours.get_submodule(path).p == module.p


@pytest.mark.parametrize("name", LITE)
def test_lite_is_timms(name: str) -> None:
    timm = pytest.importorskip("timm")
    ours, theirs = ef.create_model(name), timm.create_model(name)
    shapes = [tuple(p.shape) for p in ours.parameters()]
    assert shapes == [tuple(p.shape) for p in theirs.parameters()]


@pytest.mark.parametrize("name", PARAMETERS)
def test_eval_outputs(name: str) -> None:
    x = torch.randn(4, 3, 80, 75)
    result = run(*torchvision_pair(name, x), x, logits)
    assert_within(result.ours[0], result.base[0], result.truth[0], "logits")


@pytest.mark.parametrize("name", PARAMETERS)
def test_training_gradients(name: str) -> None:
    """Stochastic depth and dropout included: the same draws under the same seed."""
    x = torch.randn(4, 3, 64, 64)
    result = run(*torchvision_pair(name, x), x, gradients)
    assert result.error(result.ours) <= 2 * result.error(result.base)
    flat = [torch.cat([g.flatten() for g in side]) for side in
            (result.ours, result.base, result.truth)]  # fmt: skip
    assert_within(*flat, "all gradients")


@pytest.mark.parametrize("name", ["efficientnet_b0", "tf_efficientnet_b0", "tf_efficientnet_b3",
                                  "efficientnet_lite0", "tf_efficientnet_lite2"])  # fmt: skip
@pytest.mark.parametrize("size", [(64, 64), (97, 70)], ids=str)
def test_timm_outputs(name: str, size: tuple[int, int]) -> None:
    """Converted weights; the tf_ ones by SAME padding, which depends on the image's size."""
    x = torch.randn(4, 3, *size)
    result = run(*timm_pair(name, x), x, logits)
    assert_within(result.ours[0], result.base[0], result.truth[0], "logits")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 64, 64)
    ours, stock = torchvision_pair("efficientnet_b0", x)
    x = x.to(dtype)
    ours, base = ours.to(dtype), stock.to(dtype)
    truth = copy.deepcopy(base).double()
    assert_within(*[m(v)[0] for m, v in ((logits_of(ours), x), (logits_of(base), x),
                                         (logits_of(truth), x.double()))], "logits")  # fmt: skip


def logits_of(model: nn.Module):  # type: ignore[no-untyped-def]
    return lambda x: logits(model, x)


def test_features_and_head() -> None:
    model = ef.efficientnet_b0(num_classes=11)
    calibrate(model, torch.randn(8, 3, 64, 64))
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (3, 1280, 2, 2)
        assert model.forward_head(features, pre_logits=True).shape == (3, 1280)
        y = model(x)
        assert_within(model.forward_head(features), y, y.double())
        assert_within(model.forward_head(model.features(x)), y, y.double(), "features(x)")


def test_hooks_run_and_change_nothing() -> None:
    model = ef.efficientnet_b0()
    calibrate(model, torch.randn(8, 3, 64, 64))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain = model(x)
        seen = {}
        paths = "features features.0 features.1 features.1.0 features.8 avgpool"
        for path in paths.split():
            model.get_submodule(path).register_forward_hook(
                lambda m, i, o, path=path: seen.update({path: tuple(o.shape)})
            )
        hooked = model(x)
    assert seen["features.0"] == (2, 32, 32, 32)
    assert seen["features.8"] == seen["features"] == (2, 1280, 2, 2)
    assert seen["avgpool"] == (2, 1280, 1, 1)
    assert len(seen) == 6
    assert_within(hooked, plain, plain.double())


def test_reset_classifier() -> None:
    model = ef.efficientnet_b0().eval()
    model.reset_classifier(7)
    x = torch.randn(2, 3, 32, 32)
    assert model(x).shape == (2, 7)
    assert model.num_classes == model.classifier[1].out_features == 7
    assert model.classifier[1].weight.abs().max() <= 7**-0.5
    assert not model.classifier[1].training
    model.reset_classifier(0)
    assert model(x).shape == (2, 1280)
    model.half().reset_classifier(3)
    assert model.classifier[1].weight.dtype == torch.float16
    with pytest.raises(ValueError, match="num_classes"):
        model.reset_classifier(-1)


@pytest.mark.parametrize("channels", [1, 4])
def test_in_channels(channels: int) -> None:
    model = ef.efficientnet_b0(in_channels=channels, num_classes=5)
    y = model(torch.randn(2, channels, 48, 32))
    y.sum().backward()
    assert y.shape == (2, 5)
    assert model.features[0][0].weight.grad is not None


def test_same_padding_is_tensorflows() -> None:
    """Output ceil(size / stride), and the odd pixel after: against an explicit F.pad."""
    layer = ef.efficientnet_b0(padding="same").eval().features[0]
    exact = copy.deepcopy(layer).double()
    for h, w in ((8, 8), (9, 7), (1, 2)):
        x = torch.randn(1, 3, h, w)
        total = [max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in (h, w)]
        top, left = total[0] // 2, total[1] // 2
        padded = F.pad(x, (left, total[1] - left, top, total[0] - top))
        y, truth = (
            F.silu(v[1](F.conv2d(padded.to(v[0].weight.dtype), v[0].weight, None, 2)))
            for v in (layer, exact)
        )
        assert_within(layer(x), y, truth)
        assert y.shape[2:] == (-(-h // 2), -(-w // 2))


def test_options() -> None:
    model = ef.efficientnet_b0(
        dropout=0.7, stochastic_depth_prob=0.5, norm_eps=0.25, norm_momentum=0.5, num_classes=9
    )
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(0.25, 0.5)}
    assert model.classifier[0].p == 0.7
    blocks = [m for m in model.modules() if isinstance(m, MBConv)]
    assert blocks[0].stochastic_depth.p == 0
    assert blocks[-1].stochastic_depth.p == 0.5 * 15 / 16


def test_create_and_list() -> None:
    assert ef.list_models() == [*PARAMETERS, *LITE]
    assert sum(p.numel() for p in ef.create_model("efficientnet_b1").parameters()) == 7_794_184
    assert list(inspect.signature(ef.efficientnet_b0).parameters) == [
        "weights", "progress", "kwargs",
    ]  # fmt: skip


def test_deepcopy_and_pickle() -> None:
    model = ef.efficientnet_b0(num_classes=3).eval()
    x = torch.randn(1, 3, 32, 32)
    y = model(x)
    assert torch.equal(copy.deepcopy(model)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), y)


def test_the_state_dict_knows_no_backend() -> None:
    a, b = ef.efficientnet_b0(), ef.efficientnet_b0(backend="reference")
    assert list(a.state_dict()) == list(b.state_dict())


def test_any_strides_of_the_image() -> None:
    model = ef.efficientnet_b0(num_classes=3).eval()
    x = torch.randn(2, 3, 40, 33)
    y = model(x)
    sliced = torch.randn(3, 5, 42, 35)
    sliced[1:, 1:4, 1:41, 2:] = x
    for other in (x.contiguous(memory_format=torch.channels_last), sliced[1:, 1:4, 1:41, 2:]):
        assert_within(model(other), y, y.double())
