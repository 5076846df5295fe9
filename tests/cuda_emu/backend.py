"""The backend "cuda" on CPU tensors: the very adapters and ops over an emulated native module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from effnet_fast import limits
from effnet_fast.ops import library, on_cuda
from effnet_fast.ops.on_cuda import bridge

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


@contextmanager
def emulated(native: ModuleType, order: str = "forward") -> Iterator[list[Tensor]]:
    """Within the block, ``backend="cuda"`` runs ``native`` on CPU tensors, in this thread order.

    Yields the list to which every op's results are added.
    """
    results: list[Tensor] = []

    def recorded(op: str) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            reason = limits.cuda(op, args)
            assert reason is None, reason
            out = getattr(on_cuda, op)(*args)
            results.extend([out] if isinstance(out, Tensor) else out)
            return out

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
        yield results


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in type, shape and every bit."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    integer = {2: torch.int16, 4: torch.int32}[a.element_size()]
    return torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))


def in_every_order(
    native: ModuleType, test: Callable[[], None], orders: tuple[str, ...] = ORDERS
) -> None:
    """Run ``test`` once for each of ``orders``: it passes, and all results are bit-equal."""
    runs = []
    for order in orders:
        torch.manual_seed(0)
        with emulated(native, order) as results:
            test()
        runs.append(results)
    for order, results in zip(orders[1:], runs[1:], strict=True):
        assert len(results) == len(runs[0])
        for i, (ours, first) in enumerate(zip(results, runs[0], strict=True)):
            assert same_bits(ours, first), f"result {i} depends on the order of threads: {order}"
