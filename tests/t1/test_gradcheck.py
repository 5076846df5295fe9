"""Finite differences in fp64: every differentiable op, every input, training and eval.

Together the four functions and the block (all kinds of first convolution, with and without SE) go
through every backward op of the vocabulary.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from effnet_fast import ops
from effnet_fast.ops import mbconv as fused
from effnet_fast.ops.conv_bn import ConvBn, ConvBnTensors
from effnet_fast.ops.conv_bn_act import conv_bn_act
from effnet_fast.ops.head import conv_bn_act_pool

BATCH = pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
PAD = (0, 1, 0, 1)


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def statistics(k: int) -> tuple[Tensor, Tensor]:
    return torch.randn(k).double(), torch.rand(k).double() + 0.5


@BATCH
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_conv_bn_act(stride: int, training: bool) -> None:
    mean, var = statistics(3)

    def run(x: Tensor, w: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return ops.depthwise_conv_bn_act(
            x, w, gamma, beta, mean.clone(), var.clone(), stride=stride, padding="same",
            training=training,
        )  # fmt: skip

    assert gradcheck(run, (leaf(2, 3, 4, 5), leaf(3, 1, 3, 3), leaf(3), leaf(3)))


def test_squeeze_excite() -> None:
    mlp = (leaf(2, 3, 1, 1), leaf(2), leaf(3, 2, 1, 1), leaf(3))
    assert gradcheck(ops.squeeze_excite, (leaf(2, 3, 4, 3), *mlp))


@BATCH
@pytest.mark.parametrize("kind", ["conv2d", "pointwise"])
def test_conv_bn_act(kind: str, training: bool) -> None:
    mean, var = statistics(4)
    stride, pads = (2, PAD) if kind == "conv2d" else (1, (0, 0, 0, 0))
    layer, size = ConvBn(kind, stride, pads, 1e-3, 0.1, training), 3 if kind == "conv2d" else 1

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        t = ConvBnTensors(*parameters, mean.clone(), var.clone())
        return conv_bn_act(layer, t, x, "silu", "reference")

    assert gradcheck(run, (leaf(2, 3, 4, 6), leaf(4, 3, size, size), leaf(4), leaf(4)))


@BATCH
def test_head(training: bool) -> None:
    mean, var = statistics(4)
    layer = ConvBn("pointwise", 1, (0, 0, 0, 0), 1e-3, 0.1, training)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        t = ConvBnTensors(*parameters, mean.clone(), var.clone())
        return conv_bn_act_pool(layer, t, x, "silu", "reference")

    assert gradcheck(run, (leaf(2, 3, 3, 4), leaf(4, 3, 1, 1), leaf(4), leaf(4)))


@BATCH
@pytest.mark.parametrize("se", [True, False], ids=["se", "no-se"])
@pytest.mark.parametrize("first", ["pointwise", "conv2d", None])
def test_mbconv(first: str | None, se: bool, training: bool) -> None:
    """Stochastic depth has dropped the second of three images."""
    c, e = 3, 3 if first is None else 5
    size = 3 if first == "conv2d" else 1

    def layer(kind: str, stride: int, pads: tuple[int, int, int, int]) -> ConvBn:
        return ConvBn(kind, stride, pads, 1e-3, 0.1, training)

    expand = None
    if first is not None:
        expand = layer(first, 2, PAD) if first == "conv2d" else layer(first, 1, (0, 0, 0, 0))
    block = fused.MBConv(
        expand, layer("depthwise", 1, (1, 1, 1, 1)), layer("pointwise", 1, (0, 0, 0, 0)), "silu",
        first != "conv2d", "reference",
    )  # fmt: skip
    running = [statistics(k) for k in (e, e, c)]
    drop = torch.tensor([1.25, 0.0, 1.25], dtype=torch.float64)
    mlp = (leaf(2, e, 1, 1), leaf(2), leaf(e, 2, 1, 1), leaf(e)) if se else ()
    weights: list[Any] = [leaf(e, 1, 3, 3), leaf(e), leaf(e), leaf(c, e, 1, 1), leaf(c), leaf(c)]
    if first is not None:
        weights = [leaf(e, c, size, size), leaf(e), leaf(e), *weights]

    def run(x: Tensor, *p: Tensor) -> Tensor:
        n = len(weights)
        layers = [
            ConvBnTensors(*p[i : i + 3], *(v.clone() for v in running[3 - n // 3 + i // 3]))
            for i in range(0, n, 3)
        ]
        tensors = fused.MBConvTensors(
            layers[0] if first is not None else None, layers[-2], layers[-1],
            (p[n], p[n + 1], p[n + 2], p[n + 3]) if se else None,
        )  # fmt: skip
        return fused.mbconv(block, tensors, x, drop)

    assert gradcheck(run, (leaf(3, c, 4, 3), *weights, *mlp))
