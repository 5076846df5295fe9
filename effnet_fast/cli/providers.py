"""Everyone who computes the same model, with the same weights, and the check of what they give.

The one list of providers, for ``effnet-fast bench`` and for ``bench/``. Weights are random, batch
norm's statistics those of a pass over the images; dropout and stochastic depth are off, so that
training gives everyone the same gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import cast

import torch
from torch import Tensor, nn

from effnet_fast import architecture
from effnet_fast.backends import BACKENDS, backends
from effnet_fast.cli import runtimes
from effnet_fast.engine import optimize_for_inference
from effnet_fast.mobilenet import mobilenet_v2
from effnet_fast.models import EfficientNet, create_model
from effnet_fast.resnet import resnet50
from effnet_fast.stock import calibrate, import_torchvision

#: The largest difference that a provider's fp32 results may have from the expected ones, relative
#: to the largest value, for its time to count. Other orders of summation give up to about 1e-5
#: over a whole network; a dropped tap or another padding gives 1e-2 and more.
BAR = 1e-4
#: Label -> what it is, in the order of tables.
PROVIDERS = {
    "eager-nchw": "torchvision's model, PyTorch eager, NCHW",
    "eager-channels-last": "torchvision's model, PyTorch eager, channels_last",
    "compile": "torchvision's under torch.compile: max-autotune on a GPU, freezing on a CPU",
    "compile-default": "the same without options",
    "timm": "timm's model, PyTorch eager, channels_last",
    "onnxruntime": "torchvision's model in ONNX Runtime",
    "openvino": "torchvision's model in OpenVINO",
    "tensorrt": "torchvision's model in TensorRT, by Torch-TensorRT",
    "engine": "ours: effnet_fast.optimize_for_inference",
    "auto": "ours: the fastest backend that there is, op by op",
    **{backend: f"ours: backend {backend}" for backend in BACKENDS},
}
STOCK = ("eager-nchw", "eager-channels-last")
OURS = ("engine", "auto", *BACKENDS)
#: This library's other models whose weights are torchvision's too.
BASELINES: dict[str, Callable[..., nn.Module]] = {
    "mobilenet_v2": mobilenet_v2, "resnet50": resnet50,
}  # fmt: skip
#: Values per channel that batch norm's statistics come from at least, on the smallest maps, and
#: images that they come from at most.
_CALIBRATION_VALUES, _CALIBRATION_IMAGES = 64, 8

#: The last batch norm of a ResNet's branches, small as training makes it. With 1, ResNet-152's
#: fp32 errors are 4e-4 of the largest logit, whoever computes it; so they are 3e-6 (224 x 224).
_RESNET_BRANCH = 0.2

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Provider:
    """A model somebody computes: a function of images [N, C, H, W] in a layout.

    ``model`` is an nn.Module where ``training``. ``dtype``: of the images, where it is not the type
    that is computed in.
    """

    model: Callable[[Tensor], Tensor]
    layout: torch.memory_format
    training: bool = False
    dtype: torch.dtype | None = None

    def prepare(self, x: Tensor) -> Tensor:
        """``x`` in the provider's layout and type, so that no conversion is timed."""
        return x.to(self.dtype or x.dtype).contiguous(memory_format=self.layout)

    def step(self, x: Tensor) -> Tensor:
        """What is timed: logits, or a training step less the optimiser, its loss."""
        if not self.training:
            with torch.inference_mode():
                return self.model(x)
        cast(nn.Module, self.model).zero_grad(set_to_none=True)
        labels = torch.arange(x.shape[0], device=x.device)
        loss = nn.functional.cross_entropy(self.model(x).float(), labels)
        loss.backward()
        return loss.detach()

    def result(self, x: Tensor) -> Tensor:
        """What is checked of a step on ``x``."""
        return self.checked(self.step(self.prepare(x)))

    def checked(self, out: Tensor) -> Tensor:
        """What is checked of the step that gave ``out``: logits, or all gradients as one vector.

        In fp32, or the model's fp64.
        """
        if self.training:
            parameters = cast(nn.Module, self.model).parameters()
            out = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        return out if out.dtype == torch.float64 else out.float()


def why_not(label: str, name: str, x: Tensor, training: bool = False) -> str | None:
    """Why ``label`` cannot compute model ``name`` on images like ``x`` here; None if it can.

    Raises ValueError on a label that is not of :data:`PROVIDERS`.
    """
    if label not in PROVIDERS:
        raise ValueError(f"unknown provider {label!r}; known: {', '.join(PROVIDERS)}")
    variant = architecture.VARIANTS.get(name)
    if label in OURS and variant is None and name not in BASELINES:
        return f"{name} is not a model of this library"
    if label in ("auto", *BACKENDS):
        return backends().get(label)
    if training and label in ("engine", *runtimes.PACKAGES):
        return "computes no gradients"
    if label == "engine":
        if variant is None:
            return f"takes EfficientNets, not {name}"
        if not x.is_cuda and x.dtype not in (torch.float32, torch.bfloat16):
            return f"computes in float32 and bfloat16 on CPUs; the images are {x.dtype}"
        return None
    if variant is not None and variant.lite:
        return "torchvision has no EfficientNet-Lite"
    if label == "timm" and find_spec("timm") is None:
        return "not installed: timm"
    if label == "timm" and variant is None:
        return f"weights are matched with timm's for EfficientNets only, not for {name}"
    try:
        import_torchvision()
    except ImportError as error:
        return str(error)
    return runtimes.why_not(label, x) if label in runtimes.PACKAGES else None


