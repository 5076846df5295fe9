"""The schedules whose bytes the ledger compares, and the budgets they are held against.

* `eager`: torchvision's model as it ships. Its SiLU is in place, and in training autograd copies
  the argument of an in-place SiLU before it is overwritten: 7 % of the step is that copy.
* `eager-outplace`: the same with `inplace=False` on every activation. It moves less in training
  and the same in inference, and saves the same: the fairer baseline of a training step.
* `ours`: `effnet_fast.create_model`, where one operator is one pass.
* `compile`: torch.compile's saved activations only, since its traffic is up to Inductor's fusions.
  It takes 8 s for B0 and 5 minutes for all, and the cut changes between torch versions.

The budget of an eager training step is a model of one: activations out of place, and the
gradient of squeeze-excite's mean applied as a broadcast, where eager writes it at full size (`div`)
and reads it back (`add`). Less those two passes, `eager-outplace` is within 1 % of that
budget for B0 to B7; eager inference is within 0.2 %, saved activations within 1 % (the budget
has the input image among them, the ledger has not).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.ledger import BATCHES, batch, bytes_of, on_meta
from effnet_fast.cli.providers import own
from effnet_fast.stock import import_torchvision

RESOLUTIONS = {
    "efficientnet_b0": 224,
    "efficientnet_b1": 240,
    "efficientnet_b2": 260,
    "efficientnet_b3": 300,
    "efficientnet_b4": 380,
    "efficientnet_b5": 456,
    "efficientnet_b6": 528,
    "efficientnet_b7": 600,
}

# MB per image in bf16 at native resolution, B0 to B7, None where no figure was derived: what a
# schedule as named would move, from the layers' shapes. Scheme c applies the gate while the
# project convolution loads; T2 writes and saves raw convolution outputs only, and "fused"
# computes both gradients of a pointwise convolution in one pass where they fit on chip.
_Figures = tuple[float | None, ...]
BUDGETS: dict[str, dict[str, _Figures]] = {
    "inference": {
        "eager": (94, 155, 198, 340, 713, 1438, 2439, 4255),
        "scheme c": (27.5, 44.9, 57.1, 98.4, 205, 412, 698, 1217),
    },
    "training": {
        "eager": (304, 501, 639, 1098, 2308, 4668, 7907, 13846),
        "T2": (112, 183, 233, 402, 834, 1677, 2844, 4940),
        "T2 fused": (93, 152, 194, 333, 695, 1406, 2376, 4179),
    },
    "saved": {
        "eager": (44.2, 71.6, 91, 156, 327, 655, 1109, 1925),
        "compile": (26.8, 43.3, None, None, 197, None, None, 1158),
        "T2": (14.9, 23.8, 30.3, 52.0, 108, 214, 362, 626),
    },
}


def _eager(name: str, inplace: bool) -> nn.Module:
    model: nn.Module = getattr(import_torchvision().models, name)()
    for module in model.modules():
        if isinstance(module, nn.SiLU):
            module.inplace = inplace
    return model


# What the ledger can run; `compile` is not among them, as only its saved bytes are known.
SCHEDULES: dict[str, Callable[[str], nn.Module]] = {
    "eager": lambda name: _eager(name, inplace=True),
    "eager-outplace": lambda name: _eager(name, inplace=False),
    "ours": own,
}


def compiled_saved(build: Callable[[], nn.Module], shape: tuple[int, int, int]) -> int:
    """Bytes per image of shape (C, H, W) which torch.compile saves for backward in bf16.

    AOTAutograd traces the joint graph with Inductor's decompositions and the min-cut partitioner
    cuts it; nothing is compiled. The cut is exact for the torch version at hand and changes
    between versions. Counted is what the backward graph takes from the forward graph, less
    parameters, buffers and the input.
    """
    large, small = (
        _cut(on_meta(build, torch.bfloat16), batch(n, shape, torch.bfloat16)) for n in BATCHES
    )
    return large - small


def _cut(model: nn.Module, x: Tensor) -> int:
    # Imported here: Inductor's decompositions take seconds, which other schedules need not pay.
    from torch._functorch.aot_autograd import aot_module
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    saved: list[int] = []

    def partition(joint: torch.fx.GraphModule, inputs: Any, **options: Any) -> Any:
        forward, backward = min_cut_rematerialization_partition(joint, inputs, **options)
        nodes = [node for node in backward.graph.nodes if node.op == "placeholder"]
        values = [n.meta["val"] for n in nodes if not n.name.startswith(("primals", "tangents"))]
        saved.append(sum(bytes_of(value) for value in values if isinstance(value, Tensor)))
        return forward, backward

    compiled = aot_module(
        model.train(),
        fw_compiler=lambda graph, inputs: graph,
        partition_fn=partition,
        decompositions=select_decomp_table(),
    )
    compiled(x)
    (total,) = saved
    return total
