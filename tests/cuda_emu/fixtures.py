"""Pytest's fixtures of the emulator: one folder of objects and one module for a whole session."""

from __future__ import annotations

import os
from types import ModuleType

import pytest

from tests.cuda_emu import build


@pytest.fixture(scope="session")
def cuda_emulator(tmp_path_factory: pytest.TempPathFactory) -> build.Builder:
    """Builds emulated modules; pytest-xdist's workers share what they have built."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    return build.Builder(folder / "cuda_emu")


@pytest.fixture(scope="session")
def cuda_module(cuda_emulator: build.Builder) -> ModuleType:
    """The kernels as they are."""
    module: ModuleType = build.load(cuda_emulator.build())
    return module
