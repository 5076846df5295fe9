"""Two runs of every op that reduces are equal in every bit, with more than one partial behind them.

In Triton's interpreter the second run takes the programs last to first.
"""

import os
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch

from tests.cases import BACKENDS
from tests.ops.calls import NAMES, arguments, call

pytestmark = [
    pytest.mark.parametrize("backend", BACKENDS),
    pytest.mark.parametrize("dtype", [torch.float32], ids=str),
]


def other_order() -> AbstractContextManager[None]:
    if os.environ.get("TRITON_INTERPRET") != "1":
        return nullcontext()
    from tests.t2 import interpreter

    return interpreter.reversed_programs()


@pytest.mark.parametrize("name", NAMES)
def test_two_runs_are_bit_equal(name: str, dtype: torch.dtype, backend: str) -> None:
    args = arguments(name, dtype)
    first = call(name, args, backend)
    with other_order():
        second = call(name, args, backend)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()
