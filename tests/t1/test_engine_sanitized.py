"""The CPU engine under the compiler's sanitizers, on random networks and images.

AddressSanitizer sees each array of weights and of the workspace by itself, ThreadSanitizer what a
missing barrier would leave to chance. tests/cpu_engine/driver.cpp says what is run.
"""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DRIVER = ROOT / "tests" / "cpu_engine" / "driver.cpp"
WIDE = ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
# setup.py's.
ISAS = {
    "x86_64": {
        "sse42": ["-msse4.2"], "avx2": WIDE[:2], "avx512": WIDE,
        "avx512bf16": [*WIDE, "-mavx512bf16"],
    },
    "aarch64": {"neon": []},
}.get(platform.machine(), {"scalar": []})  # fmt: skip


@dataclass(frozen=True)
class Sanitizer:
    """Networks that it gets through in some ten seconds, and a bug that it must find."""

    networks: int
    bug: tuple[str, str, str]  # file, what stands there, what then stands there
    found: str


SANITIZERS = {
    "address,undefined": Sanitizer(
        12,
        ("plan.cpp", "size_t(kWidest) * p.ring_rows", "size_t(kWidest - 1) * p.ring_rows"),
        "heap-buffer-overflow",
    ),
    "thread": Sanitizer(
        4,
        ("forward.cpp", "            barrier();\n            lap();\n            gate(i);",
         "            lap();\n            gate(i);"),
        "data race",
    ),
}  # fmt: skip


class Driver:
    """tests/cpu_engine/driver.cpp with a copy of the engine's sources, built with ``flags``."""

    def __init__(self, folder: Path, flags: list[str]) -> None:
        self.folder, self.cpu = folder, folder / "cpu"
        shutil.copytree(ROOT / "csrc" / "cpu", self.cpu)
        # -O0: with -O1 the sanitizers make g++ take five times as long.
        self.common = ["g++", "-std=c++17", "-O0", "-g1", "-w", "-fopenmp", f"-I{folder}", *flags]
        self.sources: list[tuple[Path, list[str]]] = [(DRIVER, [])]
        self.sources += [(path, []) for path in sorted(self.cpu.glob("*.cpp"))]
        for isa, own in ISAS.items():
            for path in sorted((self.cpu / "kernels").glob("*.cpp")):
                if (isa, path.name) != ("avx512bf16", "fp32.cpp"):
                    isa_flags = [*own, f"-DEFFNET_FAST_ISA={isa}", "-ffp-contract=fast"]
                    self.sources.append((path, isa_flags))
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
        subprocess.run([*self.common, *objects, "-o", str(self.folder / "driver")], check=True)

    def run(self, networks: int) -> subprocess.CompletedProcess[str]:
        options = {
            "ASAN_OPTIONS": "detect_leaks=0",  # libgomp keeps its threads
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
            "TSAN_OPTIONS": "halt_on_error=1",
            "OMP_WAIT_POLICY": "passive",  # three threads on two cores
        }
        # ThreadSanitizer's shadow memory wants the addresses of a machine without randomisation.
        command = ["setarch", "--addr-no-randomize", str(self.folder / "driver")]
        return subprocess.run(
            [*command, "0", str(networks)], env=os.environ | options, capture_output=True, text=True
        )


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not in PATH")
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_nothing_is_found_but_a_planted_bug(sanitizer: str, tmp_path: Path) -> None:
    case = SANITIZERS[sanitizer]
    driver = Driver(tmp_path, [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"])
    done = driver.run(case.networks)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"{case.networks} networks\n"
    name, right, wrong = case.bug
    text = (driver.cpu / name).read_text()
    assert text.count(right) == 1
    (driver.cpu / name).write_text(text.replace(right, wrong))
    driver.build([name])
    done = driver.run(case.networks)
    assert done.returncode != 0
    assert case.found in done.stderr
