"""The CPU engine and the CPU ops of training under the compiler's sanitizers, on random input.

AddressSanitizer sees each array of weights, of the workspace and of an op's arguments by itself,
ThreadSanitizer what a missing barrier would leave to chance. tests/cpu_engine/driver.cpp and
ops.cpp say what is run.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cpu_engine.build import ENGINE, OPS, Driver, Part


@dataclass(frozen=True)
class Case:
    """What it gets through in some ten seconds, and a bug that the sanitizer must find."""

    part: Part
    sanitizer: str
    said: str  # by a run in which nothing was found
    bug: tuple[str, str, str]  # file, what stands there, what then stands there
    found: str


CASES = {
    "engine-address": Case(
        ENGINE, "address,undefined", "12 networks",
        ("plan.cpp", "size_t(kWidest) * p.ring_rows", "size_t(kWidest - 1) * p.ring_rows"),
        "heap-buffer-overflow",
    ),
    "engine-threads": Case(
        ENGINE, "thread", "4 networks",
        ("forward.cpp", "            barrier();\n            lap();\n            gate(i);",
         "            lap();\n            gate(i);"),
        "data race",
    ),
    "ops-address": Case(
        OPS, "address,undefined", "100 shapes",
        ("training/depthwise_bwd.cpp", "size_t(in_.n) * padded(in_.c)", "size_t(in_.n) * in_.c"),
        "heap-buffer-overflow",
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
@pytest.mark.parametrize("name", CASES)
def test_nothing_is_found_but_a_planted_bug(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    count = int(case.said.split()[0])
    # -O0: with -O1 the sanitizers make g++ take five times as long.
    flags = [f"-fsanitize={case.sanitizer}", "-fno-sanitize-recover=all", "-O0", "-g1"]
    driver = Driver(tmp_path, flags, part=case.part)
    done = driver.run(count, COMMAND, **OPTIONS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"{case.said}\n"
    file, right, wrong = case.bug
    text = (driver.cpu / file).read_text()
    assert text.count(right) == 1
    (driver.cpu / file).write_text(text.replace(right, wrong))
    driver.build([Path(file).name])
    done = driver.run(count, COMMAND, **OPTIONS)
    assert done.returncode != 0
    assert case.found in done.stderr
