"""What the Triton kernels cost, by kernel: the most registers, shared memory and spills of any of
its specialisations, held against tests/t3/triton_budget.json.

`python -m bench.gate triton --write` writes the file; a rise fails until then, and so shows in its
diff.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from unittest.mock import patch

import torch
import triton

from tests.t3.dry_launch import (
    RESOLUTIONS,
    Specialisation,
    one_of_each_kind,
    recording,
    run_model,
)
from tests.t3.resources import Resources, measure_all

BUDGET = Path(__file__).with_name("triton_budget.json")
COLUMNS = ("registers", "shared", "spills")
ALL = tuple(RESOLUTIONS)
#: The family's smallest, middle and largest: the shapes at the ends of every heuristic.
ENDS = ("efficientnet_b0", "efficientnet_b4", "efficientnet_b7")
#: The other types and architectures, of B0 one of each kind; fp16 compiles as bf16 does.
SAMPLES = [(90, torch.float32), (80, torch.bfloat16), (100, torch.bfloat16)]

Recorded = dict[tuple[str, str, str], Specialisation]
Kernels = dict[str, list[int]]  # kernel -> the most of each of COLUMNS


def specialisations(models: tuple[str, ...], dtype: torch.dtype, architecture: int) -> Recorded:
    """What the models ask Triton for."""
    with recording(architecture) as recorded:
        for name in models:
            run_model(name, dtype)
    return recorded


def label(what: str, architecture: int, dtype: torch.dtype) -> str:
    """The name of a set of specialisations in the budget."""
    return f"sm_{architecture} {str(dtype).removeprefix('torch.')}, {what}"


def most(found: Iterable[tuple[Specialisation, Resources | str]]) -> Kernels:
    """Of each kernel, over its specialisations; those that did not compile are left out."""
    kernels: Kernels = {}
    for specialisation, resources in found:
        if isinstance(resources, Resources):
            mine = [getattr(resources, column) for column in COLUMNS]
            before = kernels.setdefault(specialisation.kernel, mine)
            kernels[specialisation.kernel] = [max(p) for p in zip(mine, before, strict=True)]
    return dict(sorted(kernels.items()))


def measure() -> dict[str, Kernels]:
    """All sets that the tier compiles, compiled now; a table that the user tuned is not read."""
    with tempfile.TemporaryDirectory() as empty, patch.dict(os.environ, EFFNET_FAST_CACHE=empty):
        return _measure()


def _measure() -> dict[str, Kernels]:
    ends = specialisations(ENDS, torch.bfloat16, 90)
    table = {label("B0, B4 and B7", 90, torch.bfloat16): most(measure_all(ends.values(), 90))}
    for architecture, dtype in SAMPLES:
        kinds = one_of_each_kind(specialisations(ENDS[:1], dtype, architecture))
        found = measure_all(kinds.values(), architecture)
        table[label("B0, one of each kind", architecture, dtype)] = most(found)
    return table


def risen(table: Mapping[str, Kernels]) -> list[str]:
    """What is more than in the budget, or not in it, one sentence each.

    Raises ValueError where the budget is of another Triton: its ptxas allots other registers.
    """
    held = json.loads(BUDGET.read_text())
    if held["triton"] != triton.__version__:
        raise ValueError(f"the budget is of Triton {held['triton']}, this is {triton.__version__}")
    found = []
    for name, kernels in table.items():
        for kernel, values in kernels.items():
            allowed = held["kernels"].get(name, {}).get(kernel)
            if allowed is None:
                found.append(f"{name}: {kernel} is not in {BUDGET.name}")
                continue
            for column, mine, theirs in zip(COLUMNS, values, allowed, strict=True):
                if mine > theirs:
                    found.append(f"{name}: {kernel}: {column} {theirs} -> {mine}")
    return found


def write(table: Mapping[str, Kernels]) -> None:
    """Make the budget of ``table``."""
    rows = [
        f"  {json.dumps(name)}: {{\n"
        + ",\n".join(f"   {json.dumps(k)}: {json.dumps(v)}" for k, v in kernels.items())
        + "\n  }"
        for name, kernels in table.items()
    ]
    head = f'{{\n "triton": "{triton.__version__}",\n "columns": {json.dumps(COLUMNS)},\n'
    BUDGET.write_text(head + ' "kernels": {\n' + ",\n".join(rows) + "\n }\n}\n")
