"""Compound scaling: the rule, the models that it makes, and the published family beside it."""

import itertools
import math

import pytest
import torch

from effnet_fast.architecture import BASELINE, VARIANTS, round_channels, round_repeats, stages
from effnet_fast.models import from_variant
from effnet_fast.profile import count
from effnet_fast.scaling import (
    PUBLISHED,
    CompoundScaling,
    constraint_grid,
    deviations,
    mnas_objective,
)

SINGLE = {
    "depth": CompoundScaling.depth_only(),
    "width": CompoundScaling.width_only(),
    "resolution": CompoundScaling.resolution_only(),
}


def macs(scaling: CompoundScaling, phi: float) -> int:
    v = scaling.variant(phi)
    with torch.device("meta"):
        return count(from_variant(v), v.resolution).macs


def test_phi_0_is_b0_and_phi_1_is_b2s_row() -> None:
    """B2 is the formula at phi = 1: 1.2, 1.1, and 258 pixels made 260."""
    rule, b2 = CompoundScaling(), VARIANTS["efficientnet_b2"]
    assert rule.variant(0) == VARIANTS["efficientnet_b0"]
    one = rule.variant(1)
    assert (one.depth, one.width, one.resolution) == (b2.depth, b2.width, 258)
    assert rule.variant(1, resolution_multiple=20).resolution == b2.resolution
    assert stages(one) == stages(b2)


@pytest.mark.parametrize("phi", [-2.5, -1, 0.37, 1, 2.9, 7])
def test_a_model_of_any_phi_is_the_formula_rounded(phi: float) -> None:
    rule = CompoundScaling()
    v = rule.variant(phi, resolution_multiple=8)
    with torch.device("meta"):
        model = rule.model_for(phi, resolution_multiple=8, num_classes=3)
        assert model(torch.empty(1, 3, 64, 64)).shape == (1, 3)
    assert model.recipe.crop == v.resolution
    assert v.resolution % 8 == 0
    assert abs(v.resolution - 224 * 1.15**phi) <= 4
    for base, stage in zip(BASELINE, stages(v), strict=True):
        assert stage.layers - 1 < base.layers * 1.2**phi <= stage.layers
        exact = base.out_channels * 1.1**phi
        assert stage.out_channels % 8 == 0
        assert stage.out_channels >= 0.9 * exact
        assert stage.out_channels <= max(8, exact + 8)


def test_rounding_is_not_led_astray_by_floating_point() -> None:
    """2 layers at the square root of 2, squared, are 4; (8.000000001 layers are 9)."""
    assert 2 * math.sqrt(2) ** 2 > 4
    assert round_repeats(2 * math.sqrt(2) ** 2) == 4
    assert round_repeats(8.00000001) == 9
    assert (round_channels(40 * 1.1), round_channels(10), round_channels(1)) == (48, 16, 8)
    assert CompoundScaling.depth_only().variant(2).depth == 4


@pytest.mark.parametrize(
    "scaling", [CompoundScaling(), *SINGLE.values()], ids=["compound", *SINGLE]
)
def test_multiply_adds_double_with_phi(scaling: CompoundScaling) -> None:
    """To a third: the stem and head do not deepen, channels and layers are rounded."""
    growth = macs(scaling, 2) / macs(scaling, 0)
    assert 4 / 1.34 < growth < 4 * 1.34


@pytest.mark.parametrize(("name", "scaling"), SINGLE.items(), ids=SINGLE)
def test_one_dimension_alone_leaves_the_others(name: str, scaling: CompoundScaling) -> None:
    base, v = VARIANTS["efficientnet_b0"], scaling.variant(2)
    factors = {
        "depth": v.depth / base.depth,
        "width": v.width / base.width,
        "resolution": v.resolution / base.resolution,
    }
    grown = factors.pop(name)
    assert round(grown, 9) == (4 if name == "depth" else 2)
    assert set(factors.values()) == {1}


def test_another_baseline() -> None:
    base = VARIANTS["efficientnet_lite2"]
    v = CompoundScaling(baseline=base).variant(1)
    assert (v.lite, v.width, v.resolution) == (True, 1.1 * base.width, 299)


def test_dropout_goes_from_b0s_to_b7s() -> None:
    rule = CompoundScaling()
    drops = [rule.variant(phi).dropout for phi in (-7, 0, 7, 70)]
    assert [round(d, 9) for d in drops] == [0, 0.2, 0.5, 0.5]


BAD = {
    "alpha": ({"alpha": 0.9}, "alpha must be a number >= 1, got 0.9"),
    "beta": ({"beta": float("nan")}, "beta must be a number >= 1"),
    "constraint": ({"alpha": 1.5}, r"gamma\^2 = 2.4003 is not within 0.1 of 2"),
    "tolerance": ({"tolerance": 0.05}, "1.9203 is not within 0.05"),
}


@pytest.mark.parametrize(("options", "complaint"), BAD.values(), ids=BAD)
def test_coefficients_out_of_range(options: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        CompoundScaling(**options)  # type: ignore[arg-type]


def test_phi_and_multiples_out_of_range() -> None:
    with pytest.raises(ValueError, match="finite number, got inf"):
        CompoundScaling().variant(float("inf"))
    with pytest.raises(ValueError, match="resolution_multiple must be >= 1"):
        CompoundScaling().variant(1, 0)


def test_the_published_rows_and_how_far_they_are() -> None:
    assert [(v.width, v.depth, v.resolution, v.dropout) for v in PUBLISHED.values()] == [
        (1.0, 1.0, 224, 0.2), (1.0, 1.1, 240, 0.2), (1.1, 1.2, 260, 0.3), (1.2, 1.4, 300, 0.3),
        (1.4, 1.8, 380, 0.4), (1.6, 2.2, 456, 0.4), (1.8, 2.6, 528, 0.5), (2.0, 3.1, 600, 0.5),
    ]  # fmt: skip
    found = deviations()
    assert [d.phi for d in found] == sorted(d.phi for d in found)
    rule, b7 = CompoundScaling(), found[-1]
    assert round(rule.depth(b7.phi) * (1 + b7.depth), 9) == 3.1
    assert round(224 * rule.resolution(b7.phi) * (1 + b7.resolution), 6) == 600
    assert all(max(abs(d.depth), abs(d.width), abs(d.resolution)) < 0.08 for d in found)
    better = [rule.depth(b7.phi + e) for e in (-0.1, 0.1)]
    assert better[0] < 3.1 / (1 + b7.depth) < better[1]


def test_the_grid_holds_all_points_of_the_constraint_and_no_other() -> None:
    grid = constraint_grid(0.1, 0.1)
    values = [round(1 + 0.1 * i, 1) for i in range(12)]
    near = {
        p for p in itertools.product(values, repeat=3) if abs(p[0] * (p[1] * p[2]) ** 2 - 2) < 0.1
    }
    assert near <= set(grid)
    assert len(grid) == len(set(grid)) == 22
    assert (1.2, 1.1, 1.15) in constraint_grid(0.05)
    for point in grid:
        CompoundScaling(*point, tolerance=0.1 + 1e-6)
    with pytest.raises(ValueError, match="step must be positive"):
        constraint_grid(0)


def test_mnas_objective() -> None:
    assert mnas_objective(0.8, 4e8, 4e8) == 0.8
    assert mnas_objective(0.8, 8e8, 4e8) == 0.8 * 2**-0.07
