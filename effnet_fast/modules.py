"""The layers of EfficientNet as modules: parameters laid out as torchvision lays them out, computed
by the fused ops of :mod:`effnet_fast.ops`.

The inner ``nn.Conv2d`` and ``nn.BatchNorm2d`` hold parameters, buffers and settings; a fused op
reads them and does not call them, so forward hooks on *them* do not run. Hooks on the modules of
this file do.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from effnet_fast import ops
from effnet_fast.backends import requested
from effnet_fast.ops import mbconv as fused
from effnet_fast.ops.checks import check_map, check_match, resolve_padding
from effnet_fast.ops.conv_bn import ConvBn, ConvBnTensors
from effnet_fast.ops.conv_bn_act import conv_bn_act
from effnet_fast.ops.head import conv_bn_act_pool
from effnet_fast.ops.shapes import output_size

_ACTIVATION_MODULES: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
}


def cast_input(x: Tensor, weight: Tensor, channels: int, what: str) -> Tensor:
    """``x`` checked against the first weight it meets, in autocast's type where that is on."""
    check_map(x, channels, what)
    device = x.device.type
    autocast = device != "meta" and torch.is_autocast_enabled(device)  # "meta" knows no autocast
    if autocast and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(device))
        check_match(x, weight.detach().to(x.dtype), what)
    else:
        check_match(x, weight, what)
    return x


class ConvNorm(NamedTuple):
    """A convolution and its batch norm, wherever a model keeps the two, as the fused ops see them.

    ``kind``: "conv2d", "pointwise" or "depthwise"; ``padding``: "symmetric" or "same".
    """

    conv: nn.Conv2d
    bn: _BatchNorm
    kind: str
    padding: str

    def layer(self, size: torch.Size) -> ConvBn:
        """The layer for an input of ``size``; counts the batch where statistics are kept."""
        bn, kernel, stride = self.bn, self.conv.kernel_size[0], self.conv.stride[0]
        padding = resolve_padding(self.padding, size, kernel, stride)
        momentum = 0.0 if bn.momentum is None else bn.momentum
        if bn.training and bn.track_running_stats and bn.num_batches_tracked is not None:
            if size[0] > 0:
                bn.num_batches_tracked.add_(1)
            if bn.momentum is None:  # torch: the cumulative average
                momentum = 1.0 / max(float(bn.num_batches_tracked), 1.0)
        batch_stats = bn.training or bn.running_mean is None
        group = _sync_group(bn) if batch_stats else None
        return ConvBn(self.kind, stride, padding, bn.eps, momentum, batch_stats, group)

    def tensors(self) -> ConvBnTensors:
        """The tensors of the layer; running statistics only where they are kept or used."""
        bn = self.bn
        keep = not bn.training or bn.track_running_stats
        mean, var = (bn.running_mean, bn.running_var) if keep else (None, None)
        return ConvBnTensors(self.conv.weight, bn.weight, bn.bias, mean, var)

    def run(self, x: Tensor, activation: str, backend: str) -> Tensor:
        """[N,C,H,W] -> [N,K,P,Q], the activated map written out."""
        x = cast_input(x, self.conv.weight, self.conv.in_channels, "input")
        return conv_bn_act(self.layer(x.shape), self.tensors(), x, activation, requested(backend))


