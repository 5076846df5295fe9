"""The one error rule: at most twice stock PyTorch's own error, measured against fp64 truth.

truth  the exact result: fp64 arithmetic on the already-rounded inputs
base   stock eager PyTorch in the type under test
ours   what is under test

With E the largest absolute error and R the rms error over the rms of the truth::

    E(ours) <= 2 E(base) + 2 ulp(max |truth|)      R(ours) <= 2 R(base) + eps(type)

A reduction over n terms may also be summed in another order: E gains 4 eps32 sqrt(n) rms(terms).
A factor here may be raised only with a measured ratio and its reason beside it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPS32 = torch.finfo(torch.float32).eps


def ulp(value: float, dtype: torch.dtype) -> float:
    """The spacing of ``dtype``'s numbers at ``value``."""
    info = torch.finfo(dtype)
    return info.eps * 2.0 ** math.floor(math.log2(max(abs(value), info.tiny)))


def _rms(t: Tensor) -> float:
    return t.pow(2).mean().sqrt().item()


def violations(
    ours: Tensor, base: Tensor, truth: Tensor, *, terms: Tensor | None = None, n: int = 0
) -> list[str]:
    """What the rule holds against ``ours``, in words; empty if nothing.

    ``terms`` (a sample of the summands, exact) and ``n`` (how many go into one sum) are given for
    reductions. Shape, type and finiteness come first: where the truth is finite ours must be.
    """
    if ours.shape != truth.shape:
        return [f"shape {tuple(ours.shape)}, expected {tuple(truth.shape)}"]
    if ours.dtype != base.dtype:
        return [f"type {ours.dtype}, expected {base.dtype}"]
    if truth.dtype != torch.float64:
        raise TypeError("truth must be fp64")
    finite = torch.isfinite(truth)
    wrong = ~torch.isfinite(ours) & finite
    if wrong.any():
        return [f"{int(wrong.sum())} of {ours.numel()} values are not finite"]
    if not torch.equal(ours[~finite].double().nan_to_num(), truth[~finite].nan_to_num()):
        return ["infinities or NaN of the truth are not there"]
    ours, base, truth = ours[finite], base[finite], truth[finite]
    if truth.numel() == 0:
        return []
    error, stock = ours.double() - truth, base.double() - truth
    slack = 0.0 if terms is None else 4 * EPS32 * math.sqrt(n) * _rms(terms.double())
    found = []
    e, e_base = error.abs().max().item(), stock.abs().max().item()
    bound = 2 * e_base + 2 * ulp(truth.abs().max().item(), ours.dtype) + slack
    if not e <= bound:
        found.append(f"largest error {e:.3g} exceeds {bound:.3g} (stock: {e_base:.3g})")
    scale = max(_rms(truth), torch.finfo(torch.float64).tiny)
    r, r_base = _rms(error) / scale, _rms(stock) / scale
    bound = 2 * r_base + torch.finfo(ours.dtype).eps + slack / scale
    if not r <= bound:
        found.append(f"relative rms error {r:.3g} exceeds {bound:.3g} (stock: {r_base:.3g})")
    return found


def assert_within(
    ours: Tensor, base: Tensor, truth: Tensor, what: str = "result", **reduction: object
) -> None:
    """Fail with every violation of the rule, prefixed by ``what``."""
    found = violations(ours, base, truth, **reduction)  # type: ignore[arg-type]
    assert not found, f"{what}: " + "; ".join(found)
