"""Dry launches: what a GPU would be asked to compile, found out without one.

The library runs as it is, adapters, launchers and all, on CPU tensors that nobody reads: memory
from ``torch.empty`` costs nothing until it is touched, so even B7's batch of 32 fits. Triton
specialises each launch by the true types, alignments and sizes; here it is stopped where it would
compile, and what it was about to compile is kept, each distinct specialisation once.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

import effnet_fast as ef
from effnet_fast.ops import library

BATCH = 32
#: Native resolutions, where the shape classes of the block-shape heuristics are the real ones.
RESOLUTIONS = {
    "efficientnet_b0": 224, "efficientnet_b1": 240, "efficientnet_b2": 260, "efficientnet_b3": 300,
    "efficientnet_b4": 380, "efficientnet_b5": 456, "efficientnet_b6": 528, "efficientnet_b7": 600,
}  # fmt: skip


class Specialisation(NamedTuple):
    """What Triton compiles: a kernel with the types, constants and hints of its arguments."""

    module: str
    kernel: str
    signature: dict[str, Any]
    constants: dict[Any, Any]
    hints: dict[Any, Any]
    options: dict[str, Any]

    @property
    def function(self) -> Any:
        return getattr(importlib.import_module(self.module), self.kernel)

    @property
    def storage(self) -> str:
        """The type of its maps: a 16-bit one where any argument has one."""
        types = {str(t).removeprefix("*") for t in self.signature.values() if "*" in str(t)}
        return " ".join(sorted(types & {"bf16", "fp16"})) or "fp32"

    def __str__(self) -> str:
        names = list(self.signature)
        constants = {
            names[path[0]]: value
            for path, value in self.constants.items()
            if len(path) == 1 and value is not None
        }
        shown = " ".join(f"{k}={v}" for k, v in constants.items())
        return f"{self.kernel}[{self.storage} {shown} warps={self.options['num_warps']}]"


class FakeCuda(DriverBase):  # type: ignore[misc]
    """A driver of a GPU that is not there: enough for Triton to specialise for its architecture."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture
        super().__init__()

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture  # JIT functions cache by device

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("nothing is measured in a dry launch")


@contextmanager
def recording(architecture: int) -> Iterator[dict[tuple[str, str, str], Specialisation]]:
    """Within the block, launches for sm_``architecture`` are recorded instead of made.

    Ops asked for by ``backend="triton"`` take CPU tensors.
    """
    found: dict[tuple[str, str, str], Specialisation] = {}

    def record(
        self: Any, key: Any, signature: Any, device: int, constexprs: Any, options: Any, attrs: Any,
        warmup: bool,
    ) -> None:  # fmt: skip
        name = self.fn.__module__, self.fn.__qualname__
        found.setdefault(
            (*name, str(key)),
            Specialisation(*name, signature, constexprs, attrs, dict(options.__dict__)),
        )

    stock_compile, stock_choose = JITFunction._do_compile, library.choose
    before = driver._active
    driver.set_active(FakeCuda(architecture))
    JITFunction._do_compile = record
    library.choose = lambda op, name, *rest: name
    try:
        yield found
    finally:
        JITFunction._do_compile, library.choose = stock_compile, stock_choose
        driver.set_active(before)


def one_of_each_kind(
    recorded: dict[tuple[str, str, str], Specialisation],
) -> dict[tuple[str, str, str], Specialisation]:
    """The first of those that differ in sizes, block shapes and hints only.

    A kind is a kernel with its types, its absent arguments, its activations, flags, kernel size and
    stride.
    """
    kinds: dict[object, tuple[str, str, str]] = {}
    for key, s in recorded.items():
        names = list(s.signature)
        kind = tuple(
            (names[path[0]], str(value))
            for path, value in sorted(s.constants.items())
            if names[path[0]] in ("K", "S") or type(value) is not int
        )
        kinds.setdefault((s.kernel, str(s.signature), kind), key)
    return {key: recorded[key] for key in kinds.values()}


def model(name: str, dtype: torch.dtype) -> torch.nn.Module:
    """The variant with untouched memory for parameters; under autocast they stay fp32."""
    with torch.device("meta"):
        built = ef.create_model(name, backend="triton")
    return built.to(dtype).to_empty(device="cpu")


def run_model(name: str, dtype: torch.dtype) -> None:
    """One training step (under autocast for 16-bit types, as users train) and one inference."""
    image = torch.empty(BATCH, 3, RESOLUTIONS[name], RESOLUTIONS[name], dtype=dtype)
    trained = model(name, torch.float32).train()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        out = trained(image)
    out.float().sum().backward()
    with torch.no_grad():
        model(name, dtype).eval()(image)
