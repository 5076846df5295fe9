"""What the CUDA C++ kernels cost on each architecture, as ptxas says: registers, spills, memory.

`python -m tests.t3.cuda_resources` prints the table, `python -m bench.gate cuda --write` makes
tests/t3/cuda_budget.json of it. A change of the kernels that raises a figure fails until the budget
is written anew, and so shows in its diff.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

CSRC = Path(__file__).resolve().parents[2] / "csrc"
BUDGET = Path(__file__).with_name("cuda_budget.json")
ARCHITECTURES = ("80", "90a", "100a")

ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


class Resources(NamedTuple):
    """Of one kernel; bytes of a thread but for ``shared``, which is static and of a block."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


Table = dict[str, dict[str, Resources]]  # architecture -> kernel -> resources


def find_nvcc() -> str | None:
    """nvcc of CUDA_HOME or PATH."""
    home = os.environ.get("CUDA_HOME")
    return (shutil.which("nvcc", path=f"{home}/bin") if home else None) or shutil.which("nvcc")


def release() -> str:
    """nvcc's, such as "13.0": another one's ptxas allots other registers."""
    nvcc = find_nvcc()
    assert nvcc is not None
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", said)
    assert found is not None, said
    return found[1]


def _parse(said: str) -> Iterator[tuple[str, str, Resources]]:
    """(mangled name, architecture, resources) of what `nvcc -Xptxas -v` said."""
    entry, spills = None, (0, 0, 0)
    for line in said.splitlines():
        if found := ENTRY.search(line):
            entry, spills = found.groups(), (0, 0, 0)
        elif found := SPILLS.search(line):
            spills = tuple(map(int, found.groups()))  # type: ignore[assignment]
        elif (found := USED.search(line)) and entry is not None:
            yield *entry, Resources(int(found[1]), *spills, int(found[2] or 0))  # type: ignore[misc]
            entry = None


def _compile(source: Path, architecture: str) -> str:
    nvcc = find_nvcc()
    assert nvcc is not None
    with tempfile.TemporaryDirectory() as scratch:
        words = [nvcc, "-std=c++17", "-O3", f"-I{CSRC}", "-Xptxas=-v", f"-arch=sm_{architecture}"]
        words += ["-cubin", str(source), "-o", f"{scratch}/kernel.cubin"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def _readable(names: list[str]) -> list[str]:
    """`depthwise_fwd_kernel<__nv_bfloat16, 5, 2, true>`, without namespaces and parameters."""
    filtered = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    casts = r"\((?:effnet_fast::)?\w+\)(?=\d)|effnet_fast::|\(anonymous namespace\)::|^void "
    return [re.sub(r"\(.*$", "", re.sub(casts, "", name)) for name in filtered]


def measure() -> Table:
    """Compile every .cu for every architecture, on two cores."""
    sources = sorted((CSRC / "cuda").glob("*.cu"))
    jobs = [(source, architecture) for source in sources for architecture in ARCHITECTURES]
    with ThreadPoolExecutor(2) as pool:
        said = pool.map(lambda job: _compile(*job), jobs)
        found = [entry for text in said for entry in _parse(text)]
    table: Table = {architecture: {} for architecture in ARCHITECTURES}
    names = _readable([mangled for mangled, _, _ in found])
    for name, (_, architecture, resources) in zip(names, found, strict=True):
        assert name not in table[architecture], f"two kernels are called {name}"
        table[architecture][name] = resources
    return {a: dict(sorted(kernels.items())) for a, kernels in table.items()}


def read_budget() -> tuple[str, Table]:
    """nvcc's release and the table that were committed."""
    held = json.loads(BUDGET.read_text())
    table = {
        a: {name: Resources(*r) for name, r in kernels.items()}
        for a, kernels in held["kernels"].items()
    }
    return held["nvcc"], table


def _lines(table: Table) -> Iterator[str]:
    yield "| kernel | " + " | ".join(f"sm_{a}: reg, shared, spill" for a in table) + " |"
    yield "|---|" + "---|" * len(table)
    for name in next(iter(table.values())):
        cells = []
        for kernels in table.values():
            r = kernels[name]
            cells.append(f"{r.registers}, {r.shared}, {r.spill_stores + r.spill_loads}")
        yield f"| {name} | " + " | ".join(cells) + " |"


def risen(table: Table) -> list[str]:
    """What is more than in the budget, or not in it, one sentence each.

    Raises ValueError where the budget is of another nvcc.
    """
    written_with, budget = read_budget()
    if written_with != release():
        raise ValueError(f"the budget is of nvcc {written_with}, this is {release()}")
    found = []
    for architecture, kernels in table.items():
        for name, mine in kernels.items():
            allowed = budget[architecture].get(name)
            if allowed is None:
                found.append(f"sm_{architecture}: {name} is not in {BUDGET.name}")
                continue
            for field, value, most in zip(Resources._fields, mine, allowed, strict=True):
                if value > most:
                    found.append(f"sm_{architecture}: {name}: {field} {most} -> {value}")
    return found


def write(table: Table) -> None:
    """Make the budget of ``table``."""
    rows = [
        f'  "{a}": {{\n'
        + ",\n".join(f"   {json.dumps(k)}: {json.dumps(list(r))}" for k, r in kernels.items())
        + "\n  }"
        for a, kernels in table.items()
    ]
    head = f'{{\n "nvcc": "{release()}",\n "columns": {json.dumps(Resources._fields)},\n'
    BUDGET.write_text(head + ' "kernels": {\n' + ",\n".join(rows) + "\n }\n}\n")


if __name__ == "__main__":
    print("\n".join(_lines(measure())))
