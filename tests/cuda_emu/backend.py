"""The backend "cuda" on CPU tensors: the very adapters and ops over an emulated native module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from effnet_fast import limits
from effnet_fast.ops import library, on_cuda
from effnet_fast.ops.on_cuda import bridge

#: The arguments that an op writes, by their places.
UPDATED = {"bn_finalize": (3, 4)}
#: Orders in which threads and blocks run; results must not depend on it, to the bit.
ORDERS = ("forward", "reverse", "random:1")


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """``torch.empty`` gives NaN, so that an element that no kernel wrote shows."""
    before = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


class Call(NamedTuple):
    """One op's call: its arguments as they were before it, what it returned, and all it wrote."""

    op: str
    args: tuple[Any, ...]
    returned: Any
    results: list[Tensor]

    @staticmethod
    def make(op: str, args: tuple[Any, ...]) -> Call:
        """Call the op. What it updates in place is copied, before and after."""
        before = list(args)
        for i in UPDATED.get(op, ()):
            before[i] = None if args[i] is None else args[i].clone()
        out = getattr(on_cuda, op)(*args)
        written = [args[i].clone() for i in UPDATED.get(op, ()) if args[i] is not None]
        results = [out] if isinstance(out, Tensor) else list(out)
        return Call(op, tuple(before), out, results + written)


@contextmanager
def emulated(native: ModuleType, order: str = "forward") -> Iterator[list[Call]]:
    """Within the block, ``backend="cuda"`` runs ``native`` on CPU tensors, in this thread order.

    Yields the list to which every op's call is added.
    """
    calls: list[Call] = []

    def recorded(op: str) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            reason = limits.cuda(op, args)
            assert reason is None, reason
            calls.append(Call.make(op, args))
            return calls[-1].returned

        return run

    cuda = SimpleNamespace(**{op: recorded(op) for op in on_cuda.__all__})
    native.emulator_set_order(order)
    with (
        mock.patch.object(bridge, "native", return_value=native),
        mock.patch.object(bridge, "place", return_value=(0, 0)),
        mock.patch.object(library, "choose", lambda op, backend, *rest: backend),
        mock.patch.object(library, "_implementation", return_value=cuda),
        poisoned_memory(),
    ):
        yield calls


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in type, shape and every bit."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    integer = {2: torch.int16, 4: torch.int32}[a.element_size()]
    return torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))


def in_every_order(
    native: ModuleType, test: Callable[[], None], orders: tuple[str, ...] = ORDERS
) -> None:
    """``test`` passes in the first of ``orders``, and its ops' results are the same in all others.

    To the bit, so that what the test found of the first holds of all: the others only repeat the
    ops, with the very arguments.
    """
    torch.manual_seed(0)
    with emulated(native, orders[0]) as calls:
        test()
    for order in orders[1:]:
        with emulated(native, order):
            repeated = [Call.make(call.op, call.args) for call in calls]
        for first, again in zip(calls, repeated, strict=True):
            for i, (a, b) in enumerate(zip(first.results, again.results, strict=True)):
                what = f"result {i} of {first.op} depends on the order of threads: {order}"
                assert same_bits(a, b), what
        calls = repeated
