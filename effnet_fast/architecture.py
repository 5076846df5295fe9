"""What an EfficientNet is made of: the baseline's seven stages and the coefficients of the family.

Source: Tan and Le, arXiv 1905.11946, Table 1 and section 3.3; the Lite variants are those of
tensorflow/tpu's efficientnet/lite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from effnet_fast.ops.checks import PADDINGS


@dataclass(frozen=True)
class Stage:
    """``layers`` MBConv blocks; the first has the stride and the change of channels."""

    kernel: int
    stride: int
    expansion: int
    in_channels: int
    out_channels: int
    layers: int


#: EfficientNet-B0.
BASELINE = (
    Stage(3, 1, 1, 32, 16, 1),
    Stage(3, 2, 6, 16, 24, 2),
    Stage(5, 2, 6, 24, 40, 2),
    Stage(3, 2, 6, 40, 80, 3),
    Stage(5, 1, 6, 80, 112, 3),
    Stage(5, 2, 6, 112, 192, 4),
    Stage(3, 1, 6, 192, 320, 1),
)
#: The head's 1x1 convolution widens the last stage's channels by this (320 -> 1280 in B0).
HEAD_EXPANSION = 4
#: Batch norm of the TensorFlow originals, which torchvision keeps for B5 to B7.
TF_BATCH_NORM = (1e-3, 0.01)
TORCH_BATCH_NORM = (1e-5, 0.1)


def check_factors(width: float, depth: float) -> None:
    """Both are positive numbers, else a ValueError says which is not."""
    for name, factor in (("width", width), ("depth", depth)):
        if not 0 < factor < math.inf:
            raise ValueError(f"{name} must be a positive number, got {factor}")


@dataclass(frozen=True)
class Variant:
    """Coefficients of one member of the family; batch_norm is (eps, momentum).

    ``lite``: relu6, no squeeze-and-excitation, and the stem, the head and the depth of the first
    and last stage are not scaled.
    """

    width: float
    depth: float
    resolution: int
    dropout: float
    batch_norm: tuple[float, float] = TORCH_BATCH_NORM
    lite: bool = False

    def __post_init__(self) -> None:
        check_factors(self.width, self.depth)
        if self.resolution < 1:
            raise ValueError(f"resolution must be >= 1 pixel, got {self.resolution}")


VARIANTS = {
    "efficientnet_b0": Variant(1.0, 1.0, 224, 0.2),
    "efficientnet_b1": Variant(1.0, 1.1, 240, 0.2),
    "efficientnet_b2": Variant(1.1, 1.2, 260, 0.3),
    "efficientnet_b3": Variant(1.2, 1.4, 300, 0.3),
    "efficientnet_b4": Variant(1.4, 1.8, 380, 0.4),
    "efficientnet_b5": Variant(1.6, 2.2, 456, 0.4, TF_BATCH_NORM),
    "efficientnet_b6": Variant(1.8, 2.6, 528, 0.5, TF_BATCH_NORM),
    "efficientnet_b7": Variant(2.0, 3.1, 600, 0.5, TF_BATCH_NORM),
    "efficientnet_lite0": Variant(1.0, 1.0, 224, 0.2, TF_BATCH_NORM, lite=True),
    "efficientnet_lite1": Variant(1.0, 1.1, 240, 0.2, TF_BATCH_NORM, lite=True),
    "efficientnet_lite2": Variant(1.1, 1.2, 260, 0.3, TF_BATCH_NORM, lite=True),
    "efficientnet_lite3": Variant(1.2, 1.4, 280, 0.3, TF_BATCH_NORM, lite=True),
    "efficientnet_lite4": Variant(1.4, 1.8, 300, 0.3, TF_BATCH_NORM, lite=True),
}


def variant(name: str) -> Variant:
    """The row of ``name``; a ValueError lists the known names."""
    if name not in VARIANTS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(VARIANTS)}")
    return VARIANTS[name]


def round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of ``divisor`` that is not more than 10 % below ``channels``."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def round_repeats(layers: float) -> int:
    """``layers`` rounded up; 1e-9 more than a whole number is the rounding error of a product."""
    return math.ceil(layers - 1e-9)


def check_options(num_classes: int, in_channels: int, padding: str) -> None:
    """What every model is built with is in range, else a ValueError says what is not."""
    if padding not in PADDINGS:
        raise ValueError(f"unknown padding {padding!r}; known: {', '.join(PADDINGS)}")
    if in_channels < 1 or num_classes < 0:
        raise ValueError(
            f"in_channels must be >= 1 and num_classes >= 0, got {in_channels}, {num_classes}"
        )


def stages(v: Variant) -> tuple[Stage, ...]:
    """The baseline's stages scaled by the coefficients of ``v``."""
    scaled: list[Stage] = []
    for i, s in enumerate(BASELINE):
        fixed_depth = v.lite and i in (0, len(BASELINE) - 1)
        scaled.append(
            replace(
                s,
                in_channels=stem_channels(v) if i == 0 else scaled[-1].out_channels,
                out_channels=round_channels(s.out_channels * v.width),
                layers=s.layers if fixed_depth else round_repeats(s.layers * v.depth),
            )
        )
    return tuple(scaled)


def stem_channels(v: Variant) -> int:
    """Output channels of the stem."""
    base = BASELINE[0].in_channels
    return base if v.lite else round_channels(base * v.width)


def head_channels(v: Variant) -> int:
    """Output channels of the head, which is what the classifier sees."""
    base = BASELINE[-1].out_channels
    return HEAD_EXPANSION * (base if v.lite else round_channels(base * v.width))
