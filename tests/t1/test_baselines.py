"""MobileNetV1, MobileNetV2 and ResNet-50: torchvision's where it has them, on every backend."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import effnet_fast as ef
from bench.parity import gradients, logits, run
from effnet_fast.modules import ConvNormAct
from effnet_fast.stock import calibrate, import_torchvision
from tests.error_rule import assert_within

ROOT = Path(__file__).resolve().parents[2]
BUILDERS = {"v1": ef.mobilenet_v1, "v2": ef.mobilenet_v2, "resnet50": ef.resnet50}
Step = Callable[[nn.Module, Tensor], list[Tensor]]
SHARED = ("mobilenet_v2", "resnet50")


def images(n: int = 2, side: int = 64) -> Tensor:
    return torch.randn(n, 3, side, side)


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """(ours, torchvision's), the same weights."""
    stock = getattr(import_torchvision().models, name)()
    calibrate(stock, images(8))
    ours = getattr(ef, name)()
    ours.load_state_dict(stock.state_dict())
    return ours.eval(), stock


@pytest.mark.parametrize("name", SHARED)
def test_keys_and_seeded_weights_are_torchvisions(name: str) -> None:
    torch.manual_seed(5)
    ours = getattr(ef, name)().state_dict()
    torch.manual_seed(5)
    stock = getattr(import_torchvision().models, name)().state_dict()
    assert list(ours) == list(stock)
    assert all(torch.equal(ours[key], value) for key, value in stock.items())


def assert_parity(ours: nn.Module, stock: nn.Module, step: Step) -> None:
    parity = run(ours, stock, images(2, 48), step)
    sides = (parity.ours, parity.base, parity.truth)
    assert_within(*(torch.cat([t.flatten() for t in side]) for side in sides))


@pytest.mark.parametrize("name", SHARED)
def test_logits_are_torchvisions(name: str) -> None:
    assert_parity(*pair(name), logits)


def test_gradients_are_torchvisions() -> None:
    """MobileNetV2's, and a ResNet's with one block a stage."""
    assert_parity(*pair("mobilenet_v2"), gradients)
    resnet = import_torchvision().models.resnet
    stock, ours = resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1]), ef.resnet50(depth=1 / 6)
    calibrate(stock, images(8))
    ours.load_state_dict(stock.state_dict())
    assert_parity(ours, stock, gradients)


def unfused(module: nn.Module) -> nn.Module:
    """A copy in which PyTorch runs every convolution, batch norm and ReLU by itself."""
    twin = copy.deepcopy(module)
    for path, child in list(twin.named_modules()):
        if isinstance(child, ConvNormAct):
            twin.set_submodule(path, nn.Sequential(*child))
    return twin


@pytest.mark.parametrize("step", [logits, gradients], ids=["logits", "gradients"])
def test_mobilenet_v1_is_its_layers_one_by_one(step: Step) -> None:
    ours = ef.mobilenet_v1(0.5, num_classes=7)
    calibrate(ours, images(8))
    assert_parity(ours, unfused(ours), step)


def test_mobilenet_v1_is_the_papers() -> None:
    """Howard et al., Table 1: 13 depthwise layers, 1024 features, 4.2 M parameters."""
    with torch.device("meta"):
        model = ef.mobilenet_v1()
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    depthwise = [m for m in convolutions if m.groups > 1]
    assert (len(convolutions), len(depthwise), model.num_features) == (27, 13, 1024)
    assert [m.out_channels for m in depthwise if m.stride == (2, 2)] == [64, 128, 256, 512]
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 4.2


@pytest.mark.parametrize(("name", "build"), BUILDERS.items(), ids=BUILDERS)
def test_width_and_depth(name: str, build: Callable[..., nn.Module]) -> None:
    with torch.device("meta"):
        model = build(0.3, 2.5, num_classes=4, in_channels=1)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.out_channels % 8 == 0 for m in convolutions)
    assert convolutions[0].in_channels == 1
    blocks = {
        "v1": 3 + 5 + 5 + 15 + 5,
        "v2": 3 + 5 + 8 + 10 + 8 + 8 + 3,
        "resnet50": 8 + 10 + 15 + 8,
    }
    kinds = ("DepthwiseSeparable", "InvertedResidual", "Bottleneck")
    assert sum(type(m).__name__ in kinds for m in model.modules()) == blocks[name]
    assert model(torch.empty(2, 1, 33, 47, device="meta")).shape == (2, 4)


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"width": 0}, "width must be a positive number, got 0"),
        ({"depth": float("inf")}, "depth must be a positive number, got inf"),
        ({"num_classes": -1}, "num_classes >= 0, got 3, -1"),
        ({"backend": "tpu"}, "unknown backend 'tpu'"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_options(build: Callable[..., Any], options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        build(**options)


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_features_head_and_no_classes(build: Callable[..., Any]) -> None:
    model, x = build(0.25, num_classes=3).eval(), images(side=40)
    with torch.no_grad():
        maps = model.forward_features(x)
        assert torch.equal(model.forward_head(maps), model(x))
        assert maps.shape == (2, model.num_features, 2, 2)
        bare = build(0.25, num_classes=0).eval()
        assert bare(x).shape == (2, bare.num_features)


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_autocast_and_a_backend_that_is_not_there(build: Callable[..., Any]) -> None:
    model, x = build(0.25, 0.5, num_classes=3), images(side=40)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    if ef.backends()["cpu"] is not None:
        with pytest.raises(ef.BackendUnavailableError, match="backend 'cpu' cannot run"):
            build(0.25, 0.5, backend="cpu")(x)


def test_triton_gives_the_same() -> None:
    """In Triton's interpreter, which has to be asked for before the kernels are imported.

    MobileNetV2's block is Lite's, which tests/ops runs there.
    """
    script = """
import copy, torch, effnet_fast as ef
from effnet_fast.stock import calibrate
from tests.error_rule import assert_within
from tests.t2 import interpreter
interpreter.install()
torch.set_num_threads(1)
for build in (ef.mobilenet_v1, ef.resnet50):
    torch.manual_seed(0)
    models = [build(0.25, 0.2, num_classes=200, backend=b) for b in ("triton", "reference")]
    calibrate(models[1], torch.randn(16, 3, 17, 17))
    models.append(copy.deepcopy(models[1]).double())
    models[0].load_state_dict(models[1].state_dict())
    x = torch.randn(2, 3, 17, 17).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert_within(*(m.eval()(x.to(next(m.parameters()).dtype)) for m in models))
    print(build.__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["mobilenet_v1", "resnet50"], done.stderr
