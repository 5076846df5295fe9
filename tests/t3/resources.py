"""Compiles specialisations with Triton's own ptxas and reads what they cost out of the machine
code: registers, stack, spills, and the widths of their loads."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.t3.dry_launch import Specialisation

CUOBJDUMP = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


class Resources(NamedTuple):
    """Of one kernel on one architecture; loads are instructions, not executions."""

    registers: int
    stack: int
    local: int
    shared: int  # bytes asked for at the launch
    spills: int  # LDL and STL instructions
    loads_16_bytes: int  # LDG.128, and asynchronous copies of 16 bytes
    loads_2_bytes: int  # LDG.U16: channels loaded one by one


def measure(specialisation: Specialisation, architecture: int) -> Resources:
    """Compile for sm_``architecture`` and count."""
    source = ASTSource(
        specialisation.function, specialisation.signature, specialisation.constants,
        specialisation.hints,
    )  # fmt: skip
    target = GPUTarget("cuda", architecture, 32)
    kernel = triton.compile(source, target=target, options=specialisation.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", "-sass", file.name]
        code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = USAGE.search(code)
    assert usage is not None
    registers, stack, _, local = map(int, usage.groups())
    return Resources(
        registers, stack, local, kernel.metadata.shared,
        len(re.findall(r"\b(?:LDL|STL)\b", code)),
        len(re.findall(r"\bLDG(?:STS)?\.E[.\w]*128|\bUBLKCP|\bUTMALDG", code)),
        len(re.findall(r"\bLDG\.E[.\w]*U16", code)),
    )  # fmt: skip


def measure_all(
    specialisations: Iterable[Specialisation], architecture: int
) -> list[tuple[Specialisation, Resources | str]]:
    """All of them, on as many processes as there are cores; a failure is its message."""
    jobs = list(specialisations)
    workers = min(len(os.sched_getaffinity(0)), 16)
    # spawn: torch's and Triton's threads do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(_attempt, jobs, [architecture] * len(jobs), chunksize=4))
    return list(zip(jobs, results, strict=True))


def _attempt(specialisation: Specialisation, architecture: int) -> Resources | str:
    try:
        return measure(specialisation, architecture)
    except Exception as error:  # whatever the compiler raises belongs in the table
        cause = "" if error.__cause__ is None else f" ({error.__cause__!r})"
        return f"{type(error).__name__}{cause}: {error}"
