"""Tables 1, 2 and 3 and the family's distance from the scaling rule, counted as they are asked for.

Nothing runs: every network is built on torch's "meta" device and counted by
:func:`effnet_fast.profile.count`. Networks that are not this library's are torchvision's or timm's,
where installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from effnet_fast.architecture import variant
from effnet_fast.mobilenet import mobilenet_v1, mobilenet_v2
from effnet_fast.models import create_model
from effnet_fast.modules import MBConv
from effnet_fast.profile import LayerRow, count
from effnet_fast.resnet import resnet50
from effnet_fast.scaling import CompoundScaling, deviations
from effnet_fast.stock import import_torchvision
from effnet_fast.tables.layout import Column, Table, billions, millions, percent, times
from effnet_fast.tables.paper import TABLE_1, TABLE_2, TABLE_3


class Source(NamedTuple):
    """Where a network comes from, what it is called there, and the side of its image, pixels."""

    library: str
    name: str
    resolution: int
    build: Callable[[], nn.Module]


def _torchvision(name: str, resolution: int) -> Source:
    return Source(
        "torchvision", name, resolution, lambda: getattr(import_torchvision().models, name)()
    )


def _timm(name: str, resolution: int) -> Source:
    def build() -> nn.Module:
        import_torchvision()  # timm imports it
        model: nn.Module = importlib.import_module("timm").create_model(name)
        return model

    return Source("timm", name, resolution, build)


def _densenet264() -> nn.Module:
    """Table 1 of arXiv 1608.06993, of torchvision's layers."""
    model: nn.Module = import_torchvision().models.DenseNet(32, (6, 12, 64, 48), 64)
    return model


#: Table 2's networks that can be counted, each at the resolution of its published accuracy.
SOURCES = {
    "ResNet-50": Source("effnet_fast", "resnet50", 224, resnet50),
    "ResNet-152": _torchvision("resnet152", 224),
    "DenseNet-169": _torchvision("densenet169", 224),
    "DenseNet-264": Source("torchvision", "DenseNet(32, (6, 12, 64, 48))", 224, _densenet264),
    "Inception-v3": _timm("inception_v3", 299),
    "Xception": _timm("legacy_xception", 299),
    "Inception-v4": _timm("inception_v4", 299),
    "Inception-ResNet-v2": _timm("inception_resnet_v2", 299),
    "ResNeXt-101": _torchvision("resnext101_64x4d", 320),
    "SENet": _timm("legacy_senet154", 320),
    "NASNet-A": _timm("nasnetalarge", 331),
    "PNASNet": _timm("pnasnet5large", 331),
}


def _family(name: str) -> Source:
    """EfficientNet-B3 as this library's."""
    own = f"efficientnet_{name[-2:].lower()}"
    return Source("effnet_fast", own, variant(own).resolution, lambda: create_model(own))


def table_1() -> Table:
    """The stages of EfficientNet-B0."""
    with torch.device("meta"):
        model = create_model("efficientnet_b0")
        x = torch.empty(1, 3, 224, 224)
    layers = count(model, 224).layers
    rows = []
    for index, (paper, stage) in enumerate(zip(TABLE_1, model.features, strict=True)):
        side = x.shape[-1]
        x = stage(x)
        blocks = sum(isinstance(m, MBConv) for m in stage.modules()) or 1
        last = index == len(TABLE_1) - 1  # the classifier counts with the head
        prefixes = (f"features.{index}.", *(("classifier.",) if last else ()))
        own = [row for path, row in layers.items() if path.startswith(prefixes)]
        counted = (side, x.shape[1], blocks)
        rows.append(
            {
                "stage": index + 1, "operator": paper.operator, "resolution": side,
                "channels": x.shape[1], "layers": blocks, **_sums(own),
                "as_in_paper": counted == paper[1:],
            }
        )  # fmt: skip
    columns = (
        Column("stage", "stage"), Column("operator", "operator"),
        Column("resolution", "resolution"), Column("channels", "channels"),
        Column("layers", "layers"), Column("parameters", "params", "{:,}".format),
        Column("mult-adds", "macs", "{:,}".format),
        Column("activations", "activations", "{:,}".format),
        Column("as in the paper", "as_in_paper", lambda same: "yes" if same else "NO"),
    )  # fmt: skip
    return Table("Table 1. EfficientNet-B0; resolution is the input's side", columns, rows)


def _sums(layers: list[LayerRow]) -> dict[str, int]:
    return {
        "params": sum(row.params for row in layers),
        "macs": sum(row.macs for row in layers),
        "activations": sum(row.activations for row in layers),
    }


