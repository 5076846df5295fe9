"""How many kernels a forward pass in inference launches: an op of ours is one, and so is each of
torch's that computes. Views launch nothing."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import effnet_fast as ef
from effnet_fast.architecture import VARIANTS, stages


class Launches(TorchDispatchMode):
    """Counts what is dispatched, less what only makes views."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.ops[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b7", "efficientnet_lite0"])
def test_inference_is_one_launch_per_op(name: str) -> None:
    with torch.device("meta"):
        model = ef.create_model(name).eval().bfloat16()
    x = torch.empty(2, 3, 64, 64, device="meta", dtype=torch.bfloat16)
    with torch.no_grad(), Launches() as launches:
        model(x)
    blocks = sum(stage.layers for stage in stages(VARIANTS[name]))
    assert launches.ops.total() <= 4 * blocks + 4, launches.ops
