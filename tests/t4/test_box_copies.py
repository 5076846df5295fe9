"""Depthwise rows by the tensor memory accelerator, on a GPU that has one (sm_90 and newer): that it
is what runs, and far apart in memory. tests/ops/test_strides.py compares it with the other way."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from effnet_fast.backends import backends
from effnet_fast.ops import library as op

reason = None if torch.cuda.is_available() else "no GPU on this machine"
reason = reason or backends()["cuda"]
if reason is None and torch.cuda.get_device_capability() < (9, 0):
    reason = "this GPU has no tensor memory accelerator"
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))


@pytest.fixture(autouse=True)
def _with_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFNET_FAST_CUDA_BOXES", "1")


def inference(x: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """Plain depthwise convolution with a weight that depends on the channels alone."""
    taps = torch.arange(x.shape[1] * kernel * kernel, device="cuda").view(-1, 1, kernel, kernel)
    weight, pads = (taps % 7 - 3).to(x.dtype), [kernel // 2] * 4
    y, _ = op.depthwise(
        x, weight, stride, pads, None, "identity", [], 0.0, "identity", "none", "cuda"
    )  # fmt: skip
    return y


def image(n: int = 1) -> torch.Tensor:
    x = torch.randn(n, 40, 19, 21, device="cuda", dtype=torch.bfloat16)
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_what_runs(kernel: int, stride: int) -> None:
    for x, boxes in ((image(3), "true"), (image().expand(3, -1, -1, -1), "false")):
        inference(x, kernel, stride)
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            inference(x, kernel, stride)
            torch.cuda.synchronize()
        names = [event.key for event in seen.key_averages() if "depthwise_tensor" in event.key]
        assert len(names) == 1, names
        assert f"{kernel}, {stride}, false, {boxes}>" in names[0]


@pytest.mark.parametrize("stride", [1, 2])
def test_images_more_than_2_31_elements_apart(stride: int) -> None:
    near = image(2)
    n_stride = 2**31 + 2**10
    memory = torch.empty(n_stride + near[0].numel(), device="cuda", dtype=near.dtype)
    strides = (n_stride, *near.stride()[1:])
    far = memory.as_strided(near.shape, strides).copy_(near)
    assert torch.equal(inference(far, 3, stride), inference(near, 3, stride))
