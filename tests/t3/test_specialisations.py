"""Every distinct kernel that training and inference ask for compiles, without spills beyond the
budget, in at most 255 registers, and loads channels 16 bytes at a time.

The networks' channels are multiples of 8 throughout. What is counted is Triton's own cache key: a
network of 300 launches is some dozens of compilations.
"""

import time
from collections import defaultdict

import pytest
import torch

from tests.t3 import budget
from tests.t3.dry_launch import Specialisation, one_of_each_kind
from tests.t3.resources import Resources, measure_all
from tests.t3.triton_resources import (
    ALL,
    ENDS,
    SAMPLES,
    Kernels,
    label,
    most,
    risen,
    specialisations,
)

B0 = ("efficientnet_b0",)

_measured: dict[tuple[int, str], Resources | str] = {}


def complaints(specialisation: Specialisation, found: Resources | str, architecture: int) -> str:
    """What is wrong with it, in words; empty if nothing."""
    if isinstance(found, str):
        return found
    wrong = []
    allowed = budget.spills_allowed(specialisation.kernel, architecture, specialisation.storage)
    if found.spills > allowed or (found.local and not allowed):
        wrong.append(f"{found.spills} spill instructions, allowed {allowed}")
    if found.registers > budget.MOST_REGISTERS:
        wrong.append(f"{found.registers} registers")
    if specialisation.kernel not in budget.NARROW:
        if found.loads_16_bytes == 0:
            wrong.append("no load of 16 bytes")
        # A depthwise tap is a weight for each of 64 threads; pixels loaded so were 8 times as many.
        if found.loads_2_bytes > 2 * found.loads_16_bytes:
            wrong.append(f"{found.loads_2_bytes} loads of 2 bytes, {found.loads_16_bytes} of 16")
    return ", ".join(wrong)


def report(found: list[tuple[Specialisation, Resources | str]]) -> str:
    """One line per kernel: how many, registers from least to most, spills."""
    by_kernel = defaultdict(list)
    for specialisation, resources in found:
        if isinstance(resources, Resources):
            by_kernel[specialisation.kernel].append(resources)
    lines = [f"{'kernel':<34}{'count':>6}{'registers':>12}{'shared':>16}{'spills':>8}"]
    for kernel, rows in sorted(by_kernel.items()):
        registers = f"{min(r.registers for r in rows)}-{max(r.registers for r in rows)}"
        shared = f"{min(r.shared for r in rows)}-{max(r.shared for r in rows)}"
        spills = max(r.spills for r in rows)
        lines.append(f"{kernel:<34}{len(rows):>6}{registers:>12}{shared:>16}{spills:>8}")
    return "\n".join(lines)


def check(
    what: str, recorded: dict[tuple[str, str, str], Specialisation], architecture: int,
    capsys: pytest.CaptureFixture[str],
) -> Kernels:  # fmt: skip
    start = time.monotonic()
    fresh = {k: s for k, s in recorded.items() if (architecture, str(k)) not in _measured}
    for key, (_, resources) in zip(fresh, measure_all(fresh.values(), architecture), strict=True):
        _measured[architecture, str(key)] = resources
    found = [(s, _measured[architecture, str(key)]) for key, s in recorded.items()]
    with capsys.disabled():
        print(
            f"\nsm_{architecture} {what}: {len(found)} distinct specialisations, "
            f"{len(fresh)} compiled now, {time.monotonic() - start:.0f} s\n{report(found)}"
        )
    # Not by name: specialisations that differ in hints alone share theirs.
    wrong = [f"{s}: {text}" for s, r in found if (text := complaints(s, r, architecture))]
    assert not wrong, "\n".join(wrong)
    return most(found)


def assert_not_risen(what: str, kernels: Kernels, architecture: int, dtype: torch.dtype) -> None:
    table = {label(what, architecture, dtype): kernels}
    assert risen(table) == [], "python -m bench.gate triton --write records a change that is meant"


def test_the_ends_of_the_family(capsys: pytest.CaptureFixture[str]) -> None:
    found = specialisations(ENDS, torch.bfloat16, 90)
    kernels = check("bf16, B0, B4 and B7", found, 90, capsys)
    assert_not_risen("B0, B4 and B7", kernels, 90, torch.bfloat16)


@pytest.mark.parametrize(("architecture", "dtype"), SAMPLES, ids=str)
def test_one_of_each_kind(
    architecture: int, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = one_of_each_kind(specialisations(B0, dtype, architecture))
    kernels = check(f"{dtype}, B0, one of each kind", kinds, architecture, capsys)
    assert_not_risen("B0, one of each kind", kernels, architecture, dtype)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("architecture", [90, 80, 100])
def test_the_whole_family(
    architecture: int, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    found = specialisations(ALL, dtype, architecture)
    check(f"{dtype}, B0 to B7", found, architecture, capsys)


def test_every_allowance_is_for_a_kernel_that_exists() -> None:
    kernels = {s.kernel for s in specialisations(B0, torch.bfloat16, 90).values()}
    assert {a.kernel for a in budget.SPILLS} | set(budget.NARROW) <= kernels


def test_one_of_two_of_a_name_that_spills_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    s = Specialisation("m", "some_kernel", {}, {}, {}, {"num_warps": 4})
    good = Resources(128, 0, 0, 0, 0, 4, 0)
    recorded = {("m", "some_kernel", key): s for key in ("spilling", "good")}
    measured = {(90, str(key)): good for key in recorded}
    measured[90, str(("m", "some_kernel", "spilling"))] = good._replace(spills=2)
    monkeypatch.setitem(globals(), "_measured", measured)
    with pytest.raises(AssertionError, match="2 spill instructions"):
        check("two of a name", recorded, 90, capsys)


def test_what_the_tier_looks_for_is_found() -> None:
    """A specialisation that spills, or loads narrowly, or does not compile, is complained of."""
    s = Specialisation("m", "some_kernel", {}, {}, {}, {"num_warps": 4})
    good = Resources(128, 0, 0, 0, 0, 4, 0)
    assert complaints(s, good, 90) == ""
    assert "spill" in complaints(s, good._replace(spills=2), 90)
    assert "spill" in complaints(s, good._replace(local=16), 90)
    assert "16 bytes" in complaints(s, good._replace(loads_16_bytes=0), 90)
    assert "2 bytes" in complaints(s, good._replace(loads_2_bytes=9), 90)
    assert "PassManager" in complaints(s, "RuntimeError: PassManager::run failed", 90)
