"""The figures that the paper prints: Tan and Le, arXiv 1905.11946v5, Tables 1, 2 and 3.

Every number in this file is the paper's; nothing here was counted or measured. Accuracies are on
ImageNet, in %.
"""

from __future__ import annotations

from typing import NamedTuple


class StageRow(NamedTuple):
    """Table 1: a stage's operator, the side of its input in pixels, channels and layers."""

    operator: str
    resolution: int
    channels: int
    layers: int


#: Table 1, EfficientNet-B0.
TABLE_1 = (
    StageRow("Conv3x3", 224, 32, 1),
    StageRow("MBConv1, k3x3", 112, 16, 1),
    StageRow("MBConv6, k3x3", 112, 24, 2),
    StageRow("MBConv6, k5x5", 56, 40, 2),
    StageRow("MBConv6, k3x3", 28, 80, 3),
    StageRow("MBConv6, k5x5", 14, 112, 3),
    StageRow("MBConv6, k5x5", 14, 192, 4),
    StageRow("MBConv6, k3x3", 7, 320, 1),
    StageRow("Conv1x1 & Pooling & FC", 7, 1280, 1),
)


class ModelRow(NamedTuple):
    """Table 2: accuracies, parameters in millions, FLOPS (multiply-adds) in billions, and ratios.

    Ratios are to the EfficientNet at the head of the row's group; None where the paper has none.
    """

    name: str
    top1: float
    top5: float
    params: float
    params_ratio: float
    flops: float | None
    flops_ratio: float | None


#: Table 2: groups of equal accuracy, the EfficientNet first.
TABLE_2 = (
    (
        ModelRow("EfficientNet-B0", 77.1, 93.3, 5.3, 1, 0.39, 1),
        ModelRow("ResNet-50", 76.0, 93.0, 26, 4.9, 4.1, 11),
        ModelRow("DenseNet-169", 76.2, 93.2, 14, 2.6, 3.5, 8.9),
    ),
    (
        ModelRow("EfficientNet-B1", 79.1, 94.4, 7.8, 1, 0.70, 1),
        ModelRow("ResNet-152", 77.8, 93.8, 60, 7.6, 11, 16),
        ModelRow("DenseNet-264", 77.9, 93.9, 34, 4.3, 6.0, 8.6),
        ModelRow("Inception-v3", 78.8, 94.4, 24, 3.0, 5.7, 8.1),
        ModelRow("Xception", 79.0, 94.5, 23, 3.0, 8.4, 12),
    ),
    (
        ModelRow("EfficientNet-B2", 80.1, 94.9, 9.2, 1, 1.0, 1),
        ModelRow("Inception-v4", 80.0, 95.0, 48, 5.2, 13, 13),
        ModelRow("Inception-ResNet-v2", 80.1, 95.1, 56, 6.1, 13, 13),
    ),
    (
        ModelRow("EfficientNet-B3", 81.6, 95.7, 12, 1, 1.8, 1),
        ModelRow("ResNeXt-101", 80.9, 95.6, 84, 7.0, 32, 18),
        ModelRow("PolyNet", 81.3, 95.8, 92, 7.7, 35, 19),
    ),
    (
        ModelRow("EfficientNet-B4", 82.9, 96.4, 19, 1, 4.2, 1),
        ModelRow("SENet", 82.7, 96.2, 146, 7.7, 42, 10),
        ModelRow("NASNet-A", 82.7, 96.2, 89, 4.7, 24, 5.7),
        ModelRow("AmoebaNet-A", 82.8, 96.1, 87, 4.6, 23, 5.5),
        ModelRow("PNASNet", 82.9, 96.2, 86, 4.5, 23, 6.0),
    ),
    (
        ModelRow("EfficientNet-B5", 83.6, 96.7, 30, 1, 9.9, 1),
        ModelRow("AmoebaNet-C", 83.5, 96.5, 155, 5.2, 41, 4.1),
    ),
    (ModelRow("EfficientNet-B6", 84.0, 96.8, 43, 1, 19, 1),),
    (
        ModelRow("EfficientNet-B7", 84.3, 97.0, 66, 1, 37, 1),
        ModelRow("GPipe", 84.3, 97.0, 557, 8.4, None, None),
    ),
)


class ScaledRow(NamedTuple):
    """Table 3: a network, how it was scaled, FLOPS (multiply-adds) in billions, top-1 accuracy."""

    network: str
    scaling: str
    flops: float
    top1: float


#: Table 3. The compound coefficients are given for MobileNetV1 only.
TABLE_3 = (
    ScaledRow("MobileNetV1", "baseline", 0.6, 70.6),
    ScaledRow("MobileNetV1", "width", 2.2, 74.2),
    ScaledRow("MobileNetV1", "resolution", 2.2, 72.7),
    ScaledRow("MobileNetV1", "compound", 2.3, 75.6),
    ScaledRow("MobileNetV2", "baseline", 0.3, 72.0),
    ScaledRow("MobileNetV2", "depth", 1.2, 76.8),
    ScaledRow("MobileNetV2", "width", 1.1, 76.4),
    ScaledRow("MobileNetV2", "resolution", 1.2, 74.8),
    ScaledRow("MobileNetV2", "compound", 1.3, 77.4),
    ScaledRow("ResNet-50", "baseline", 4.1, 76.0),
    ScaledRow("ResNet-50", "depth", 16.2, 78.1),
    ScaledRow("ResNet-50", "width", 14.7, 77.7),
    ScaledRow("ResNet-50", "resolution", 16.4, 77.5),
    ScaledRow("ResNet-50", "compound", 16.7, 78.8),
)
