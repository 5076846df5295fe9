"""Builds C++ programs of this folder with a copy of the sources of csrc/cpu."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
WIDE = ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
#: setup.py's, by machine.
ISAS: dict[str, dict[str, list[str]]] = {
    "x86_64": {
        "sse42": ["-msse4.2"], "avx2": WIDE[:2], "avx512": WIDE,
        "avx512bf16": [*WIDE, "-mavx512bf16"],
    },
    "aarch64": {"neon": []},
}  # fmt: skip


def isas(machine: str = platform.machine()) -> dict[str, list[str]]:
    """The compiler's flags for each instruction set of a machine."""
    return ISAS.get(machine, {"scalar": []})


def kernel_flags(isa: str, flags: list[str]) -> list[str]:
    """Those of setup.py for a file of csrc/cpu/kernels."""
    return [*flags, f"-DEFFNET_FAST_ISA={isa}", "-fno-tree-vectorize", "-ffp-contract=fast"]


@dataclass(frozen=True)
class Part:
    """A program, what of csrc/cpu it is linked with, and the kernels, by instruction sets."""

    driver: str
    sources: str
    kernels: str
    left_out: tuple[str, ...] = ()


ENGINE = Part("driver.cpp", "*.cpp", "kernels/*.cpp")
#: AVX2's table is left out for the time that it takes: between one of fewer lanes and one of more.
OPS = Part("ops.cpp", "training/*.cpp", "training/kernels/*.cpp", ("avx2",))


class Driver:
    """A program and a copy of its sources in ``folder``: to be edited and built again."""

    def __init__(
        self, folder: Path, flags: Sequence[str], cxx: str = "g++",
        machine: str = platform.machine(), part: Part = ENGINE,
    ) -> None:  # fmt: skip
        self.folder, self.cpu, self.program = folder, folder / "cpu", folder / "driver"
        shutil.copytree(CSRC / "cpu", self.cpu)
        self.common = [cxx, "-std=c++17", "-w", "-fopenmp", f"-I{folder}", *flags]
        self.sources: list[tuple[Path, list[str]]] = [(HERE / part.driver, [])]
        self.sources += [(path, []) for path in sorted(self.cpu.glob(part.sources))]
        for isa, own in isas(machine).items():
            for path in sorted(self.cpu.glob(part.kernels)) if isa not in part.left_out else ():
                if isa != "avx512bf16" or path.name == "bf16.cpp":
                    self.sources.append((path, kernel_flags(isa, own)))
        self.build([path.name for path, _ in self.sources])

    def build(self, changed: list[str]) -> None:
        """Compile the files of these names, and link."""
        objects = [str(self.folder / f"{i}.o") for i in range(len(self.sources))]

        def compile_(job: tuple[str, tuple[Path, list[str]]]) -> None:
            target, (path, own) = job
            if path.name in changed:
                subprocess.run([*self.common, *own, "-c", str(path), "-o", target], check=True)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(compile_, zip(objects, self.sources, strict=True)))
        subprocess.run([*self.common, *objects, "-o", str(self.program)], check=True)

    def run(
        self, count: int, command: Sequence[str] = (), **options: str
    ) -> subprocess.CompletedProcess[str]:
        """Run it on so many networks, whose logits are in ``folder / "logits"`` then, or shapes."""
        return subprocess.run(
            [*command, str(self.program), "0", str(count), str(self.folder / "logits")],
            # Three threads, perhaps on two cores.
            env=os.environ | options | {"OMP_WAIT_POLICY": "passive"},
            capture_output=True, text=True,
        )  # fmt: skip
