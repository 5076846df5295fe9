"""Kernels of instruction sets by themselves: SiLU's accuracy, and NEON under qemu where it is."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from effnet_fast import _C
from tests.cpu_engine.build import CSRC, HERE, Driver, isas, kernel_flags

CROSS, QEMU = "aarch64-linux-gnu-g++", "qemu-aarch64"

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not in PATH")


@pytest.mark.parametrize("isa", _C.cpu_isas())
def test_silu(isa: str, tmp_path: Path) -> None:
    """Within 3e-7 below 16; what is rounded to bfloat16 afterwards within 1e-4."""
    program = tmp_path / "silu"
    flags = kernel_flags(isa, isas()[isa])
    subprocess.run(
        ["g++", "-std=c++17", "-O3", "-w", f"-I{CSRC}", *flags, HERE / "silu.cpp", "-o", program],
        check=True,
    )
    x = np.concatenate([np.linspace(-16, 16, 1 << 20), np.geomspace(1e-30, 16, 1 << 16)])
    x = x.astype(np.float32)
    said = subprocess.run([program], input=x.tobytes(), stdout=subprocess.PIPE, check=True).stdout
    fine, rough = np.frombuffer(said, np.float32).reshape(2, -1).astype(np.float64)
    wide = x.astype(np.float64)
    truth = wide / (1 + np.exp(-wide))
    assert np.abs(fine / truth - 1).max() < 3e-7
    assert np.abs(rough / truth - 1).max() < 1e-4


@pytest.mark.skipif(
    shutil.which(CROSS) is None or shutil.which(QEMU) is None,
    reason=f"{CROSS} or {QEMU} is not in PATH (Debian: g++-aarch64-linux-gnu, qemu-user)",
)
def test_neon_gives_what_this_machine_gives(tmp_path: Path) -> None:
    networks = 10
    here = Driver(tmp_path / "here", ["-O1"])
    neon = Driver(tmp_path / "neon", ["-O1", "-static"], CROSS, "aarch64")
    for driver, command in ((here, []), (neon, [QEMU])):
        done = driver.run(networks, command)
        assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = (
        np.fromfile(d.folder / "logits", np.float32).astype(np.float64) for d in (neon, here)
    )
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()
