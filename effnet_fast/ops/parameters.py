"""Parameters of any stride, as most kernels read them: dense.

A parameter is small beside any map: of one that is a strided slice they are given a copy. An
activation is never copied; :mod:`effnet_fast.limits` says which layouts a backend takes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def contiguous(v: Tensor | None) -> Tensor | None:
    """``v`` itself, or of a strided slice a copy."""
    return None if v is None else v.contiguous()


def all_contiguous(bn: Sequence[Tensor | None]) -> list[Tensor | None]:
    """:func:`contiguous` of each, as of a batch norm's weight, bias, mean and variance."""
    return [contiguous(v) for v in bn]


def write_back(v: Tensor | None, dense: Tensor | None) -> None:
    """Take over into ``v`` what was written to ``dense``, which is :func:`contiguous` of it."""
    if v is not None and dense is not None and dense is not v:
        v.copy_(dense)
