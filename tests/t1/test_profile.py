"""Parameters, multiply-adds and activations are counted exactly, and the model is left alone."""

import math
from typing import Any

import pytest
import torch
from torch import nn

import effnet_fast as ef
from effnet_fast import architecture
from effnet_fast.architecture import VARIANTS
from effnet_fast.profile import LayerRow, OpRow, count
from effnet_fast.stock import import_torchvision

#: GMACs at native resolution to three digits, where torchvision or timm publish it.
PUBLISHED = {
    "efficientnet_b0": 0.386,
    "efficientnet_b1": 0.687,
    "efficientnet_b3": 1.827,
    "efficientnet_b4": 4.394,
    "efficientnet_b5": 10.266,
    "efficientnet_b6": 19.068,
    "efficientnet_b7": 37.746,
    "efficientnet_lite0": 0.385,
}


def on_meta(name: str, **options: Any) -> ef.EfficientNet:
    with torch.device("meta"):
        return ef.create_model(name, **options)


def by_hand(
    name: str, height: int, width: int, in_channels: int, num_classes: int
) -> tuple[int, int]:
    """(multiply-adds, activations) out of the architecture's table alone."""
    v = architecture.variant(name)
    h, w = math.ceil(height / 2), math.ceil(width / 2)
    c = architecture.stem_channels(v)
    outputs = c * h * w
    macs = outputs * in_channels * 9
    for stage in architecture.stages(v):
        for i in range(stage.layers):
            stride = stage.stride if i == 0 else 1
            expanded, squeezed = c * stage.expansion, 0 if v.lite else c // 4
            if stage.expansion > 1:
                outputs += expanded * h * w
                macs += expanded * h * w * c
            h, w = math.ceil(h / stride), math.ceil(w / stride)
            outputs += (expanded + stage.out_channels) * h * w
            macs += expanded * h * w * (stage.kernel**2 + stage.out_channels)
            if squeezed:
                outputs += squeezed + expanded
                macs += 2 * squeezed * expanded
            c = stage.out_channels
    features = architecture.head_channels(v)
    outputs += features * h * w + num_classes
    macs += features * (h * w * c + num_classes)
    return macs, outputs


SIZES = [(224, 224, 3, 1000), (65, 130, 3, 1000), (64, 64, 1, 10), (64, 96, 5, 0)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b3", "efficientnet_lite1"])
@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_figures_are_those_of_the_table(
    name: str, size: tuple[int, int, int, int], padding: str
) -> None:
    height, width, in_channels, classes = size
    model = on_meta(name, in_channels=in_channels, num_classes=classes, padding=padding)
    profile = count(model, (height, width))
    assert (profile.macs, profile.activations) == by_hand(name, *size)
    assert profile.params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("name", "expected"), PUBLISHED.items(), ids=PUBLISHED)
def test_figures_are_the_published_ones(name: str, expected: float) -> None:
    assert round(count(on_meta(name), VARIANTS[name].resolution).macs / 1e9, 3) == expected


@pytest.mark.parametrize("name", [n for n in VARIANTS if not VARIANTS[n].lite])
def test_a_stock_model_has_the_same_figures(name: str) -> None:
    """The same counter on aten's convolutions, and torchvision's own figures."""
    models = import_torchvision().models
    weights = models.get_model_weights(name).DEFAULT
    with torch.device("meta"):
        stock = getattr(models, name)()
    crop = weights.transforms().crop_size[0]
    ours, theirs = count(on_meta(name), crop), count(stock, crop)
    assert (ours.params, ours.macs, ours.activations) == (
        theirs.params,
        theirs.macs,
        theirs.activations,
    )
    assert (ours.params, round(ours.macs / 1e9, 3)) == (
        weights.meta["num_params"],
        weights.meta["_ops"],
    )