def build(label: str, name: str, state: State, x: Tensor, training: bool = False) -> Provider:
    """The provider ``label`` of model ``name`` on ``x``'s device, in ``x``'s type.

    ``state`` is a state_dict with torchvision's keys. Runtimes are made for ``x``'s shape. OpenVINO
    and the native engine take a model and images in fp32 and are asked to compute in that type.
    """
    nchw = label in ("eager-nchw", *runtimes.PACKAGES)
    layout = torch.contiguous_format if nchw else torch.channels_last
    in_fp32 = label == "openvino" or (label == "engine" and not x.is_cuda)
    dtype = torch.float32 if in_fp32 else x.dtype
    if label in OURS:
        model = own(name, "auto" if label == "engine" else label)
    elif label == "timm":
        model, state = _timm(name, state)
    else:
        model = stock(name)
    model.load_state_dict(state)
    # nn.Module.to has no overload which names memory_format with a device.
    model.to(x.device, dtype, memory_format=layout).train(training)  # type: ignore[call-overload]
    for m in model.modules():
        if isinstance(m, nn.Dropout) or type(m).__name__ == "StochasticDepth":
            m.eval()
    run: Callable[[Tensor], Tensor] = model
    if label == "compile-default" or (label == "compile" and training and not x.is_cuda):
        run = torch.compile(model)
    elif label == "compile" and x.is_cuda:
        run = torch.compile(model, mode="max-autotune")
    elif label == "compile":
        run = torch.compile(model, options={"freezing": True})
    elif label == "engine":
        engine = optimize_for_inference(cast(EfficientNet, model), dtype=x.dtype)
        run = cast(Callable[[Tensor], Tensor], engine)
    elif label in runtimes.PACKAGES:
        with torch.no_grad():
            run = getattr(runtimes, label)(model, x.contiguous())
    return Provider(run, layout, training, dtype if in_fp32 else None)


def own(name: str, backend: str = "auto") -> nn.Module:
    """This library's model of that name, its ops by ``backend``."""
    return BASELINES.get(name, partial(create_model, name))(backend=backend)


def stock(name: str) -> nn.Module:
    """torchvision's model of that name; LookupError where it has none."""
    model = getattr(import_torchvision().models, name, None)
    if model is None:
        raise LookupError(f"torchvision has no {name}")
    return cast(nn.Module, model())


def _timm(name: str, state: State) -> tuple[nn.Module, State]:
    """timm's model, and ``state`` under its keys: the same tensors in the same order."""
    import_torchvision()  # timm imports it
    model: nn.Module = import_module("timm").create_model(name)
    eps, _ = architecture.variant(name).batch_norm
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eps = eps
    return model, dict(zip(model.state_dict(), state.values(), strict=True))


def calibrated_state(name: str, x: Tensor) -> State:
    """Random weights for model ``name``, with batch norm statistics of images like ``x``.

    See :func:`effnet_fast.stock.calibrate`.
    """
    try:
        model = stock(name)
    except (ImportError, LookupError):
        model = create_model(name, backend="reference")
    for m in model.modules():
        if isinstance(last := getattr(m, "bn3", None), nn.BatchNorm2d):
            nn.init.constant_(last.weight, _RESNET_BRANCH)
    smallest = math.ceil(x.shape[2] / 32) * math.ceil(x.shape[3] / 32)
    images = x[:_CALIBRATION_IMAGES].float()
    more = max(0, math.ceil(_CALIBRATION_VALUES / smallest) - images.shape[0])
    noise = torch.randn((more, *x.shape[1:]), device=x.device)
    calibrate(model.to(x.device), torch.cat((images, noise)))
    return model.cpu().state_dict()


def expected(name: str, state: State, x: Tensor, training: bool = False) -> tuple[Tensor, str]:
    """The fp32 results that all have to give for ``x``, and whose they are.

    Stock eager's; where there is no stock, those of this library's reference in fp64.
    """
    label = STOCK[0]
    if why_not(label, name, x, training) is None:
        with true_fp32():
            truth = build(label, name, state, x.float(), training).result(x.float())
        return truth, f"{label} in fp32"
    exact = build("reference", name, state, x.double(), training).result(x.double())
    return exact.float(), "reference in fp64"


def bar(name: str, state: State, x: Tensor, truth: Tensor, training: bool = False) -> float:
    """The largest :func:`difference` from ``truth`` that passes.

    In 16 bits twice stock eager's own, channels_last, and one unit of the type. In fp32 the truth
    itself is as far from the exact result as stock is: three times, and at least :data:`BAR`, which
    only batch norm over a few values exceeds.
    """
    own = build("eager-channels-last", name, state, x, training).result(x)
    off, unit = difference(own, truth), torch.finfo(x.dtype).eps
    return max(BAR, 3 * off) if x.dtype == torch.float32 else 2 * off + unit


@contextmanager
def true_fp32() -> Iterator[None]:
    """cuDNN's convolutions in fp32, not in its default TF32 with 10 bits of mantissa."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def difference(actual: Tensor, truth: Tensor) -> float:
    """max |actual - truth| / max |truth|: below the bar is good, and NaN is not below."""
    return ((actual - truth).abs().max() / truth.abs().max()).item()