class ConvNormAct(nn.Sequential):
    """Convolution, batch norm and activation: children 0, 1 and, with an activation, 2.

    Args:
        kind: "conv2d", "pointwise" or "depthwise".
        in_channels, out_channels, kernel, stride: of the convolution, which has no bias.
        activation: "silu", "relu", "relu6" or "identity".
        padding: "symmetric" (torch) or "same" (TensorFlow).
        eps, momentum: of the batch norm.
        backend: as everywhere in the library.
    """

    def __init__(
        self, kind: str, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, *,
        activation: str, padding: str, eps: float, momentum: float | None, backend: str,
    ) -> None:  # fmt: skip
        conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, (kernel - 1) // 2,
            groups=in_channels if kind == "depthwise" else 1, bias=False,
        )  # fmt: skip
        layers: list[nn.Module] = [conv, nn.BatchNorm2d(out_channels, eps=eps, momentum=momentum)]
        if activation != "identity":
            layers.append(_ACTIVATION_MODULES[activation](inplace=True))
        super().__init__(*layers)
        self.kind, self.padding, self.activation = kind, padding, activation
        self.backend, self.out_channels = backend, out_channels

    def extra_repr(self) -> str:
        return f"fused {self.kind}, padding={self.padding!r}, backend={self.backend!r}"

    @property
    def conv(self) -> nn.Conv2d:
        """Child 0."""
        conv = self[0]
        if not isinstance(conv, nn.Conv2d) or conv.bias is not None:
            raise TypeError(f"child 0 must be a Conv2d without bias, got {conv}")
        return conv

    @property
    def bn(self) -> _BatchNorm:
        """Child 1: a BatchNorm2d or SyncBatchNorm."""
        bn = self[1]
        if not isinstance(bn, _BatchNorm):
            raise TypeError(f"child 1 must be a batch norm, got {bn}: no other norm is fused")
        return bn

    @property
    def pair(self) -> ConvNorm:
        """Children 0 and 1."""
        return ConvNorm(self.conv, self.bn, self.kind, self.padding)

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,K,P,Q], the activated map written out."""
        return self.pair.run(x, self.activation, self.backend)

    def forward_pooled(self, x: Tensor) -> Tensor:
        """A pointwise layer followed by the mean over H and W: [N,C,H,W] -> [N,K]."""
        pair = self.pair
        x = cast_input(x, pair.conv.weight, pair.conv.in_channels, "input")
        return conv_bn_act_pool(
            pair.layer(x.shape), pair.tensors(), x, self.activation, requested(self.backend)
        )


def _sync_group(bn: nn.Module) -> Any:
    """The process group of a SyncBatchNorm that has anyone to synchronise with."""
    if not isinstance(bn, nn.SyncBatchNorm) or not dist.is_available() or not dist.is_initialized():
        return None
    group = dist.group.WORLD if bn.process_group is None else bn.process_group
    return group if dist.get_world_size(group) > 1 else None


class SqueezeExcitation(nn.Module):
    """Squeeze-and-excitation with 1x1 convolutions ``fc1`` [R,C,1,1] and ``fc2`` [C,R,1,1]."""

    def __init__(self, channels: int, squeeze_channels: int, activation: str, backend: str) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeeze_channels, 1)
        self.fc2 = nn.Conv2d(squeeze_channels, channels, 1)
        self.activation, self.backend = activation, backend

    def extra_repr(self) -> str:
        return f"fused, backend={self.backend!r}"

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(w_reduce, b_reduce, w_expand, b_expand)."""
        if self.fc1.bias is None or self.fc2.bias is None:
            raise TypeError("fc1 and fc2 of squeeze-and-excitation need their biases")
        return self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> the gated map, same shape."""
        return ops.squeeze_excite(
            x, *self.tensors(), activation=self.activation, backend=self.backend
        )


class StochasticDepth(nn.Module):
    """Drops a sample's residual branch with probability ``p`` in training (arXiv 1603.09382).

    Draws from torch's global generator exactly as torchvision's does, one Bernoulli per sample in
    the activation's type, so that equal seeds drop equal samples.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"stochastic depth probability must be within [0, 1], got {p}")
        self.p = p

    def extra_repr(self) -> str:
        return f"p={self.p}, mode=row"

    def sample(self, x: Tensor) -> Tensor | None:
        """[N] of 0 or 1 / (1 - p) in fp32 (fp64 for fp64), or None where nothing is dropped."""
        if not self.training or self.p == 0.0:
            return None
        survival = 1.0 - self.p
        noise = torch.empty((x.shape[0], 1, 1, 1), dtype=x.dtype, device=x.device)
        noise.bernoulli_(survival)
        if survival > 0.0:
            noise.div_(survival)
        return noise.flatten().to(torch.promote_types(x.dtype, torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """[N, ...] -> the same with dropped samples zeroed and the others scaled up."""
        scale = self.sample(x)
        return x if scale is None else x * scale.to(x.dtype).view(-1, *[1] * (x.dim() - 1))


class MBConv(nn.Module):
    """Expand 1x1, depthwise k x k, squeeze-and-excitation, project 1x1, residual: one fused op.

    Children as in torchvision: ``block`` is (expand), depthwise, (SE), project; ``expand`` is
    absent for expansion 1, SE for the Lite variants.

    Args:
        in_channels, out_channels, kernel, stride, expansion: of the block.
        squeeze_channels: the width of SE; None for no SE.
        stochastic_depth_prob: of dropping the residual branch of a sample in training.
        activation, padding, eps, momentum, backend: as in :class:`ConvNormAct`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int,
        squeeze_channels: int | None, stochastic_depth_prob: float, *, activation: str,
        backend: str, **conv: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        conv |= {"backend": backend}
        expanded = in_channels * expansion
        layers: list[nn.Module] = []
        if expanded != in_channels:
            layers.append(
                ConvNormAct("pointwise", in_channels, expanded, activation=activation, **conv)
            )
        layers.append(
            ConvNormAct(
                "depthwise", expanded, expanded, kernel, stride, activation=activation, **conv
            )
        )
        if squeeze_channels is not None:
            layers.append(SqueezeExcitation(expanded, squeeze_channels, activation, backend))
        layers.append(
            ConvNormAct("pointwise", expanded, out_channels, activation="identity", **conv)
        )
        self.block = nn.Sequential(*layers)
        self.stochastic_depth = StochasticDepth(stochastic_depth_prob)
        self.use_res_connect = stride == 1 and in_channels == out_channels
        self.in_channels, self.out_channels = in_channels, out_channels
        self.activation, self.backend = activation, backend

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,K,P,Q]."""
        return self._run(self.named_layers().get("expand"), x, self.in_channels)

    def can_take_stem(self) -> bool:
        """Whether :meth:`forward_from_image` applies: nothing but the depthwise reads the input."""
        return "expand" not in self.named_layers() and not self.use_res_connect

    def forward_from_image(self, stem: ConvNormAct, x: Tensor) -> Tensor:
        """The stem and this block as one fused op: the stem's activated map is never written."""
        return self._run(stem, x, stem.conv.in_channels)

    def named_layers(self) -> dict[str, Any]:
        """The children of ``block`` by what they do."""
        layers = list(self.block)
        named = {"project": layers.pop()}
        if isinstance(layers[-1], SqueezeExcitation):
            named["se"] = layers.pop()
        named["depthwise"] = layers.pop()
        if layers:
            named["expand"] = layers.pop()
        return named

    def _run(self, expand: ConvNormAct | None, x: Tensor, channels: int) -> Tensor:
        parts = self.named_layers()
        return run_block(
            None if expand is None else expand.pair, parts["depthwise"].pair, parts["project"].pair,
            x, channels, se=parts.get("se"), activation=self.activation,
            residual=self.use_res_connect, stochastic_depth=self.stochastic_depth,
            backend=self.backend,
        )  # fmt: skip


def run_block(
    expand: ConvNorm | None, depthwise: ConvNorm, project: ConvNorm, x: Tensor, channels: int, *,
    activation: str, residual: bool, backend: str, se: SqueezeExcitation | None = None,
    stochastic_depth: StochasticDepth | None = None,
) -> Tensor:  # fmt: skip
    """The layers of an inverted residual block as one fused op: [N,C,H,W] -> [N,K,P,Q].

    ``channels`` is what ``x`` has to have; ``residual`` says whether it is added to the result.
    """
    x = cast_input(x, (expand or depthwise).conv.weight, channels, "input")
    size, expand_layer = x.shape, None
    if expand is not None:
        expand_layer = expand.layer(size)
        size = _output_shape(expand_layer, size, expand.conv)
    depthwise_layer = depthwise.layer(size)
    size = _output_shape(depthwise_layer, size, depthwise.conv)
    block = fused.MBConv(
        expand_layer, depthwise_layer, project.layer(size), activation, residual,
        requested(backend),
    )  # fmt: skip
    tensors = fused.MBConvTensors(
        None if expand is None else expand.tensors(),
        depthwise.tensors(),
        project.tensors(),
        None if se is None else se.tensors(),
    )
    drop_scale = stochastic_depth.sample(x) if residual and stochastic_depth is not None else None
    return fused.mbconv(block, tensors, x, drop_scale)


def _output_shape(layer: ConvBn, size: torch.Size, conv: nn.Conv2d) -> torch.Size:
    top, bottom, left, right = layer.padding
    k, stride = conv.kernel_size[0], layer.stride
    p, q = (
        output_size(size[2], k, stride, top, bottom),
        output_size(size[3], k, stride, left, right),
    )
    return torch.Size((size[0], conv.out_channels, p, q))
