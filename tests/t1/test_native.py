"""The native module on its own: no torch, no driver needed to import it."""

import os
import subprocess
import sys

import pytest

from effnet_fast import _C

# Loads the module's file by itself, so that neither effnet_fast nor torch comes with it.
LOAD = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_C", {_C.__file__!r})
_C = importlib.util.module_from_spec(spec)
spec.loader.exec_module(_C)
"""


def run_without_device(script: str) -> str:
    """stdout of a script in a process that sees no device, so that CUDA says no everywhere."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD + script],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def needs_cuda_build() -> None:
    if not _C.cuda_built():
        pytest.skip("effnet_fast._C was built without CUDA")


def test_built_and_archs_agree() -> None:
    archs = _C.cuda_archs()
    assert type(_C.cuda_built()) is bool
    assert _C.cuda_built() == bool(archs)
    assert archs == sorted(set(archs))


def test_cuda_functions_are_there_only_when_built_with_cuda() -> None:
    assert hasattr(_C, "cuda_device_count") == _C.cuda_built()
    assert hasattr(_C, "cuda_runtime_version") == _C.cuda_built()


def test_import_loads_no_driver_and_no_torch() -> None:
    script = """
with open("/proc/self/maps") as maps:
    print("torch" in sys.modules, "libcuda.so" in maps.read(), _C.cuda_built())
"""
    assert run_without_device(script) == f"False False {_C.cuda_built()}"


def test_device_count_without_a_device_gives_cudas_message() -> None:
    needs_cuda_build()
    script = """
for _ in range(2):
    try:
        _C.cuda_device_count()
    except RuntimeError as error:
        print(error)
"""
    first, second = run_without_device(script).splitlines()
    assert first == second
    assert first in (
        "cudaGetDeviceCount: CUDA driver version is insufficient for CUDA runtime version "
        "(cudaErrorInsufficientDriver)",
        "cudaGetDeviceCount: no CUDA-capable device is detected (cudaErrorNoDevice)",
    )


def test_runtime_version_needs_no_driver() -> None:
    needs_cuda_build()
    assert int(run_without_device("print(_C.cuda_runtime_version())")) >= 11000
