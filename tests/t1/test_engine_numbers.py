"""The CPU engine against the model in fp64, by the one error rule, with every instruction set."""

import copy
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import effnet_fast as ef
from effnet_fast import _C
from effnet_fast.architecture import Stage
from effnet_fast.stock import calibrate
from tests.error_rule import assert_within
from tests.t1.calibrated import calibrated

ISAS = _C.cpu_isas()
SIZES = {
    "efficientnet_b0": (64, 64), "efficientnet_b1": (65, 47), "efficientnet_b2": (37, 90),
    "efficientnet_b3": (51, 35), "efficientnet_b4": (33, 70), "efficientnet_b5": (31, 32),
    "efficientnet_b6": (40, 40), "efficientnet_b7": (47, 33), "efficientnet_lite0": (66, 31),
    "efficientnet_lite1": (34, 34), "efficientnet_lite2": (35, 60), "efficientnet_lite3": (32, 41),
    "efficientnet_lite4": (48, 48),
}  # fmt: skip


def assert_as_model(
    model: nn.Module, x: Tensor, ours: Tensor, run: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    with torch.no_grad():
        assert_within(ours, run(model, x), run(copy.deepcopy(model).double(), x.double()))


def logits(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def features(model: nn.Module, x: Tensor) -> Tensor:
    return model.forward_features(x)


def engine_of(model: ef.EfficientNet, isa: str, threads: int) -> ef.Engine:
    with mock.patch.dict("os.environ", EFFNET_FAST_CPU_ISA=isa):
        engine = ef.optimize_for_inference(model, threads=threads)
    assert engine.isa == isa
    return engine


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("name", SIZES)
def test_is_the_model(name: str, padding: str) -> None:
    """Every variant, sizes that no stride divides; threads share the images, or one image."""
    model = calibrated(name, SIZES[name], padding=padding)
    x = torch.randn(8, 3, *SIZES[name])
    for threads in (1, 2):
        engine = ef.optimize_for_inference(model, threads=threads)
        one_by_one = torch.cat([engine(image[None]) for image in x])
        assert_as_model(model, x, one_by_one, logits)
        assert_as_model(model, x, engine(x), logits)
        assert_as_model(model, x, engine.forward_features(x), features)


@pytest.fixture(scope="module")
def b0() -> ef.EfficientNet:
    return calibrated("efficientnet_b0", (50, 41))


@pytest.mark.parametrize("batch", [0, 1, 3, 17])
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa: str, batch: int, b0: ef.EfficientNet) -> None:
    """Batches of every kind are, image by image, those of eight, which the rule judges."""
    engine = engine_of(b0, isa, threads=1)
    x = torch.randn(17, 3, 50, 41)
    expected = engine(x[:8])
    assert_as_model(b0, x[:8], expected, logits)
    assert torch.equal(engine(x[:batch])[:8], expected[:batch])
    map_ = engine.forward_features(x[:batch])
    assert map_.is_contiguous(memory_format=torch.channels_last)
    assert_as_model(b0, x[:batch], map_, features)


@pytest.mark.parametrize(("channels", "classes"), [(1, 7), (5, 0), (3, 33)])
def test_other_ends(channels: int, classes: int) -> None:
    size = (32, 45)
    model = calibrated("efficientnet_b0", size, in_channels=channels, num_classes=classes)
    x = torch.randn(16, channels, *size)
    engine = ef.optimize_for_inference(model, threads=1, input_shape=(2, channels, *size))
    assert_as_model(model, x, engine(x), logits)
    assert (engine.in_channels, engine.num_classes) == (channels, classes)


def test_uint8_is_normalised_by_the_recipe(b0: ef.EfficientNet) -> None:
    x = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (b0.recipe.mean, b0.recipe.std)
    )
    exact = (x.double() / 255 - mean) / std
    with torch.no_grad():
        base, truth = b0(exact.float()), copy.deepcopy(b0).double()(exact)
    assert_within(ef.optimize_for_inference(b0)(x), base, truth)


def pairs(values: st.SearchStrategy[int]) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(values, values)


@settings(max_examples=80, derandomize=True, deadline=None)
@given(
    isa=st.sampled_from(ISAS), threads=st.integers(1, 5),
    padding=st.sampled_from(["symmetric", "same"]), size=pairs(st.integers(1, 40)),
    image_channels=st.integers(1, 4), kernels=pairs(st.sampled_from([3, 5])),
    strides=pairs(st.sampled_from([1, 2])), expansion=st.integers(1, 6),
    channels=st.tuples(*[st.integers(1, 70)] * 4), layers=st.integers(1, 2),
    squeeze=st.booleans(), activation=st.sampled_from(["silu", "relu6", "relu"]),
)  # fmt: skip
def test_short_networks(
    isa: str, threads: int, padding: str, size: tuple[int, int], image_channels: int,
    kernels: tuple[int, int], strides: tuple[int, int], expansion: int,
    channels: tuple[int, int, int, int], layers: int, squeeze: bool, activation: str,
) -> None:  # fmt: skip
    """Plans of any shape, of networks too short for errors to grow: maps of one pixel and up."""
    torch.manual_seed(1)
    stem, middle, last, head = channels
    model = ef.EfficientNet(
        (
            Stage(kernels[0], strides[0], 1, stem, middle, 1),
            Stage(kernels[1], strides[1], expansion, middle, last, layers),
        ),
        stem_channels=stem, head_channels=64 + head, dropout=0.0, num_classes=40,
        in_channels=image_channels, activation=activation, squeeze_excite=squeeze,
        padding=padding, backend="reference",
    )  # fmt: skip
    if stem == middle and strides[0] == 1:
        with pytest.raises(ValueError, match="first block has an expansion or a residual"):
            ef.optimize_for_inference(model)
        return
    calibrate(model, torch.randn(32, image_channels, *size))
    x = torch.randn(8, image_channels, *size)
    engine = engine_of(model, isa, threads)
    one_by_one = torch.cat([engine.forward_features(image[None]) for image in x])
    assert_as_model(model, x, one_by_one, features)
    assert torch.equal(engine(x), engine(x))
    assert_as_model(model, x, engine(x), logits)
