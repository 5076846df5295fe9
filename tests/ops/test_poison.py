"""What every test of this folder relies on: that memory a kernel did not write shows."""

import torch

from tests.cases import DEVICE, FLOATS


def test_fresh_memory_is_nan() -> None:
    for dtype in FLOATS:
        x = torch.zeros(2, 3, dtype=dtype)
        fresh = (
            torch.empty(2, 3, dtype=dtype),
            torch.empty_like(x),
            x.new_empty(4),
            x.new_empty_strided((2, 3), (1, 2)),
            torch.empty_strided((2, 3), (3, 1), dtype=dtype),
        )
        assert all(v.isnan().all() for v in fresh)
        assert all(v.device.type == DEVICE for v in fresh)
