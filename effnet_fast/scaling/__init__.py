"""Compound scaling: one coefficient phi for depth, width and resolution, and the search behind it.

>>> from effnet_fast.scaling import CompoundScaling
>>> model = CompoundScaling().model_for(phi=2.5)

Source: Tan and Le, arXiv 1905.11946, section 3.
"""

from effnet_fast.scaling.compound import (
    PUBLISHED,
    CompoundScaling,
    Deviation,
    deviations,
)
from effnet_fast.scaling.search import Trial, constraint_grid, grid_search, mnas_objective

__all__ = [
    "PUBLISHED",
    "CompoundScaling",
    "Deviation",
    "Trial",
    "constraint_grid",
    "deviations",
    "grid_search",
    "mnas_objective",
]
