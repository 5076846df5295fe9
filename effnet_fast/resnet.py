"""ResNet-50, scaled by width and depth: Table 3's third baseline.

Its stem and 1x1 convolutions are the library's fused ops; for its dense 3x3 and strided 1x1
convolutions the library has none, and they are PyTorch's on every backend. ``state_dict`` keys,
initial weights (bit for bit under the same seed) and results are torchvision's, whose ResNet-50 has
its strides in the 3x3 convolutions.

Source: He et al., arXiv 1512.03385, Table 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effnet_fast.architecture import (
    TORCH_BATCH_NORM,
    check_factors,
    check_options,
    round_channels,
    round_repeats,
)
from effnet_fast.backends import check_name
from effnet_fast.modules import ConvNorm

#: (inner channels, stride of the first block, blocks) of ResNet-50.
STAGES = ((64, 1, 3), (128, 2, 4), (256, 2, 6), (512, 2, 3))
STEM_CHANNELS = 64
#: A block's output has this many times its inner channels.
EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and the shortcut, a strided 1x1 ``downsample`` where the shape changes."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, downsample: bool, *,
        eps: float, momentum: float | None, backend: str,
    ) -> None:  # fmt: skip
        super().__init__()
        out = channels * EXPANSION
        shortcut = None
        if downsample:
            shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out, 1, stride, bias=False),
                nn.BatchNorm2d(out, eps, momentum),
            )
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels, eps, momentum)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, eps, momentum)
        self.conv3 = nn.Conv2d(channels, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out, eps, momentum)
        self.downsample = shortcut
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,K,P,Q]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        reduce = ConvNorm(self.conv1, self.bn1, "pointwise", "symmetric")
        expand = ConvNorm(self.conv3, self.bn3, "pointwise", "symmetric")
        y = reduce.run(x, "relu", self.backend)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(expand.run(y, "identity", self.backend) + shortcut, inplace=True)


class ResNet(nn.Module):
    """Stem (``conv1``, ``bn1``, max-pooling), ``layer1`` to ``layer4``, the map's mean, ``fc``.

    Attributes as :class:`effnet_fast.mobilenet.MobileNet`'s.
    """

    def __init__(
        self, width: float, depth: float, num_classes: int, in_channels: int, eps: float,
        momentum: float | None, backend: str,
    ) -> None:  # fmt: skip
        super().__init__()
        channels = round_channels(STEM_CHANNELS * width)
        self.conv1 = nn.Conv2d(in_channels, channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels, eps, momentum)
        for index, (base, stride, repeats) in enumerate(STAGES, 1):
            inner = round_channels(base * width)
            blocks = []
            for i in range(round_repeats(repeats * depth)):
                s = stride if i == 0 else 1
                down = s != 1 or channels != inner * EXPANSION
                blocks.append(
                    Bottleneck(
                        channels, inner, s, down, eps=eps, momentum=momentum, backend=backend
                    )
                )
                channels = inner * EXPANSION
            self.add_module(f"layer{index}", nn.Sequential(*blocks))
        self.in_channels, self.num_features, self.num_classes = in_channels, channels, num_classes
        self.fc = nn.Linear(channels, num_classes) if num_classes else nn.Identity()
        self.backend = backend
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> the last feature map [N, num_features, h, w]."""
        x = ConvNorm(self.conv1, self.bn1, "conv2d", "symmetric").run(x, "relu", self.backend)
        x = F.max_pool2d(x, 3, 2, 1)
        for index in range(1, len(STAGES) + 1):
            x = self.get_submodule(f"layer{index}")(x)
        return x

    def forward_head(self, x: Tensor) -> Tensor:
        """A feature map -> logits [N, num_classes]; pooled features for ``num_classes`` 0."""
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W], normalised, of any size -> logits."""
        return self.forward_head(self.forward_features(x))


def resnet50(
    width: float = 1.0, depth: float = 1.0, *, num_classes: int = 1000, in_channels: int = 3,
    norm_eps: float = TORCH_BATCH_NORM[0], norm_momentum: float | None = TORCH_BATCH_NORM[1],
    backend: str = "auto",
) -> ResNet:  # fmt: skip
    """ResNet-50.

    Args:
        width: of all channels, the stem's and the inner ones, rounded to multiples of 8.
        depth: of every stage's blocks, rounded up.
        num_classes, in_channels, norm_eps, norm_momentum, backend: as in
            :class:`effnet_fast.EfficientNet`.

    Raises:
        ValueError: a value is out of range; the message says which.
    """
    check_factors(width, depth)
    check_options(num_classes, in_channels, "symmetric")
    return ResNet(
        width, depth, num_classes, in_channels, norm_eps, norm_momentum, check_name(backend)
    )
