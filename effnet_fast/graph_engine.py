"""Inference on a GPU: a trained model as one CUDA graph for each image shape."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor, nn

from effnet_fast.models import EfficientNet

#: Shapes whose graphs are kept, those seen last.
MOST_PLANS = 8


class _Plan(NamedTuple):
    """A captured forward pass: fill ``image``, replay ``graph``, read ``result``."""

    image: Tensor
    graph: torch.cuda.CUDAGraph
    result: Tensor


class GraphEngine:
    """Inference of one model on a GPU; made by :func:`effnet_fast.optimize_for_inference`.

    A call costs the CPU one launch instead of hundreds of steps of Python, which take longer than
    the GPU's work on a small batch. A new shape of images is captured once, which takes a few
    forward passes and, where a kernel is new, its compilation; the graphs of the eight shapes seen
    last are kept, in one pool of memory.

    Thread-safe: calls from several threads or streams wait for each other on the GPU. Picklable.
    """

    def __init__(self, model: EfficientNet, dtype: torch.dtype | None) -> None:
        own = copy.deepcopy(model).eval().requires_grad_(False)
        for module in own.modules():  # batch norms stay as they are: they cost nothing in fp32
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        weight = next(own.parameters())
        self._model, self._dtype = own, dtype
        self.device, self.dtype = weight.device, weight.dtype
        self.in_channels: int = own.in_channels
        self.num_features: int = own.num_features
        self.num_classes: int = own.num_classes
        recipe = getattr(model, "recipe", None)  # create_model's; not every EfficientNet has one
        self._normal: tuple[Tensor, Tensor] | None = None
        if recipe is not None and len(recipe.mean) == self.in_channels:
            mean, std = (
                torch.tensor(v, device=self.device).view(-1, 1, 1)
                for v in (recipe.mean, recipe.std)
            )
            self._normal = mean, std
        self._plans: OrderedDict[tuple[object, ...], _Plan] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = torch.cuda.graph_pool_handle()
        self._done = torch.cuda.Event()

    def __reduce__(self) -> tuple[type[GraphEngine], tuple[EfficientNet, torch.dtype | None]]:
        return GraphEngine, (self._model, self._dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> logits [N, num_classes], fp32.

        Without a classifier (``num_classes`` 0): pooled features [N, num_features].

        Args:
            x: on the engine's device, of any strides: a floating type, normalised as the model
                wants it, or uint8, which the engine normalises by the model's recipe.

        Raises:
            TypeError: an integer type other than uint8.
            ValueError: another device, number of dimensions, of channels, or an empty image.
        """
        return self._run(x, features=False)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images as in a call -> the head's feature map [N, num_features, h, w], fp32."""
        return self._run(x, features=True)

    def summary(self) -> str:
        """The shapes of images that there is a graph for, a line each."""
        lines = [f"{self.dtype} on {self.device}, {len(self._plans)} of {MOST_PLANS} graphs"]
        lines += [f"{list(p.image.shape)} {p.image.dtype}" for p in self._plans.values()]
        return "\n".join(lines)

    def _run(self, x: Tensor, features: bool) -> Tensor:
        self._check(x)
        with self._lock, torch.cuda.device(self.device):
            if x.shape[0] == 0:
                with torch.inference_mode():
                    result = self._forward(x, features)
                return result.to(torch.float32, copy=True)
            stream = torch.cuda.current_stream()
            stream.wait_event(self._done)  # another stream may still be at the graphs' memory
            plan = self._plan(x, features)
            plan.image.copy_(x)
            plan.graph.replay()
            answer = plan.result.to(torch.float32, copy=True)
            self._done.record(stream)
            return answer

    def _plan(self, x: Tensor, features: bool) -> _Plan:
        key = (tuple(x.shape), x.dtype, features)
        if key in self._plans:
            self._plans.move_to_end(key)
            return self._plans[key]
        image = torch.zeros_like(x, memory_format=torch.channels_last)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.inference_mode():
            for _ in range(2):  # kernels are compiled and chosen before the capture
                self._forward(image, features)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph, pool=self._pool):
            result = self._forward(image, features)
        self._plans[key] = _Plan(image, graph, result)
        while len(self._plans) > MOST_PLANS:
            self._plans.popitem(last=False)
        return self._plans[key]

    def _forward(self, x: Tensor, features: bool) -> Tensor:
        if x.dtype == torch.uint8:
            assert self._normal is not None
            mean, std = self._normal
            x = (x.float() / 255 - mean) / std
        x = x.to(self.dtype)
        return self._model.forward_features(x) if features else self._model(x)

    def _check(self, x: Tensor) -> None:
        if not x.is_floating_point() and x.dtype != torch.uint8:
            raise TypeError(f"images of {x.dtype}: expected a floating type or torch.uint8")
        if x.device != self.device:
            raise ValueError(f"images on {x.device}: this engine is on {self.device}")
        if x.dim() != 4 or x.shape[1] != self.in_channels or 0 in x.shape[2:]:
            shape = list(x.shape)
            raise ValueError(f"images of shape {shape}: expected [N, {self.in_channels}, H, W]")
        if x.dtype == torch.uint8 and self._normal is None:
            raise ValueError(
                f"uint8 images: the model has no recipe to normalise {self.in_channels} channels "
                f"by; give a floating type, normalised"
            )
