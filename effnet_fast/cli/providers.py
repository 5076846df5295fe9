"""Everyone who computes the same model, with the same weights, and the check of what they give."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from effnet_fast import architecture
from effnet_fast.backends import backends
from effnet_fast.models import create_model
from effnet_fast.stock import calibrate, import_torchvision

#: The largest difference that a provider's fp32 logits may have from the expected ones, relative
#: to the largest logit, for its time to count. Other orders of summation give up to about 1e-5
#: over a whole network; a dropped tap or another padding gives 1e-2 and more.
BAR = 1e-4
STOCK = {
    "stock eager NCHW": torch.contiguous_format,
    "stock eager channels_last": torch.channels_last,
}
_OURS = "effnet_fast "  # and the backend's name
#: Values per channel that batch norm's statistics come from at least, on the smallest maps.
_CALIBRATION_VALUES = 64


@dataclass(frozen=True)
class Provider:
    """A model in eval mode and the layout of its input; a function of images [N, C, H, W]."""

    model: nn.Module
    memory_format: torch.memory_format

    def __call__(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            out: Tensor = self.model(x)
        return out

    def prepare(self, x: Tensor) -> Tensor:
        """``x`` in the provider's layout, so that no conversion is timed."""
        return x.contiguous(memory_format=self.memory_format)


def providers(name: str, x: Tensor) -> tuple[dict[str, Provider], dict[str, str]]:
    """Who computes model ``name`` on ``x``'s device in fp32, and who is left out and why.

    The weights are random, and batch norm's running statistics those of a pass over ``x``
    [N, 3, H, W]: see :func:`effnet_fast.stock.calibrate`.
    """
    state = _calibrated_state(name, x)
    found, left_out = dict[str, Provider](), dict[str, str]()

    def add(label: str, model: nn.Module, memory_format: torch.memory_format) -> None:
        model.load_state_dict(state)
        # nn.Module.to has no overload which names memory_format with a device.
        model.eval().to(x.device, memory_format=memory_format)  # type: ignore[call-overload]
        found[label] = Provider(model, memory_format)

    for label, memory_format in STOCK.items():
        try:
            add(label, _stock(name), memory_format)
        except (ImportError, LookupError) as error:
            left_out[label] = str(error)
    for backend, reason in backends().items():
        if reason is None:
            add(_OURS + backend, create_model(name, backend=backend), torch.channels_last)
        else:
            left_out[_OURS + backend] = reason
    return found, left_out


def _calibrated_state(name: str, x: Tensor) -> dict[str, Tensor]:
    model = create_model(name)
    smallest = math.ceil(x.shape[2] / 32) * math.ceil(x.shape[3] / 32)
    more = max(0, math.ceil(_CALIBRATION_VALUES / smallest) - x.shape[0])
    calibrate(model, torch.cat((x.cpu(), torch.randn(more, *x.shape[1:]))))
    return model.state_dict()


def _stock(name: str) -> nn.Module:
    if architecture.variant(name).lite:
        raise LookupError("torchvision has no EfficientNet-Lite")
    model: nn.Module = getattr(import_torchvision().models, name)()
    return model


def expected(found: dict[str, Provider], x: Tensor) -> tuple[Tensor, str]:
    """The logits that all have to give for ``x``, and whose they are.

    Stock eager's in fp32; where there is no stock, those of this library's reference in fp64.
    """
    label = next(iter(STOCK))
    if label in found:
        return found[label](x), f"{label} in fp32"
    label = f"{_OURS}reference"
    exact = copy.deepcopy(found[label].model).double()
    return Provider(exact, torch.channels_last)(x.double()), f"{label} in fp64"


@contextmanager
def true_fp32() -> Iterator[None]:
    """cuDNN's convolutions in fp32, not in its default TF32 with 10 bits of mantissa."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def difference(actual: Tensor, truth: Tensor) -> float:
    """max |actual - truth| / max |truth|: below :data:`BAR` is good, and NaN is not below."""
    return ((actual - truth).abs().max() / truth.abs().max()).item()
