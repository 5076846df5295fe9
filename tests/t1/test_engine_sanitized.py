"""The CPU engine under the compiler's sanitizers, on random networks and images.

AddressSanitizer sees each array of weights and of the workspace by itself, ThreadSanitizer what a
missing barrier would leave to chance. tests/cpu_engine/driver.cpp says what is run.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cpu_engine.build import Driver


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


OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",  # libgomp keeps its threads
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}
# ThreadSanitizer's shadow memory wants the addresses of a machine without randomisation.
COMMAND = ["setarch", "--addr-no-randomize"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not in PATH")
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_nothing_is_found_but_a_planted_bug(sanitizer: str, tmp_path: Path) -> None:
    case = SANITIZERS[sanitizer]
    # -O0: with -O1 the sanitizers make g++ take five times as long.
    flags = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-O0", "-g1"]
    driver = Driver(tmp_path, flags)
    done = driver.run(case.networks, COMMAND, **OPTIONS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"{case.networks} networks\n"
    name, right, wrong = case.bug
    text = (driver.cpu / name).read_text()
    assert text.count(right) == 1
    (driver.cpu / name).write_text(text.replace(right, wrong))
    driver.build([name])
    done = driver.run(case.networks, COMMAND, **OPTIONS)
    assert done.returncode != 0
    assert case.found in done.stderr
