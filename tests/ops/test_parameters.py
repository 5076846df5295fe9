"""Parameters of any stride: as a slice of a larger tensor they give the bits of a dense tensor.

Whoever keeps several layers' parameters in one tensor brings such slices.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from effnet_fast.ops import library as op
from tests.cases import BACKENDS, FLOATS, batch_norm, gradient_like

pytestmark = [
    pytest.mark.parametrize("backend", BACKENDS),
    pytest.mark.parametrize("dtype", FLOATS, ids=str),
]

N, C, K, R, H, W = 3, 24, 16, 6, 5, 7
PADS, EPS = [1, 1, 1, 1], 1e-3


def sliced(v: Tensor) -> Tensor:
    """``v`` in strides twice as long, with NaN in between."""
    larger = torch.full((*v.shape, 2), float("nan"), dtype=v.dtype)
    return larger[..., 0].copy_(v)


def in_fp64(a: Any) -> Any:
    """An argument for the reference in fp64."""
    if isinstance(a, list):
        return [in_fp64(v) for v in a]
    if isinstance(a, Tensor):
        return a.double()
    return torch.float64 if a is torch.float32 else a


def both_ways(name: str, *args: Any, parameters: tuple[int, ...], backend: str) -> None:
    """The op's results, and its parameters afterwards, for dense parameters and for slices."""
    if backend == "reference":  # torch sums the products of a slice in another order
        args = tuple(map(in_fp64, args))
    runs = []
    for form in (torch.clone, sliced):
        given = list(args)
        for i in parameters:
            of_list = isinstance(args[i], list)
            given[i] = [form(v) for v in args[i]] if of_list else form(args[i])
        result = getattr(op, name)(*given, backend)
        results = [result] if isinstance(result, Tensor) else list(result)
        runs.append(results + [given[i] for i in parameters if isinstance(given[i], Tensor)])
    for dense, strided in zip(*runs, strict=True):
        assert torch.isfinite(dense).all()
        assert torch.equal(dense.float(), strided.float()), name


def test_convolutions(dtype: torch.dtype, backend: str) -> None:
    """Weights, and the batch norm of an epilogue."""
    image, x = torch.randn(N, 3, H, W).to(dtype), gradient_like((N, C, H, W), dtype)
    w_s, w_d = torch.randn(K, 3, 3, 3).to(dtype), torch.randn(C, 1, 3, 3).to(dtype)
    w_p, norm = torch.randn(K, C, 1, 1).to(dtype), batch_norm(K)
    both = {"parameters": (1, 4), "backend": backend}
    both_ways("conv2d", image, w_s, 2, PADS, norm, EPS, "relu", False, **both)
    both["parameters"] = (1, 2)
    both_ways("pointwise_pool", x, w_p, norm, EPS, "relu", **both)
    both["parameters"] = (1, 5)
    rest = (EPS, "relu", None, False)
    both_ways("pointwise", x, w_p, None, "identity", None, norm, *rest, **both)
    both["parameters"] = (1, 6)
    depthwise = (x, w_d, 1, PADS, None, "identity", batch_norm(C), EPS, "relu", "none")
    both_ways("depthwise", *depthwise, **both)


def test_convolutions_backward(dtype: torch.dtype, backend: str) -> None:
    """Weights alone: batch norm comes as what our own ops made of it."""
    image, x = torch.randn(N, 3, H, W).to(dtype), gradient_like((N, C, H, W), dtype)
    w_s, w_d = torch.randn(K, 3, 3, 3).to(dtype), torch.randn(C, 1, 3, 3).to(dtype)
    w_p, coef = torch.randn(K, C, 1, 1).to(dtype), torch.randn(4, K)
    y, stem = gradient_like((N, K, H, W), dtype), gradient_like((N, K, 3, 4), dtype)
    both = {"parameters": (3,), "backend": backend}
    stem_args = (stem, stem, image, w_s, 2, PADS, coef, None, "identity", True, True)
    both_ways("conv2d_bwd", *stem_args, **both)
    no_norm = (None, "identity", None, None)
    product = (y, y, x, w_p, coef, *no_norm, *no_norm, None, True, True)
    both_ways("pointwise_bwd", *product, **both)
    behind = (torch.randn(4, C), *no_norm)
    depthwise = (x, x, x, w_d, 1, PADS, *behind, None, "identity", None, None, True, True)
    both_ways("depthwise_bwd", *depthwise, **both)


def test_squeeze_and_excitation(dtype: torch.dtype, backend: str) -> None:
    mlp = [torch.randn(R, C, 1, 1), torch.randn(R), torch.randn(C, R, 1, 1), torch.randn(C)]
    mlp = [v.to(dtype) for v in mlp]
    pool, gate = torch.randn(2, N, C), torch.rand(N, C)
    both_ways("se_gate", pool, *mlp, "silu", H * W, parameters=(1, 2, 3, 4), backend=backend)
    sums = torch.randn(5, N, C)
    backward = (sums, gate, pool[0], *mlp[:3], "silu", H * W)
    both_ways("se_gate_bwd", *backward, parameters=(3, 4, 5), backend=backend)


def test_batch_norm(dtype: torch.dtype, backend: str) -> None:
    """Also in place: the running statistics of a slice move as those of a dense tensor do."""
    bn = [None if v is None else v.to(dtype) for v in batch_norm(C)]
    every = {"parameters": (0, 1, 2, 3), "backend": backend}
    both_ways("bn_fold", *bn, EPS, torch.float32, **every)
    stats = torch.stack((torch.randn(C), torch.rand(C)))
    every["parameters"] = (1, 2, 3, 4)
    both_ways("bn_finalize", stats, *bn, 9, 0.1, EPS, **every)
    every["parameters"] = (2,)
    both_ways("bn_bwd_coef", torch.randn(2, C), stats, bn[0], 9, True, **every)
