"""MobileNetV1 and MobileNetV2 on the fused ops, scaled by width and depth: Table 3's baselines.

Sources: Howard et al., arXiv 1704.04861, Table 1; Sandler et al., arXiv 1801.04381, Table 2.
MobileNetV2 has torchvision's ``state_dict`` keys, initial weights (bit for bit under the same seed)
and results; torchvision has no MobileNetV1, whose keys are its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from effnet_fast.architecture import (
    TORCH_BATCH_NORM,
    check_factors,
    check_options,
    round_channels,
    round_repeats,
)
from effnet_fast.backends import check_name
from effnet_fast.modules import ConvNorm, ConvNormAct, run_block

#: (output channels, stride of the first layer, layers) of MobileNetV1.
V1_STAGES = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 2, 6), (1024, 2, 2))
#: (expansion, output channels, layers, stride of the first block) of MobileNetV2.
V2_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM_CHANNELS = 32
V2_HEAD_CHANNELS = 1280


class DepthwiseSeparable(nn.Sequential):
    """MobileNetV1's layer: depthwise 3x3 (child 0) and pointwise (child 1), each with BN and ReLU.

    Each is one op: the depthwise one is ``effnet_fast.ops.depthwise_conv_bn_act``'s.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, **conv: Any) -> None:
        super().__init__(
            ConvNormAct("depthwise", in_channels, in_channels, 3, stride, **conv),
            ConvNormAct("pointwise", in_channels, out_channels, **conv),
        )


class InvertedResidual(nn.Module):
    """MobileNetV2's block, one fused op: children of ``conv`` are torchvision's.

    (expand,) depthwise, the projection's convolution, and its batch norm.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, expansion: int, **conv: Any
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvNormAct("pointwise", in_channels, hidden, **conv))
        layers.append(ConvNormAct("depthwise", hidden, hidden, 3, stride, **conv))
        layers.append(nn.Conv2d(hidden, out_channels, 1, bias=False))
        layers.append(nn.BatchNorm2d(out_channels, conv["eps"], conv["momentum"]))
        self.conv = nn.Sequential(*layers)
        self.use_res_connect = stride == 1 and in_channels == out_channels
        self.in_channels, self.out_channels = in_channels, out_channels
        self.activation, self.padding = conv["activation"], conv["padding"]
        self.backend = conv["backend"]

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,K,P,Q]."""
        layers: list[Any] = list(self.conv)
        *expand, depthwise, project, bn = layers
        return run_block(
            expand[0].pair if expand else None,
            depthwise.pair,
            ConvNorm(project, bn, "pointwise", self.padding),
            x,
            self.in_channels,
            activation=self.activation,
            residual=self.use_res_connect,
            backend=self.backend,
        )


class MobileNet(nn.Module):
    """``features`` (stem, layers, and V2's head), the mean over the map, ``classifier``.

    Attributes:
        in_channels, num_features, num_classes: of the image, the classifier's input, the logits.
    """

    def __init__(
        self, layers: list[nn.Module], in_channels: int, num_features: int, num_classes: int,
        dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.in_channels, self.num_features = in_channels, num_features
        self.num_classes = num_classes
        last = nn.Linear(num_features, num_classes) if num_classes else nn.Identity()
        self.classifier = nn.Sequential(nn.Dropout(dropout), last)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out")
            elif isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, 0, 0.01)
                nn.init.zeros_(m.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> the last feature map [N, num_features, h, w]."""
        return self.features(x)

    def forward_head(self, x: Tensor) -> Tensor:
        """A feature map -> logits [N, num_classes]; pooled features for ``num_classes`` 0."""
        return self.classifier(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W], normalised, of any size -> logits."""
        return self.forward_head(self.forward_features(x))


def mobilenet_v1(
    width: float = 1.0, depth: float = 1.0, *, num_classes: int = 1000, in_channels: int = 3,
    dropout: float = 0.001, norm_eps: float = TORCH_BATCH_NORM[0],
    norm_momentum: float | None = TORCH_BATCH_NORM[1], padding: str = "symmetric",
    backend: str = "auto",
) -> MobileNet:  # fmt: skip
    """MobileNetV1 with ReLU.

    Args:
        width: of all channels, rounded as :func:`effnet_fast.architecture.round_channels` does.
        depth: of every stage's layers, rounded up.
        num_classes, in_channels, dropout, norm_eps, norm_momentum, padding, backend: as in
            :class:`effnet_fast.EfficientNet`.

    Raises:
        ValueError: a value is out of range; the message says which.
    """
    check_factors(width, depth)
    check_options(num_classes, in_channels, padding)
    common: dict[str, Any] = {
        "activation": "relu", "padding": padding, "eps": norm_eps, "momentum": norm_momentum,
        "backend": check_name(backend),
    }  # fmt: skip
    channels = round_channels(STEM_CHANNELS * width)
    layers: list[nn.Module] = [ConvNormAct("conv2d", in_channels, channels, 3, 2, **common)]
    for base, stride, repeats in V1_STAGES:
        out = round_channels(base * width)
        for i in range(round_repeats(repeats * depth)):
            layers.append(DepthwiseSeparable(channels, out, stride if i == 0 else 1, **common))
            channels = out
    return MobileNet(layers, in_channels, channels, num_classes, dropout)


def mobilenet_v2(
    width: float = 1.0, depth: float = 1.0, *, num_classes: int = 1000, in_channels: int = 3,
    dropout: float = 0.2, norm_eps: float = TORCH_BATCH_NORM[0],
    norm_momentum: float | None = TORCH_BATCH_NORM[1], padding: str = "symmetric",
    backend: str = "auto",
) -> MobileNet:  # fmt: skip
    """MobileNetV2 with ReLU6; arguments and errors as :func:`mobilenet_v1`.

    As torchvision has it, a ``width`` below 1 leaves the head's 1280 channels alone.
    """
    check_factors(width, depth)
    check_options(num_classes, in_channels, padding)
    common: dict[str, Any] = {
        "activation": "relu6", "padding": padding, "eps": norm_eps, "momentum": norm_momentum,
        "backend": check_name(backend),
    }  # fmt: skip
    channels = round_channels(STEM_CHANNELS * width)
    layers: list[nn.Module] = [ConvNormAct("conv2d", in_channels, channels, 3, 2, **common)]
    for expansion, base, repeats, stride in V2_STAGES:
        out = round_channels(base * width)
        for i in range(round_repeats(repeats * depth)):
            s = stride if i == 0 else 1
            layers.append(InvertedResidual(channels, out, s, expansion, **common))
            channels = out
    head = round_channels(V2_HEAD_CHANNELS * max(1.0, width))
    layers.append(ConvNormAct("pointwise", channels, head, **common))
    return MobileNet(layers, in_channels, head, num_classes, dropout)
