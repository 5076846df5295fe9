"""Registers, shared memory and spills of every CUDA C++ kernel, held against a committed budget."""

import pytest

from tests.t3.cuda_resources import (
    ARCHITECTURES,
    Table,
    find_nvcc,
    measure,
    read_budget,
    release,
    risen,
)

pytestmark = pytest.mark.skipif(find_nvcc() is None, reason="nvcc is not here")

#: Kernels that may spill, because what they hold is more than a thread's registers.
MAY_SPILL = ("depthwise_bwd_kernel", "project_bwd_kernel", "wgrad_kernel")


@pytest.fixture(scope="module")
def measured() -> Table:
    return measure()


def test_every_kernel_is_in_the_budget(measured: Table) -> None:
    _, budget = read_budget()
    assert {a: list(k) for a, k in measured.items()} == {a: list(k) for a, k in budget.items()}


def test_within_the_budget(measured: Table) -> None:
    written_with, _ = read_budget()
    if written_with != release():
        pytest.skip(f"the budget is of nvcc {written_with}, this is {release()}")
    assert risen(measured) == [], "python -m bench.gate cuda --write records a change that is meant"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_spills(measured: Table, architecture: str) -> None:
    """The budget cannot make a spill of the forward and SE kernels right."""
    spilling = {
        name: r
        for name, r in measured[architecture].items()
        if r.spill_stores + r.spill_loads > 0 and not name.startswith(MAY_SPILL)
    }
    assert not spilling
