"""How far ours is from torchvision's and timm's models: ``python -m bench.parity [MODEL ...]``.

Every model gets random weights with batch norm statistics of the images, the same on both
sides. The
truth is the stock model in fp64; an error is the largest absolute difference from it over the
truth's largest value. "stock" is the stock model's own fp32 error, the yardstick of the error rule.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import effnet_fast as ef
from effnet_fast.stock import calibrate, import_torchvision


@dataclass(frozen=True)
class Parity:
    """Results of ours, of stock in fp32 and of stock in fp64, for one model and one mode."""

    ours: list[Tensor]
    base: list[Tensor]
    truth: list[Tensor]

    def error(self, side: list[Tensor]) -> float:
        """The largest error of any tensor, relative to the largest value of all."""
        scale = max(t.abs().max().item() for t in self.truth)
        errors = [(a - t).abs().max().item() for a, t in zip(side, self.truth, strict=True)]
        return max(errors) / scale


def torchvision_pair(name: str, x: Tensor) -> tuple[nn.Module, nn.Module]:
    """(ours, torchvision's) with equal weights; batch norm's statistics are of ``x`` and noise."""
    stock: nn.Module = getattr(import_torchvision().models, name)()
    calibrate(stock, torch.cat((x, torch.randn(8, *x.shape[1:]))))
    return getattr(ef, name)(weights=stock.state_dict()).eval(), stock


def timm_pair(name: str, x: Tensor) -> tuple[nn.Module, nn.Module]:
    """(ours, timm's) likewise; ``name`` is timm's and says the padding."""
    import_torchvision()  # timm imports it
    stock: nn.Module = importlib.import_module("timm").create_model(name)
    calibrate(stock, torch.cat((x, torch.randn(8, *x.shape[1:]))))
    tf = name.startswith("tf_")
    ours = ef.create_model(
        name.removeprefix("tf_"), stock.state_dict(), padding="same" if tf else "symmetric",
        norm_eps=1e-3 if tf else 1e-5,
    )  # fmt: skip
    return ours.eval(), stock


def run(
    ours: nn.Module, stock: nn.Module, x: Tensor, step: Callable[[nn.Module, Tensor], list[Tensor]]
) -> Parity:
    """``step`` on ours and on stock in fp32 and fp64, each from the same seed."""
    results = []
    for model, t in ((ours, torch.float32), (stock, torch.float32), (stock, torch.float64)):
        torch.manual_seed(1)
        results.append(step(copy.deepcopy(model).to(t), x.to(t)))
    return Parity(*results)


def logits(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The eval-mode step."""
    with torch.no_grad():
        return [model(x)]


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The training-mode step: all parameter gradients of a scalar loss, stochastic depth and
    dropout included where the seed draws alike."""
    model.train()
    out = model(x)
    torch.manual_seed(2)
    out.mul(torch.randn(out.shape).to(out.dtype)).sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.parity", description=__doc__)
    parser.add_argument("models", nargs="*", help="torchvision's or timm's (timm:NAME) names")
    parser.add_argument("--size", type=int, default=64, help="image size (default 64)")
    arguments = parser.parse_args(argv)
    variants = [f"efficientnet_b{i}" for i in range(8)]
    names = arguments.models or [
        *variants,
        *(f"timm:{p}{v}" for v in (*variants, "efficientnet_lite0") for p in ("", "tf_")),
    ]
    print(f"{'model':<28}{'forward ours':>14}{'stock':>10}{'gradients ours':>16}{'stock':>10}")
    for name in names:
        torch.manual_seed(0)
        is_timm = name.startswith("timm:")
        pair: Any = timm_pair if is_timm else torchvision_pair
        x = torch.randn(4, 3, arguments.size, arguments.size)
        ours, stock = pair(name.removeprefix("timm:"), x)
        row = run(ours, stock, x, logits)
        line = f"{name:<28}{row.error(row.ours):>14.2e}{row.error(row.base):>10.2e}"
        if not is_timm:  # timm draws its stochastic depth otherwise
            row = run(ours, stock, x, gradients)
            line += f"{row.error(row.ours):>16.2e}{row.error(row.base):>10.2e}"
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
