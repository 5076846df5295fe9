"""Everyone whom the benchmarks compare computes the same, or says why it cannot."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from effnet_fast.cli import providers, runtimes
from effnet_fast.cli.common import cpu_threads
from effnet_fast.cli.providers import (
    BAR,
    BASELINES,
    OURS,
    PROVIDERS,
    bar,
    build,
    calibrated_state,
    difference,
    expected,
    why_not,
)

B0, B5 = "efficientnet_b0", "efficientnet_b5"
#: Compiling a whole model takes half a minute; a small one stands for it below.
QUICK = [label for label in PROVIDERS if not label.startswith("compile")]


@pytest.fixture(scope="module")
def weights() -> dict[bool, Any]:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)
    state = calibrated_state(B0, x)
    return {training: (x, state, expected(B0, state, x, training)[0]) for training in (False, True)}


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("label", QUICK)
def test_all_give_the_same(weights: dict[bool, Any], label: str, training: bool) -> None:
    x, state, truth = weights[training]
    if (reason := why_not(label, B0, x, training)) is not None:
        pytest.skip(f"{label}: {reason}")
    assert difference(build(label, B0, state, x, training).result(x), truth) < BAR


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_torch_compile_is_asked_right(monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    def small(name: str) -> nn.Module:
        norm = nn.BatchNorm2d(4)
        return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    monkeypatch.setattr(providers, "stock", small)
    x = torch.randn(4, 3, 8, 8)
    state = calibrated_state("small", x)
    truth, _ = expected("small", state, x, training)
    assert difference(build("compile", "small", state, x, training).result(x), truth) < BAR


def test_timm_computes_batch_norm_as_the_variant_does() -> None:
    """B5's eps is 1e-3, and timm's is not: behind a stem of small variance that is seen."""
    if (reason := why_not("timm", B5, torch.empty(1, 3, 64, 64))) is not None:
        pytest.skip(reason)
    x = torch.randn(1, 3, 64, 64)
    state = dict(calibrated_state(B5, x))
    state["features.0.1.running_var"] = torch.full((48,), 1e-3)
    truth, _ = expected(B5, state, x)
    assert difference(build("timm", B5, state, x).result(x), truth) < BAR


def test_16_bit_results_may_be_as_far_off_as_twice_stock(weights: dict[bool, Any]) -> None:
    x, state, truth = weights[False]
    half = x.bfloat16()
    allowed = bar(B0, state, half, truth)
    assert bar(B0, state, x, truth) == BAR < allowed
    for label in ("reference", "engine"):
        assert difference(build(label, B0, state, half).result(half), truth) <= allowed


@pytest.mark.parametrize("name", BASELINES)
def test_ours_and_stock_baselines_give_the_same(name: str) -> None:
    x = torch.randn(2, 3, 64, 64)
    state = calibrated_state(name, x)
    truth, whose = expected(name, state, x)
    assert whose == "eager-nchw in fp32"
    assert why_not("reference", name, x) is None
    assert difference(build("reference", name, state, x).result(x), truth) < BAR


def test_the_native_engine_is_asked_for_the_type_and_given_fp32(
    monkeypatch: pytest.MonkeyPatch, weights: dict[bool, Any]
) -> None:
    """Its own rounding of fp32 weights is what is compared, and images need no conversion."""
    asked: list[torch.dtype | None] = []

    def engine(model: nn.Module, *, dtype: torch.dtype | None) -> Any:
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        asked.append(dtype)
        return lambda x: x

    monkeypatch.setattr(providers, "optimize_for_inference", engine)
    x, state, _ = weights[False]
    for dtype in (torch.float32, torch.bfloat16):
        images = x.to(dtype)
        provider = build("engine", B0, state, images)
        assert provider.prepare(images).dtype == torch.float32
        assert torch.equal(provider.result(images), images.float())
    assert asked == [torch.float32, torch.bfloat16]


class FakeOpenvino(ModuleType):
    """An OpenVINO whose CPU computes in ``chosen`` whatever it is asked for."""

    def __init__(self, chosen: str) -> None:
        super().__init__("openvino")
        self.chosen, self.settings = chosen, dict[str, Any]()

    def convert_model(self, model: nn.Module, example_input: Tensor, input: list[int]) -> nn.Module:
        assert example_input.dtype == torch.float32
        assert input == list(example_input.shape)
        return model

    def Core(self) -> Any:
        return self

    def compile_model(self, model: nn.Module, device: str, settings: dict[str, Any]) -> Any:
        self.settings = settings
        return self

    def get_property(self, name: str) -> Any:
        return SimpleNamespace(get_type_name=lambda: self.chosen)

    def create_infer_request(self) -> Any:
        return SimpleNamespace(infer=lambda images, share_inputs: images)


def test_openvino_is_asked_for_the_type_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16)
    fake = FakeOpenvino("bf16")
    monkeypatch.setitem(sys.modules, "openvino", fake)
    with cpu_threads(2):
        run = runtimes.openvino(nn.Identity(), x)
    assert fake.settings["INFERENCE_PRECISION_HINT"] == "bf16"
    assert fake.settings["INFERENCE_NUM_THREADS"] == 2
    assert run(x.float()).shape == x.shape
    monkeypatch.setitem(sys.modules, "openvino", FakeOpenvino("f32"))
    with pytest.raises(RuntimeError, match="computes in f32 on this CPU, not in bf16"):
        runtimes.openvino(nn.Identity(), x)


REASONS = {
    "training in a runtime": ("engine", B0, torch.float32, True, "computes no gradients"),
    "the engine in fp16": ("engine", B0, torch.float16, False, "float32 and bfloat16 on CPUs"),
    "the engine of a ResNet": ("engine", "resnet50", torch.float32, False, "takes EfficientNets"),
    "OpenVINO in fp16": ("openvino", B0, torch.float16, False, "float32 and bfloat16 only"),
    "ONNX Runtime in bf16": ("onnxruntime", B0, torch.bfloat16, False, "float32 and float16"),
    "Lite in torchvision": ("eager-nchw", "efficientnet_lite0", torch.float32, False, "no Eff"),
    "a ResNet of ours": ("reference", "resnet152", torch.float32, False, "not a model"),
    "a ResNet of timm's": ("timm", "resnet50", torch.float32, False, "EfficientNets only"),
    "a GPU's runtime": ("tensorrt", B0, torch.float32, False, "NVIDIA GPUs only"),
}


@pytest.mark.parametrize(("label", "name", "dtype", "training", "match"), REASONS.values(),
                         ids=REASONS)  # fmt: skip
def test_who_cannot_says_why(
    monkeypatch: pytest.MonkeyPatch, label: str, name: str, dtype: torch.dtype, training: bool,
    match: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(runtimes, "find_spec", lambda package: object())
    assert match in str(why_not(label, name, torch.empty(1, 3, 8, 8, dtype=dtype), training))


@pytest.mark.parametrize("label", runtimes.PACKAGES)
def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, label: str) -> None:
    monkeypatch.setattr(runtimes, "find_spec", lambda package: None)
    reason = why_not(label, B0, torch.empty(1, 3, 8, 8))
    assert reason == f"not installed: {', '.join(runtimes.PACKAGES[label])}"


def test_an_unknown_provider_lists_the_known() -> None:
    with pytest.raises(ValueError, match="unknown provider 'caffe'; known: eager-nchw, "):
        why_not("caffe", B0, torch.empty(1, 3, 8, 8))


def test_a_session_that_leaves_the_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime falls back to the CPU without a word; a GPU's time would be a CPU's."""
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda self: ["Another"])
    with pytest.raises(RuntimeError, match="chose Another, not CPUExecutionProvider"):
        runtimes.onnxruntime(nn.Conv2d(3, 4, 1).eval(), torch.empty(1, 3, 8, 8))


def test_optional_runtimes_are_imported_when_asked_for() -> None:
    """Each takes a second or more, and none is there everywhere."""
    assert {"torch_tensorrt", "tensorrt"}.isdisjoint(sys.modules)
    assert set(OURS) <= set(PROVIDERS)
