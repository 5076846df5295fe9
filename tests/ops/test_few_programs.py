"""Triton's kernels where a program has many items of work, as every large map has it on a GPU.

Launchers cut small maps so that no program gets a second tile, and what a loop carries from one to
the next is never seen. Here they believe in a machine with room for three programs.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from tests.cases import BACKENDS
from tests.error_rule import assert_within
from tests.ops.calls import NAMES, arguments, call

FEW = 3
SMALL_BLOCKS = {"block_m": 16, "block_p": 8, "programs": FEW, "tiles": FEW}
if "triton" not in BACKENDS:
    pytest.skip("Triton is not under test in this tier", allow_module_level=True)
pytestmark = [
    pytest.mark.parametrize("backend", ["triton"]),
    pytest.mark.parametrize("dtype", [torch.float32], ids=str),
]


@pytest.fixture(autouse=True)
def _room_for_few(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    from effnet_fast.kernels import depthwise, depthwise_bwd, pointwise, pointwise_bwd, tuning

    monkeypatch.setattr(depthwise, "MAX_PARTIALS", FEW)
    monkeypatch.setattr(depthwise_bwd, "PROGRAMS", FEW)
    monkeypatch.setattr(pointwise, "PROGRAMS", FEW)
    monkeypatch.setattr(pointwise_bwd, "PROGRAMS", dict.fromkeys(pointwise_bwd.PROGRAMS, FEW))

    def pick(op: str, key: str, default: Any) -> Any:
        return default._replace(**{k: v for k, v in SMALL_BLOCKS.items() if k in default._fields})

    monkeypatch.setattr(tuning, "pick", pick)


@pytest.mark.parametrize("name", NAMES)
def test_many_tiles_to_a_program(name: str, dtype: torch.dtype, backend: str) -> None:
    """Against the reference: in fp64 the truth, in the type itself the base."""
    args = arguments(name, dtype)
    ours = call(name, args, backend)
    base = call(name, args, "reference")
    exact = tree_map(lambda v: v.double() if isinstance(v, Tensor) else v, args)
    truth = call(name, exact, "reference")
    for i, (mine, theirs, true) in enumerate(zip(ours, base, truth, strict=True)):
        n = max(args[0].numel() // max(true.numel(), 1), 1)
        terms = true / n**0.5 if true.numel() else None
        assert_within(mine, theirs, true, f"result {i}", terms=terms, n=n)
