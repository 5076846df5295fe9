"""What every test starts from: one seed, torch's default type, one CPU thread."""

import gc
import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch


def pytest_configure() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        from tests.t2 import interpreter

        interpreter.install()
    # One: sums are split alike on every machine, and where other work shares the cores, two threads
    # that wait for each other at each small op made a 1 s test take 36.
    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    # What imports and collection made stays: to look through it again and again for garbage took a
    # tenth of the tests' time.
    gc.freeze()


@pytest.fixture(autouse=True)
def _clean_start() -> Iterator[None]:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
