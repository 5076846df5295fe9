"""The scaling rule, models of any phi, and how far the published family is from the rule."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from effnet_fast.architecture import VARIANTS, Variant
from effnet_fast.models import EfficientNet, from_variant

#: B0 to B7 as published: width, depth, resolution and dropout of each.
PUBLISHED = {name: v for name, v in VARIANTS.items() if not v.lite}

_B0, _B7 = PUBLISHED["efficientnet_b0"], PUBLISHED["efficientnet_b7"]
#: Dropout grows from B0's to B7's, at phi 7 (the paper: "linearly").
_DROPOUT_PER_PHI = (_B7.dropout - _B0.dropout) / 7


@dataclass(frozen=True)
class CompoundScaling:
    """Depth, width and resolution times ``alpha ** phi``, ``beta ** phi`` and ``gamma ** phi``.

    Multiply-adds go with ``depth * width ** 2 * resolution ** 2``: with
    ``alpha * beta ** 2 * gamma ** 2`` near 2 they double with every unit of phi. One dimension
    alone, to the same cost: :meth:`depth_only`, :meth:`width_only`, :meth:`resolution_only`.

    Args:
        alpha, beta, gamma: at least 1; those of the paper.
        tolerance: how far ``alpha * beta ** 2 * gamma ** 2`` may be from 2 (the paper's own
            coefficients give 1.92).
        baseline: what phi = 0 is.

    Raises:
        ValueError: a coefficient is below 1, or the constraint does not hold.
    """

    alpha: float = 1.2
    beta: float = 1.1
    gamma: float = 1.15
    tolerance: float = 0.1
    baseline: Variant = _B0

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "gamma"):
            value = getattr(self, name)
            if not 1 <= value < math.inf:
                raise ValueError(f"{name} must be a number >= 1, got {value}")
        if not abs(self.cost - 2) <= self.tolerance:
            raise ValueError(
                f"alpha * beta^2 * gamma^2 = {self.cost:.4f} is not within {self.tolerance} of 2: "
                "change a coefficient, or pass a larger tolerance"
            )

    @classmethod
    def depth_only(cls, baseline: Variant = _B0) -> CompoundScaling:
        """Twice the depth for every unit of phi."""
        return cls(2.0, 1.0, 1.0, baseline=baseline)

    @classmethod
    def width_only(cls, baseline: Variant = _B0) -> CompoundScaling:
        """The square root of 2 times the width for every unit of phi."""
        return cls(1.0, math.sqrt(2), 1.0, baseline=baseline)

    @classmethod
    def resolution_only(cls, baseline: Variant = _B0) -> CompoundScaling:
        """The square root of 2 times the resolution for every unit of phi."""
        return cls(1.0, 1.0, math.sqrt(2), baseline=baseline)

    @property
    def cost(self) -> float:
        """``alpha * beta ** 2 * gamma ** 2``: what one unit of phi multiplies multiply-adds by."""
        return self.alpha * self.beta**2 * self.gamma**2

    def depth(self, phi: float) -> float:
        """The factor of every stage's number of layers."""
        return self.alpha**phi

    def width(self, phi: float) -> float:
        """The factor of every number of channels."""
        return self.beta**phi

    def resolution(self, phi: float) -> float:
        """The factor of the image's side."""
        return self.gamma**phi

    def variant(self, phi: float, resolution_multiple: int = 1) -> Variant:
        """The member of the family at ``phi``: any finite number, fractional and negative ones too.

        Its resolution is the nearest multiple of ``resolution_multiple`` pixels. Dropout grows by
        0.3 / 7 for a unit of phi and stays within [0, 0.5]. Channels become multiples of 8 no more
        than 10 % below the exact number, and numbers of layers are rounded up, when the model is
        built.
        """
        if not math.isfinite(phi):
            raise ValueError(f"phi must be a finite number, got {phi}")
        if resolution_multiple < 1:
            raise ValueError(f"resolution_multiple must be >= 1 pixel, got {resolution_multiple}")
        side = self.baseline.resolution * self.resolution(phi)
        steps = max(1, math.floor(side / resolution_multiple + 0.5))
        return replace(
            self.baseline,
            depth=self.baseline.depth * self.depth(phi),
            width=self.baseline.width * self.width(phi),
            resolution=resolution_multiple * steps,
            dropout=min(max(self.baseline.dropout + _DROPOUT_PER_PHI * phi, 0.0), 0.5),
        )

    def model_for(self, phi: float, resolution_multiple: int = 1, **kwargs: Any) -> EfficientNet:
        """The model of :meth:`variant`, randomly initialised.

        ``kwargs`` are those of :func:`effnet_fast.create_model`, without weights. The resolution is
        ``model.recipe.crop``.
        """
        return from_variant(self.variant(phi, resolution_multiple), **kwargs)


@dataclass(frozen=True)
class Deviation:
    """A published model beside the formula at the ``phi`` that fits its three factors best.

    ``depth``, ``width``, ``resolution``: published over formula, less 1.
    """

    name: str
    phi: float
    depth: float
    width: float
    resolution: float


def deviations(scaling: CompoundScaling | None = None) -> list[Deviation]:
    """How far B0 to B7 are from ``scaling`` (the paper's): not on it, since they were rounded.

    phi is the least-squares fit of log depth, log width and log resolution.
    """
    rule = scaling or CompoundScaling()
    logs = [math.log(c) for c in (rule.alpha, rule.beta, rule.gamma)]
    found = []
    for name, v in PUBLISHED.items():
        base = rule.baseline
        factors = (v.depth / base.depth, v.width / base.width, v.resolution / base.resolution)
        fit = sum(math.log(f) * c for f, c in zip(factors, logs, strict=True))
        phi = fit / sum(c * c for c in logs)
        exact = (rule.depth(phi), rule.width(phi), rule.resolution(phi))
        relative = [f / e - 1 for f, e in zip(factors, exact, strict=True)]
        found.append(Deviation(name, phi, *relative))
    return found