def table_2() -> Table:
    """Parameters and multiply-adds of B0 to B7 and of what the paper compares them with."""
    rows: list[dict[str, Any]] = []
    for group in TABLE_2:
        first: dict[str, Any] = {}
        for paper in group:
            found = _counted(_family(paper.name) if not first else SOURCES.get(paper.name))
            row = {f"paper_{key}": value for key, value in paper._asdict().items()} | found
            row["name"] = row.pop("paper_name")
            for key in ("params", "flops"):
                known = first.get(key) or row[key]
                row[f"{key}_ratio"] = row[key] / known if row[key] and known else None
            first = first or row
            rows.append(row)
    columns = (
        Column("model", "name"), Column("top-1", "paper_top1"), Column("top-5", "paper_top5"),
        Column("params, paper", "paper_params", "{:g} M".format),
        Column("counted", "params", millions),
        Column("ratio, paper", "paper_params_ratio", times),
        Column("counted", "params_ratio", times),
        Column("FLOPS, paper", "paper_flops", "{:g} B".format),
        Column("counted", "flops", billions),
        Column("ratio, paper", "paper_flops_ratio", times),
        Column("counted", "flops_ratio", times),
        Column("counted from", "source"),
    )  # fmt: skip
    notes = (
        "FLOPS are multiply-adds, and accuracies the paper's. What is counted is within 5 % of the "
        "paper but for three networks:",
        "SENet: the paper's 146 M are not the public SENet-154's 115 M; the multiply-adds agree. "
        "Inception-v4: the public model is smaller by a tenth.",
        "PNASNet: Real et al. (arXiv 1802.01548, Table 2) list 25.0 B, as counted.",
    )
    return Table("Table 2. EfficientNets against networks of equal accuracy", columns, rows, notes)


def _counted(source: Source | None) -> dict[str, Any]:
    if source is None:
        return {"params": None, "flops": None, "source": "neither in torchvision nor in timm"}
    try:
        with torch.device("meta"):
            model = source.build()
    except ImportError:
        return {"params": None, "flops": None, "source": f"{source.library} is not installed"}
    profile = count(model, source.resolution)
    where = f"{source.library} {source.name} at {source.resolution}"
    return {"params": profile.params, "flops": profile.macs, "source": where}


_BASELINES: dict[str, Callable[[float, float], nn.Module]] = {
    "MobileNetV1": mobilenet_v1,
    "MobileNetV2": mobilenet_v2,
    "ResNet-50": resnet50,
}
_SINGLE = {"baseline": (1, 1, 224), "depth": (4, 1, 224), "width": (1, 2, 224),
           "resolution": (1, 1, 448)}  # fmt: skip
#: 224 * 1.3 = 291.2 pixels: 288 is the multiple of 32, that of MobileNet's strides, nearest to it.
_COMPOUND = {"MobileNetV1": (1.4, 1.2, 288), "MobileNetV2": (1.4, 1.2, 288),
             "ResNet-50": (1.4, 1.2, 291)}  # fmt: skip


def table_3() -> Table:
    """MobileNets and ResNet-50, scaled in one dimension and in all."""
    rows = []
    for paper in TABLE_3:
        compound = paper.scaling == "compound"
        depth, width, side = _COMPOUND[paper.network] if compound else _SINGLE[paper.scaling]
        with torch.device("meta"):
            model = _BASELINES[paper.network](width, depth)
        profile = count(model, side)
        rows.append(
            {
                "network": paper.network, "scaling": paper.scaling, "depth": depth, "width": width,
                "resolution": side, "paper_top1": paper.top1, "paper_flops": paper.flops * 1e9,
                "flops": profile.macs, "params": profile.params,
                "difference": profile.macs / (paper.flops * 1e9) - 1,
            }
        )  # fmt: skip
    columns = (
        Column("network", "network"), Column("scaled", "scaling"), Column("depth", "depth"),
        Column("width", "width"), Column("resolution", "resolution"), Column("top-1", "paper_top1"),
        Column("FLOPS, paper", "paper_flops", lambda n: f"{n / 1e9:.1f} B"),
        Column("counted", "flops", billions), Column("difference", "difference", percent),
        Column("parameters", "params", millions),
    )  # fmt: skip
    notes = (
        "FLOPS are multiply-adds, and accuracies the paper's, which prints one digit: 0.6 B is "
        "0.55 to 0.65.",
        "ResNet-50: the paper's figures for depth and width look exchanged. Within 1 %, four times "
        "the depth counts to its 14.7 B and twice the width to its 16.2 B.",
        "Compound: the paper gives coefficients for MobileNetV1 only (1.4, 1.2, 1.3), taken here "
        "for all. 1.3 times 224 is 291.2 pixels: 288, a multiple of 32, for the MobileNets, and "
        "291 for ResNet-50.",
    )
    return Table("Table 3. MobileNets and ResNet-50 scaled up", columns, rows, notes)


def table_of_deviations() -> Table:
    """How far B0 to B7 are from the formula with the paper's coefficients."""
    rule = CompoundScaling()
    rows = []
    for d in deviations(rule):
        v = variant(d.name)
        rows.append(
            {
                "name": d.name, "phi": d.phi, "depth": v.depth, "width": v.width,
                "resolution": v.resolution, "dropout": v.dropout, "depth_off": d.depth,
                "width_off": d.width, "resolution_off": d.resolution,
            }
        )  # fmt: skip
    columns = (
        Column("model", "name"), Column("depth", "depth"), Column("width", "width"),
        Column("resolution", "resolution"), Column("dropout", "dropout"),
        Column("phi", "phi", "{:.2f}".format), Column("depth off", "depth_off", percent),
        Column("width off", "width_off", percent),
        Column("resolution off", "resolution_off", percent),
    )  # fmt: skip
    notes = (
        f"The formula: depth {rule.alpha}^phi, width {rule.beta}^phi, resolution 224 * "
        f"{rule.gamma}^phi, and phi what fits all three best. Off: published over formula, less 1.",
    )
    return Table("B0 to B7 as published, and their distance from the formula", columns, rows, notes)


#: What ``effnet-fast tables`` prints, by the name that asks for it.
TABLES: dict[str, Callable[[], Table]] = {
    "1": table_1,
    "2": table_2,
    "3": table_3,
    "scaling": table_of_deviations,
}
