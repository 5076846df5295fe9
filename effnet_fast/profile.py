"""Count a model's parameters, multiply-adds and activations, exactly and without computing.

A copy of the model without data (torch's "meta" device) is run once, and every op that multiplies
is counted where the dispatcher sees it. Counters that know aten only, such as
``torch.utils.flop_counter``, see nothing inside ``torch.ops.effnet_fast``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class OpRow:
    """What one op did in a forward pass: how often it ran, multiply-adds, elements it put out."""

    calls: int = 0
    macs: int = 0
    activations: int = 0

    def __add__(self, other: OpRow) -> OpRow:
        return OpRow(
            self.calls + other.calls,
            self.macs + other.macs,
            self.activations + other.activations,
        )


@dataclass(frozen=True)
class LayerRow:
    """One layer: the parameters it holds itself, and what the ops did that took its weight."""

    params: int
    calls: int = 0
    macs: int = 0
    activations: int = 0


@dataclass(frozen=True)
class Profile:
    """Figures of one forward pass in eval mode on one image.

    ``params``: elements of all parameters. ``macs``: multiply-adds of convolutions,
    squeeze-and-excitation and linear layers; batch norm, activations and pooling are not counted,
    taps on padding are. ``activations``: elements of the outputs of those same layers, whether or
    not a fused op writes them out. ``rows``: the same by op, named as the dispatcher names it.
    ``layers``: the same by layer, in the model's order: every module that holds parameters itself,
    by its path, and under ``""`` what had a weight that is no parameter of the model's. Each of the
    two adds up to the totals. The conventions are those of timm's and torchvision's published
    figures.
    """

    params: int
    macs: int
    activations: int
    rows: dict[str, OpRow]
    layers: dict[str, LayerRow]


def count(model: nn.Module, resolution: int | tuple[int, int]) -> Profile:
    """The :class:`Profile` of ``model`` on one image of ``resolution``: a side, or (H, W), pixels.

    For networks whose first convolution sees the image, and in which nothing multiplies but
    convolutions, squeeze-and-excitation and linear layers: those of this library, and most of
    torchvision's and timm's. The model itself is
    neither run nor changed, its hooks do not run, and its tensors are not copied. Raises what the
    model raises for an image of that size.
    """
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    stem = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if stem is None:
        raise TypeError(f"{type(model).__name__} has no convolution: its input is not an image")
    x = torch.empty((1, stem.in_channels, height, width), dtype=stem.weight.dtype, device="meta")
    twin = _without_data(model).eval()
    counter = _Counter(_owners(twin))
    with torch.no_grad(), counter:
        twin(x)
    total = sum(counter.rows.values(), OpRow())
    params = sum(p.numel() for p in model.parameters())
    return Profile(params, total.macs, total.activations, counter.rows, _layers(twin, counter))


def _owners(model: nn.Module) -> dict[int, str]:
    """The storage of every parameter -> the module that holds it, the first one where shared."""
    owners: dict[int, str] = {}
    for path, module in model.named_modules():
        for p in module.parameters(recurse=False):
            owners.setdefault(_storage(p), path)
    return owners


def _storage(t: Tensor) -> int:
    """What a tensor has in common with its views; meta tensors have no address."""
    return t.untyped_storage()._cdata


def _layers(model: nn.Module, counter: _Counter) -> dict[str, LayerRow]:
    params: dict[str, int] = {}
    for p in model.parameters():
        owner = counter.owners[_storage(p)]
        params[owner] = params.get(owner, 0) + p.numel()
    order = [path for path, _ in model.named_modules() if path in params]
    if "" in counter.layers and "" not in params:
        order.append("")
    found = counter.layers
    return {
        path: LayerRow(params.get(path, 0), *astuple(found.get(path, OpRow()))) for path in order
    }


def _without_data(model: nn.Module) -> nn.Module:
    """A copy of ``model`` on the meta device and without hooks; no tensor is copied."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta")) for p in model.parameters()}
    memo |= {id(b): b.to("meta") for b in model.buffers()}
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return twin


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Adds up every op that multiplies, by its qualified name and by the owner of its weight."""

    def __init__(self, owners: dict[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.owners = owners
        self.rows: dict[str, OpRow] = {}
        self.layers: dict[str, OpRow] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        parts = list(_multiplications(name, args, result))
        if parts:
            whole = OpRow(1, sum(r.macs for _, r in parts), sum(r.activations for _, r in parts))
            self.rows[name] = self.rows.get(name, OpRow()) + whole
        for weight, row in parts:
            owner = self.owners.get(_storage(weight), "")
            self.layers[owner] = self.layers.get(owner, OpRow()) + row
        return result


def _multiplications(
    name: str, args: tuple[Any, ...], result: Any
) -> Iterator[tuple[Tensor, OpRow]]:
    """(weight, what was done with it) of one call; nothing for an op that is not counted."""
    match name:
        case "effnet_fast::conv2d" | "effnet_fast::pointwise" | "effnet_fast::depthwise":
            yield args[1], _convolution(result[0].numel(), args[1])
        case "aten::convolution":
            yield args[1], _convolution(result.numel(), args[1])
        case "effnet_fast::pointwise_pool":  # the map it averages is never stored
            x, weight = args[:2]
            outputs = x.shape[0] * weight.shape[0] * x.shape[2] * x.shape[3]
            yield weight, _convolution(outputs, weight)
        case "effnet_fast::se_gate":  # [T,N,C] -> [N,R] -> [N,C]
            pool, w_reduce, _, w_expand = args[:4]
            for weight in (w_reduce, w_expand):
                yield weight, _convolution(pool.shape[1] * weight.shape[0], weight)
        case "aten::addmm" | "aten::mm":
            row = OpRow(1, result.numel() * args[-1].shape[0], result.numel())
            yield args[-1], row


def _convolution(outputs: int, weight: Tensor) -> OpRow:
    """``weight`` is [K, C / groups, k, k]: each output sums over all but the first dimension."""
    return OpRow(1, outputs * weight[0].numel(), outputs)
