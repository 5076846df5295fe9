"""What every test starts from: one seed, torch's default type, two CPU threads."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch


def pytest_configure() -> None:
    torch.set_num_threads(2)  # sums split over threads: the same split on every machine


@pytest.fixture(autouse=True)
def _clean_start() -> Iterator[None]:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
