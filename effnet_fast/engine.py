"""The native CPU engine: a trained model as a fixed plan, weights packed once.

Nothing of the model is kept or changed. In fp32 batch norms are folded into the weights, in fp64,
and SiLU's relative error is 3e-7 below 16. In bfloat16 images, maps and weights are rounded to it,
and what is multiplied; sums, batch norms, activations and the gate are fp32.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from effnet_fast import _C
from effnet_fast.graph_engine import GraphEngine
from effnet_fast.models import EfficientNet
from effnet_fast.modules import ConvNormAct, MBConv, SqueezeExcitation

Spec = dict[str, Any]


class Step(NamedTuple):
    """One of an engine's steps."""

    name: str
    #: Channels, and rows x columns, before and after.
    shape: str
    #: Of one image.
    multiply_adds: float
    weight_bytes: float


class Engine:
    """Inference of one model on a CPU; made by :func:`optimize_for_inference`.

    Thread-safe: calls from several threads at once each use a workspace of their own. The GIL is
    released while an engine runs. Picklable.

    A new image size makes a plan, kept for the eight sizes seen last; nothing else is allocated by
    a call but the result. For a given number of threads results are bit-equal from run to run.
    Between numbers of threads they may differ in the last bits: the sums of squeeze-and-excitation
    are added up in another order, and its gate goes into the map or into the weights of the
    projection, whichever is the smaller share of a thread.

    Environment: ``EFFNET_FAST_CPU_ISA`` names the instruction set instead of the best one there is,
    for tests.
    """

    def __init__(self, spec: Spec, dtype: torch.dtype, threads: int | None) -> None:
        self._spec, self.dtype, self._threads = spec, dtype, threads
        self.isa = os.environ.get("EFFNET_FAST_CPU_ISA", "") or _C.cpu_isas()[-1]
        self._native = _C.CpuEngine(spec, self.isa, dtype == torch.bfloat16)
        self.in_channels: int = spec["stem"]["in"]
        self.num_features: int = spec["head"]["weight"].shape[0]
        classifier = spec["classifier"]
        self.num_classes: int = 0 if classifier is None else classifier["weight"].shape[0]

    def __reduce__(self) -> tuple[type[Engine], tuple[Spec, torch.dtype, int | None]]:
        return Engine, (self._spec, self.dtype, self._threads)

    def __call__(self, x: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """Images [N, in_channels, H, W] -> logits [N, num_classes], fp32.

        Without a classifier (``num_classes`` 0): pooled features [N, num_features].

        Args:
            x: float32, normalised as the model wants it; or uint8, which the engine normalises by
                the model's recipe. torch (on the CPU) or numpy, any non-negative strides, any size
                from 1x1, any N from 0. The result is of the same kind.

        Raises:
            TypeError: neither float32 nor uint8.
            ValueError: another device, number of dimensions, of channels, or an empty image.
        """
        return self._run(x, features=False)

    def forward_features(self, x: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """Images as in a call -> the head's feature map [N, num_features, h, w], channels_last."""
        return self._run(x, features=True)

    def _run(self, x: Tensor | np.ndarray, features: bool) -> Tensor | np.ndarray:
        image = torch.from_numpy(x) if isinstance(x, np.ndarray) else x
        self._check(image)
        n, _, h, w = image.shape
        if features:
            rows, columns = self._native.feature_size(h, w)
            out = torch.empty((n, rows, columns, self.num_features))
        else:
            out = torch.empty((n, self.num_classes or self.num_features))
        self._native_run(image, features, out, profiled=False)
        result = out.permute(0, 3, 1, 2) if features else out
        return result.numpy() if isinstance(x, np.ndarray) else result

    def _native_run(
        self, image: Tensor, features: bool, out: Tensor, profiled: bool
    ) -> list[float]:
        return self._native.run(
            image.data_ptr(), image.dtype == torch.uint8, image.shape, image.stride(),
            self.threads, features, out.data_ptr(), profiled,
        )  # fmt: skip

    def _check(self, x: Tensor) -> None:
        if x.dtype not in (torch.float32, torch.uint8):
            raise TypeError(f"images of {x.dtype}: expected torch.float32 or torch.uint8")
        if x.device.type != "cpu":
            raise ValueError(f"images on {x.device}: this engine runs on the CPU; call x.cpu()")
        if x.dim() != 4 or x.shape[1] != self.in_channels or 0 in x.shape[2:]:
            shape = list(x.shape)
            raise ValueError(f"images of shape {shape}: expected [N, {self.in_channels}, H, W]")
        if x.dtype == torch.uint8 and not len(self._spec["scale"]):
            raise ValueError(
                f"uint8 images: the model has no recipe to normalise {self.in_channels} channels "
                f"by; give float32, normalised"
            )

    @property
    def threads(self) -> int:
        """Those of a call: as given, else ``torch.get_num_threads()`` of the calling thread."""
        return self._threads or torch.get_num_threads()

    def steps(self, h: int, w: int) -> list[Step]:
        """What is done for one image of ``h`` x ``w`` pixels, in order."""
        if h < 1 or w < 1:
            raise ValueError(f"an image of {h} x {w} pixels: expected 1 x 1 or more")
        return [Step(*step) for step in self._native.steps(h, w)]

    def profile(self, x: Tensor, repeats: int = 20) -> list[tuple[Step, float]]:
        """The steps for one image, and the median of their seconds in ``repeats`` calls.

        Args:
            x: one image, [1, in_channels, H, W], as in a call.
            repeats: after two calls that do not count.
        """
        self._check(x)
        if len(x) != 1 or repeats < 1:
            raise ValueError(f"{len(x)} images, {repeats} repeats: expected 1, and 1 or more")
        out = torch.empty((1, self.num_classes or self.num_features))
        runs = [self._native_run(x, False, out, profiled=True) for _ in range(2 + repeats)]
        seconds = np.median(np.array(runs[2:]), 0)
        return list(zip(self.steps(*x.shape[2:]), seconds.tolist(), strict=True))

    def summary(self, h: int = 224, w: int = 224) -> str:
        """The steps for images of ``h`` x ``w`` pixels, in words: multiply-adds and weights."""
        steps = self.steps(h, w)
        wide = max(len(step.name) for step in steps)
        lines = [
            f"{s.name:{wide}}  {s.multiply_adds / 1e6:9.2f} M  {s.weight_bytes / 1024:8.1f} KiB  "
            f"{s.shape}"
            for s in steps
        ]
        macs, weights = sum(s.multiply_adds for s in steps), sum(s.weight_bytes for s in steps)
        workspace = self._native.workspace_bytes(h, w, self.threads)
        lines.append(
            f"{'total':{wide}}  {macs / 1e6:9.2f} M  {weights / 1024:8.1f} KiB  "
            f"workspace {workspace / 2**20:.1f} MiB, {str(self.dtype).removeprefix('torch.')}, "
            f"{self.isa}, {self.threads} threads; with another number the last bits may differ"
        )
        return "\n".join(lines)


def optimize_for_inference(
    model: EfficientNet,
    *,
    dtype: torch.dtype | None = None,
    input_shape: tuple[int, int, int, int] | None = None,
    threads: int | None = None,
) -> Engine | GraphEngine:
    """An engine of what ``model`` computes in eval mode now: native on a CPU, CUDA graphs on a GPU.

    Args:
        model: any width, depth, ``num_classes``, ``in_channels`` and padding; on a CPU of the
            library's own structure. It is left untouched, and later changes do not show.
        dtype: of weights and activations. None: as the model is. On a CPU ``torch.float32`` or
            ``torch.bfloat16``; results are fp32 there.
        input_shape: [N, in_channels, H, W] to plan for now instead of at the first call.
        threads: on a CPU, of every call; None follows ``torch.set_num_threads``.

    Raises:
        TypeError: not an EfficientNet of this library.
        ValueError: a structure, type, device or number that the engine does not take, and which.
    """
    if not isinstance(model, EfficientNet):
        raise TypeError(f"expected an effnet_fast.EfficientNet, got {type(model).__name__}")
    if input_shape is not None and (len(input_shape) != 4 or min(input_shape) < 1):
        raise ValueError(f"input_shape {input_shape}: expected (N, {model.in_channels}, H, W)")
    devices = {p.device for p in model.parameters()}
    if len(devices) != 1:
        raise ValueError(f"the model is on {', '.join(sorted(map(str, devices)))}: expected one")
    (device,) = devices
    engine: Engine | GraphEngine
    if device.type == "cuda":
        if threads is not None:
            raise ValueError(f"threads {threads}: an engine on {device} has none to choose")
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype {dtype}: expected a floating type")
        engine = GraphEngine(model, dtype)
    elif device.type == "cpu":
        if dtype is None:
            dtype = next(model.parameters()).dtype
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(
                f"dtype {dtype}: the CPU engine computes in torch.float32 or torch.bfloat16"
            )
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be >= 1, got {threads}")
        engine = Engine(_spec(model), dtype, threads)
    else:
        raise ValueError(f"the model is on {device}: there are engines for CPUs and CUDA GPUs")
    if input_shape is not None:
        engine(torch.zeros(input_shape, device=device, dtype=torch.float32))
    return engine


def _spec(model: EfficientNet) -> Spec:
    """The network as csrc/cpu_bridge.cpp reads it: fp32, but for what multiplies weights."""
    layers = list(model.features)
    stem, head = _expect(layers[0], ConvNormAct, "0"), _expect(layers[-1], ConvNormAct, "-1")
    blocks = []
    for i, stage in enumerate(layers[1:-1], 1):
        for j, block in enumerate(_expect(stage, nn.Sequential, f"{i}")):
            blocks.append(_block(_expect(block, MBConv, f"{i}.{j}"), stem.padding))
    linear = model.classifier[1]
    classifier = None
    if not isinstance(linear, nn.Identity):
        linear = _expect(linear, nn.Linear, "classifier.1")
        classifier = _linear(linear.weight, linear.bias)
    scale = shift = np.zeros(0, np.float32)
    recipe = getattr(model, "recipe", None)  # create_model's; not every EfficientNet has one
    if recipe is not None and model.in_channels == len(recipe.mean):
        mean, std = (np.array(v, np.float64) for v in (recipe.mean, recipe.std))
        scale, shift = (v.astype(np.float32) for v in (1 / (255 * std), -mean / std))
    return {
        "stem": _conv(stem, stem.padding), "blocks": blocks, "head": _conv(head, stem.padding),
        "classifier": classifier, "same_padding": stem.padding == "same",
        "scale": scale, "shift": shift,
    }  # fmt: skip


def _expect(module: nn.Module, kind: type[Any], place: str) -> Any:
    if not isinstance(module, kind):
        name = type(module).__name__
        raise ValueError(f"the CPU engine cannot run this network: {place} is a {name}")
    return module


def _block(block: MBConv, padding: str) -> Spec:
    named = block.named_layers()
    depthwise, se = named["depthwise"], cast(SqueezeExcitation | None, named.get("se"))
    reduce = widen = None
    if se is not None:
        w_reduce, b_reduce, w_expand, b_expand = se.tensors()
        reduce, widen = (
            _linear(w_reduce.flatten(1), b_reduce),
            _linear(w_expand.flatten(1), b_expand),
        )
    return {
        "expand": _conv(named["expand"], padding) if "expand" in named else None,
        "depthwise": _conv(depthwise, padding),
        "reduce": reduce, "widen": widen,
        "squeeze_act": "identity" if se is None else se.activation,
        "project": _conv(named["project"], padding),
        "residual": block.use_res_connect,
    }  # fmt: skip


def _conv(layer: ConvNormAct, padding: str) -> Spec:
    """A convolution, and its batch norm as what it multiplies and adds."""
    conv, bn = layer.conv, layer.bn
    if layer.padding != padding:
        raise ValueError("the CPU engine cannot run this network: its layers pad differently")
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError("the CPU engine needs running statistics in every batch norm")
    mean, var = bn.running_mean.double(), bn.running_var.double()
    scale, bias = torch.rsqrt(var + bn.eps), torch.zeros_like(mean)
    if bn.weight is not None:
        scale = scale * bn.weight.detach().double()
    if bn.bias is not None:
        bias = bn.bias.detach().double()
    return {
        "weight": _array(conv.weight.detach()),
        "scale": scale.numpy(), "bias": _array(bias - mean * scale),
        "in": conv.in_channels, "stride": conv.stride[0], "act": layer.activation,
    }  # fmt: skip


def _linear(weight: Tensor, bias: Tensor | None) -> Spec:
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return {"weight": _array(weight.detach()), "bias": _array(bias.detach())}


def _array(values: Tensor) -> np.ndarray:
    return values.to(torch.float32, copy=True).contiguous().numpy()
