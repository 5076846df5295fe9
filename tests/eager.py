"""Stock PyTorch compositions of what the fused ops compute: the base of the error rule, and, in
fp64, its truth. Written from torch's own functions only, so that they share nothing with ours."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from effnet_fast.ops.checks import resolve_padding

ACT = {"identity": lambda u: u, "silu": F.silu, "relu": F.relu, "relu6": F.relu6}


@dataclass
class Layer:
    """A convolution and its batch norm, parameters and settings."""

    weight: Tensor
    gamma: Tensor
    beta: Tensor
    mean: Tensor
    var: Tensor
    stride: int = 1
    padding: str = "symmetric"
    groups: int = 1
    training: bool = True
    momentum: float = 0.1
    eps: float = 1e-3

    @staticmethod
    def random(
        k: int, c: int, kernel: int = 1, stride: int = 1, padding: str = "symmetric",
        groups: int = 1, training: bool = True,
    ) -> Layer:  # fmt: skip
        """Weights of fan-in scale; batch norm parameters away from 0 and 1."""
        fan = c // groups * kernel * kernel
        w = torch.randn(k, c // groups, kernel, kernel) / fan**0.5
        gamma, beta = torch.rand(k) + 0.5, 0.5 * torch.randn(k)
        return Layer(
            w, gamma, beta, torch.randn(k), torch.rand(k) + 0.5, stride, padding, groups, training
        )

    def to(self, dtype: torch.dtype) -> Layer:
        """Weights in ``dtype``, batch norm in fp32 or, for fp64, in fp64; fresh leaves."""
        acc = torch.float64 if dtype == torch.float64 else torch.float32
        w = self.weight.to(dtype).detach().clone().requires_grad_()
        bn = [v.to(acc).detach().clone() for v in (self.gamma, self.beta, self.mean, self.var)]
        bn[0].requires_grad_()
        bn[1].requires_grad_()
        return Layer(
            w, *bn, self.stride, self.padding, self.groups, self.training, self.momentum, self.eps
        )

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """In the order of ConvBnTensors."""
        return self.weight, self.gamma, self.beta, self.mean, self.var

    def __call__(self, x: Tensor, act: str = "identity") -> Tensor:
        k = self.weight.shape[2]
        top, bottom, left, right = resolve_padding(self.padding, x.shape, k, self.stride)
        y = F.conv2d(
            F.pad(x, (left, right, top, bottom)), self.weight, None, self.stride,
            groups=self.groups,
        )  # fmt: skip
        y = F.batch_norm(
            y, self.mean, self.var, self.gamma, self.beta, self.training, self.momentum, self.eps
        )
        return ACT[act](y)


@dataclass
class Norm:
    """A batch norm: parameters and running statistics [C]."""

    gamma: Tensor
    beta: Tensor
    mean: Tensor
    var: Tensor
    training: bool
    eps: float = 1e-3

    @staticmethod
    def random(c: int, training: bool) -> Norm:
        """Away from 0 and 1."""
        return Norm(
            torch.rand(c) + 0.5, 0.5 * torch.randn(c), torch.randn(c), torch.rand(c) + 0.5, training
        )

    def to(self, dtype: torch.dtype) -> Norm:
        """For activations of ``dtype``: in fp32 or, for fp64, in fp64; fresh leaves."""
        acc = torch.float64 if dtype == torch.float64 else torch.float32
        v = [v.to(acc).detach().clone() for v in (self.gamma, self.beta, self.mean, self.var)]
        return Norm(v[0].requires_grad_(), v[1].requires_grad_(), v[2], v[3], self.training)

    def __call__(self, y: Tensor) -> Tensor:
        return F.batch_norm(
            y, self.mean, self.var, self.gamma, self.beta, self.training, 0.0, self.eps
        )

    def normalised(self, y: Tensor) -> Tensor:
        """xhat: before gamma and beta."""
        return F.batch_norm(y, self.mean, self.var, None, None, self.training, 0.0, self.eps)


def squeeze_excite(x: Tensor, mlp: list[Tensor], act: str = "silu") -> Tensor:
    """mlp: w_reduce, b_reduce, w_expand, b_expand."""
    w1, b1, w2, b2 = mlp
    s = F.conv2d(ACT[act](F.conv2d(x.mean((2, 3), keepdim=True), w1, b1)), w2, b2)
    return x * torch.sigmoid(s)


@dataclass
class Block:
    """MBConv: (expand), depthwise, (SE), project, (residual)."""

    expand: Layer | None
    depthwise: Layer
    project: Layer
    se: list[Tensor] = field(default_factory=list)
    act: str = "silu"
    residual: bool = False

    def to(self, dtype: torch.dtype) -> Block:
        """A copy in ``dtype`` with fresh leaves."""
        return Block(
            None if self.expand is None else self.expand.to(dtype),
            self.depthwise.to(dtype),
            self.project.to(dtype),
            [v.to(dtype).detach().clone().requires_grad_() for v in self.se],
            self.act,
            self.residual,
        )

    def __call__(self, x: Tensor, drop_scale: Tensor | None = None) -> Tensor:
        y = x if self.expand is None else self.expand(x, self.act)
        y = self.depthwise(y, self.act)
        if self.se:
            y = squeeze_excite(y, self.se, self.act)
        y = self.project(y)
        if drop_scale is not None:
            y = y * drop_scale.to(y.dtype).view(-1, 1, 1, 1)
        return y + x if self.residual else y