def test_rows_name_the_fused_ops_and_add_up() -> None:
    profile = count(on_meta("efficientnet_b0"), 224)
    calls = {name: row.calls for name, row in profile.rows.items()}
    assert calls == {
        "effnet_fast::conv2d": 1,
        "effnet_fast::pointwise": 15 + 16,
        "effnet_fast::depthwise": 16,
        "effnet_fast::se_gate": 16,
        "effnet_fast::pointwise_pool": 1,
        "aten::addmm": 1,
    }
    total = sum(profile.rows.values(), OpRow())
    assert (total.macs, total.activations) == (profile.macs, profile.activations)


def test_the_model_is_neither_changed_nor_run() -> None:
    model = ef.efficientnet_b0(norm_momentum=0.5).train()
    seen: list[object] = []
    model.features.register_forward_hook(lambda *a: seen.append(a))
    model.register_forward_pre_hook(lambda *a: seen.append(a))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    first = count(model, 64)
    assert first == count(model.eval(), 64) == count(on_meta("efficientnet_b0"), 64)
    assert seen == []
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.train() is model
    assert [m.training for m in model.modules()] == modes
    assert len(model.features._forward_hooks) == len(model._forward_pre_hooks) == 1


TYPES = [torch.bfloat16, torch.float64]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_type_backend_and_autocast_change_nothing(dtype: torch.dtype) -> None:
    expected = count(on_meta("efficientnet_b0"), 64)
    assert count(on_meta("efficientnet_b0", backend="triton").to(dtype), 64) == expected
    with torch.autocast("cpu", torch.bfloat16):
        assert count(on_meta("efficientnet_b0"), 64) == expected


def test_another_head_is_counted() -> None:
    model = on_meta("efficientnet_b0", num_classes=0)
    without = count(model, 64)
    model.classifier = nn.Sequential(  # type: ignore[assignment, unused-ignore]
        nn.Linear(1280, 32, device="meta"), nn.Linear(32, 2, bias=False, device="meta")
    )
    profile = count(model, 64)
    assert profile.macs - without.macs == 1280 * 32 + 32 * 2
    assert profile.activations - without.activations == 32 + 2


def test_what_is_no_image_model_is_refused() -> None:
    with pytest.raises(TypeError, match="Linear has no convolution"):
        count(nn.Linear(2, 2), 8)


# ---------------------------------------------------------------- layer by layer


def test_layers_add_up_and_are_the_models() -> None:
    model = on_meta("efficientnet_b0")
    profile = count(model, 224)
    holders = [path for path, m in model.named_modules() if m._parameters]
    assert [*profile.layers] == holders
    for field in ("params", "macs", "activations"):
        assert sum(getattr(row, field) for row in profile.layers.values()) == getattr(
            profile, field
        )
    stem, squeeze = profile.layers["features.0.0"], profile.layers["features.1.0.block.1.fc1"]
    assert stem == LayerRow(32 * 27, 1, 112 * 112 * 32 * 27, 112 * 112 * 32)
    assert squeeze == LayerRow(32 * 8 + 8, 1, 32 * 8, 8)
    assert profile.layers["features.0.1"] == LayerRow(64)
    assert profile.layers["classifier.1"] == LayerRow(1281000, 1, 1280000, 1000)


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50"])
def test_layers_of_ours_are_those_of_stock(name: str) -> None:
    """Fused or not, in a model that is not an EfficientNet too."""
    with torch.device("meta"):
        ours, stock = getattr(ef, name)(), getattr(import_torchvision().models, name)()
    assert count(ours, (96, 130)).layers == count(stock, (96, 130)).layers


def test_a_layer_used_twice_and_a_weight_that_is_computed() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(self.conv(x))
            return nn.functional.conv2d(x, self.conv.weight * 2)

    profile = count(Twice(), 8)
    macs = (2 * 64 + 36) * 3 * 27
    assert profile.macs == macs
    assert profile.layers == {
        "conv": LayerRow(84, 2, 2 * 64 * 81, 2 * 64 * 3),
        "": LayerRow(0, 1, 36 * 81, 36 * 3),
    }
