"""The CPU engine against the model in fp64, by the one error rule, with every instruction set."""

import copy
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

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


TYPES = [torch.float32, torch.bfloat16]


class Stock:
    """Logits and head's map of ``model`` for ``x``: in ``dtype`` by PyTorch, and exactly.

    Both of the weights and images that ``dtype`` holds; the engine gets these too.
    """

    def __init__(self, model: ef.EfficientNet, x: Tensor, dtype: torch.dtype) -> None:
        self.model, self.x = copy.deepcopy(model).to(dtype), x.to(dtype).float()
        exact = copy.deepcopy(self.model).double()
        with torch.no_grad():
            self.base, self.truth = (
                (m(image), m.forward_features(image))
                for m, image in ((self.model, x.to(dtype)), (exact, self.x.double()))
            )

    def assert_like(self, logits: Tensor | None = None, features: Tensor | None = None) -> None:
        """By the one rule, in the type: the engine's own results are fp32."""
        for ours, base, truth in zip((logits, features), self.base, self.truth, strict=True):
            if ours is not None:
                assert ours.dtype == torch.float32
                assert_within(ours.to(base.dtype), base, truth)


def engine_of(model: ef.EfficientNet, isa: str, threads: int) -> ef.Engine:
    with mock.patch.dict("os.environ", EFFNET_FAST_CPU_ISA=isa):
        engine = ef.optimize_for_inference(model, threads=threads)
    assert engine.isa == isa
    return engine


@pytest.mark.parametrize(
    ("padding", "dtype"), [("symmetric", torch.float32), ("same", torch.bfloat16)]
)
@pytest.mark.parametrize("name", SIZES)
def test_is_the_model(name: str, padding: str, dtype: torch.dtype) -> None:
    """Every variant, sizes that no stride divides; threads share the images, or one image."""
    stock = Stock(
        calibrated(name, SIZES[name], padding=padding), torch.randn(16, 3, *SIZES[name]), dtype
    )
    for threads in (1, 2):
        engine = ef.optimize_for_inference(stock.model, threads=threads)
        assert engine.dtype == dtype
        stock.assert_like(logits=torch.cat([engine(image[None]) for image in stock.x]))
        stock.assert_like(logits=engine(stock.x), features=engine.forward_features(stock.x))


@pytest.fixture(scope="module")
def b0() -> ef.EfficientNet:
    return calibrated("efficientnet_b0", (50, 41))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa: str, dtype: torch.dtype, b0: ef.EfficientNet) -> None:
    """Batches of every kind are, image by image, those of 17, which the rule judges."""
    stock = Stock(b0, torch.randn(17, 3, 50, 41), dtype)
    engine = engine_of(stock.model, isa, threads=1)
    logits, map_ = engine(stock.x), engine.forward_features(stock.x)
    assert map_.is_contiguous(memory_format=torch.channels_last)
    stock.assert_like(logits, map_)
    for batch in (0, 1, 3):
        assert torch.equal(engine(stock.x[:batch]), logits[:batch])
        assert torch.equal(engine.forward_features(stock.x[:batch]), map_[:batch])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("channels", "classes"), [(1, 7), (5, 0), (3, 33)])
def test_other_ends(channels: int, classes: int, dtype: torch.dtype) -> None:
    size = (32, 45)
    model = calibrated("efficientnet_b0", size, in_channels=channels, num_classes=classes)
    stock = Stock(model, torch.randn(16, channels, *size), dtype)
    shape = (2, channels, *size)
    engine = ef.optimize_for_inference(stock.model, threads=1, input_shape=shape)
    stock.assert_like(engine(stock.x))
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


@settings(max_examples=120, derandomize=True, deadline=None)
@given(
    isa=st.sampled_from(ISAS), dtype=st.sampled_from(TYPES), threads=st.integers(1, 5),
    padding=st.sampled_from(["symmetric", "same"]), size=pairs(st.integers(1, 40)),
    image_channels=st.integers(1, 4), kernels=pairs(st.sampled_from([3, 5])),
    strides=pairs(st.sampled_from([1, 2])), expansion=st.integers(1, 6),
    channels=st.tuples(*[st.integers(8, 70)] * 4), layers=st.integers(1, 2),
    squeeze=st.booleans(), activation=st.sampled_from(["silu", "relu6", "relu"]),
)  # fmt: skip
def test_short_networks(
    isa: str, dtype: torch.dtype, threads: int, padding: str, size: tuple[int, int],
    image_channels: int,
    kernels: tuple[int, int], strides: tuple[int, int], expansion: int,
    channels: tuple[int, int, int, int], layers: int, squeeze: bool, activation: str,
) -> None:  # fmt: skip
    """Plans of any shape, of networks too short for errors to grow: maps of one pixel and up.

    Of fewer channels than eight the rounding of one weight would decide: those are below.
    """
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
    stock = Stock(model, torch.randn(32, image_channels, *size), dtype)
    engine = engine_of(stock.model, isa, threads)
    one_by_one = torch.cat([engine.forward_features(image[None]) for image in stock.x])
    stock.assert_like(features=one_by_one)
    assert torch.equal(engine(stock.x), engine(stock.x))
    stock.assert_like(logits=engine(stock.x))


@settings(max_examples=120, derandomize=True, deadline=None)
@given(
    isa=st.sampled_from(ISAS), dtype=st.sampled_from(TYPES), threads=st.integers(1, 3),
    padding=st.sampled_from(["symmetric", "same"]), size=pairs(st.integers(1, 20)),
    image_channels=st.integers(1, 4), kernels=pairs(st.sampled_from([3, 5])),
    strides=pairs(st.sampled_from([1, 2])), expansion=st.integers(1, 6),
    channels=st.tuples(*[st.integers(1, 9)] * 4), layers=st.integers(1, 2),
)  # fmt: skip
def test_narrow_networks_to_the_bit(
    isa: str, dtype: torch.dtype, threads: int, padding: str, size: tuple[int, int],
    image_channels: int, kernels: tuple[int, int], strides: tuple[int, int], expansion: int,
    channels: tuple[int, int, int, int], layers: int,
) -> None:  # fmt: skip
    """Of weights -1, 0 and 1 and maps of 0 to 6 every sum is an integer that bf16 holds."""
    torch.manual_seed(1)
    stem, middle, last, head = channels
    assume(stem != middle or strides[0] == 2)  # no residual in the first block
    model = ef.EfficientNet(
        (
            Stage(kernels[0], strides[0], 1, stem, middle, 1),
            Stage(kernels[1], strides[1], expansion, middle, last, layers),
        ),
        stem_channels=stem, head_channels=head, dropout=0.0, num_classes=1,
        in_channels=image_channels, activation="relu6", squeeze_excite=False,
        padding=padding, backend="reference",
    ).eval()  # fmt: skip
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.copy_(torch.randint(-1, 2, module.weight.shape))
            elif isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 0.0
                module.bias.copy_(torch.randint(-1, 3, module.bias.shape))
    x = torch.randint(-2, 3, (3, image_channels, *size)).float()
    engine = engine_of(model.to(dtype), isa, threads)
    with torch.no_grad():
        assert torch.equal(engine.forward_features(x), model.float().forward_features(x))
