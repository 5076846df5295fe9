"""Which backend runs an op: one predicate that explains itself, for choosing and for raising.

A backend is named in four places; the most specific one that is not "auto" wins:
``backend=`` of an op or a model, then ``use_backend(...)``, then the environment variable
``EFFNET_FAST_BACKEND``, then "auto". "auto" takes the first backend whose :func:`why_not` is None.
A backend asked for by name is used or raises its reason: it never falls back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

from effnet_fast import limits

#: In the order in which "auto" tries them, but for matrix products without a CUDA kernel.
BACKENDS = ("cuda", "triton", "cpu", "reference")
_PRODUCTS_ORDER = ("triton", "cuda", "cpu", "reference")
ENVIRONMENT_VARIABLE = "EFFNET_FAST_BACKEND"

_requested: ContextVar[str] = ContextVar("effnet_fast_backend", default="auto")


class BackendUnavailableError(RuntimeError):
    """A backend was asked for by name and cannot run this op on this input."""


def check_name(name: str, where: str = "backend") -> str:
    """``name`` if it is "auto" or a known backend, else a ValueError that lists them."""
    if name != "auto" and name not in BACKENDS:
        known = ", ".join(("auto", *BACKENDS))
        raise ValueError(f"unknown {where} {name!r}; known: {known}")
    return name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the ``with`` block, ops and models whose own backend is "auto" use ``name``.

    Nests, and is local to the thread and to the asyncio task. Raises ValueError on unknown names.
    """
    token = _requested.set(check_name(name))
    try:
        yield
    finally:
        _requested.reset(token)


def requested(explicit: str | None) -> str:
    """The name in force, by the precedence of the module docstring; may be "auto".

    torch.compile takes it as a constant: a compiled model keeps what was in force when it was
    compiled.
    """
    if explicit is not None and check_name(explicit) != "auto":
        return explicit
    name = _requested.get()
    if name != "auto":
        return name
    return check_name(os.environ.get(ENVIRONMENT_VARIABLE, "auto"), ENVIRONMENT_VARIABLE)


# What torch.compiler.assume_constant_result does, less its import of torch._dynamo, which takes
# a second and brings triton into every process.
requested._dynamo_marked_constant = True  # type: ignore[attr-defined]


def interpreting() -> bool:
    """Whether Triton's kernels run in its interpreter, on CPU tensors (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _machine_why_not(backend: str) -> str | None:
    """Why ``backend`` cannot run anything on this machine and in this build; None if it can."""
    if backend == "reference":
        return None
    if backend in ("cuda", "cpu"):
        try:
            from effnet_fast import _C
        except ImportError as error:
            return f"the native module is not built ({error}); run: pip install -e ."
        if backend == "cuda" and not _C.cuda_built():
            return "effnet_fast._C was built without CUDA (no nvcc at installation)"
    if backend == "triton":
        if find_spec("triton") is None:
            return "triton is not installed"
        if interpreting():
            return None
    if backend in ("cuda", "triton") and not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return None


@cache
def _device_why_not(backend: str, device: torch.device) -> str | None:
    """Why the kernels of ``backend`` cannot run on ``device``; None if they can."""
    if backend == "triton" and interpreting():
        return None if device.type == "cpu" else "TRITON_INTERPRET=1 runs kernels on CPU tensors"
    if backend == "cpu":
        return None if device.type == "cpu" else f"its kernels run on CPU tensors, not on {device}"
    if device.type != "cuda":
        return f"its kernels run on CUDA tensors, and this one is on {device}"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"the GPU has compute capability {major}.{minor}; the kernels need 8.0 (A100) or up"
    if backend == "cuda":
        from effnet_fast import _C

        # Machine code runs within its major version, from its minor up; PTX on all that is newer.
        archs = _C.cuda_archs()
        arch = 10 * major + minor
        if arch < archs[-1] and not any(a // 10 == major and a <= arch for a in archs):
            return (
                f"effnet_fast._C has code for {archs}, and the GPU is {arch}; build again with "
                f"EFFNET_FAST_CUDA_ARCHS={arch}"
            )
    return None


_LIMITS = {
    "cuda": limits.cuda,
    "triton": limits.triton,
    "cpu": limits.cpu,
    "reference": limits.reference,
}


def why_not(op: str, backend: str, *args: Any) -> str | None:
    """Why ``backend`` cannot run ``op`` on these arguments, or None if it can.

    Args:
        op: a name of the op vocabulary ("depthwise", "pointwise", ...).
        backend: one of :data:`BACKENDS`.
        args: the op's arguments, or its activation input alone; only metadata are looked at.
    """
    reason = _machine_why_not(check_name(backend)) or _LIMITS[backend](op, args)
    if reason is None and backend != "reference":
        return _device_why_not(backend, next(limits.tensors(args)).device)
    return reason


def choose(op: str, name: str, *args: Any) -> str:
    """The concrete backend for ``op`` on ``args``; ``name`` is what :func:`requested` returned.

    A matrix product that csrc/cuda has no kernel for is Triton's first, also where "cuda" is asked
    for: Triton fuses what goes before and after, "cuda" then only puts passes around cuBLAS. Of
    products that it has a kernel for "auto" leaves Triton the forward ones of long sums
    (limits.CUDA_SHORT_SUM), by what was measured on an H200. There CUDA's depthwise convolution was
    faster in every case that both ran; squeeze-and-excitation and batch norm were not compared.
    That is a rule and not a table by shape: the records in bench/results hold no op by Triton.

    Raises:
        BackendUnavailableError: the backend asked for by name cannot run it; the message is its
            :func:`why_not`.
    """
    reasons = {}
    for candidate in _candidates(op, name, args):
        reasons[candidate] = why_not(op, candidate, *args)
        if reasons[candidate] is None:
            return candidate
    if name != "auto":
        raise BackendUnavailableError(f"backend {name!r} cannot run {op}: {reasons[name]}")
    raise BackendUnavailableError(
        f"no backend can run {op}: " + "; ".join(f"{b}: {r}" for b, r in reasons.items())
    )


def _candidates(op: str, name: str, args: tuple[Any, ...]) -> tuple[str, ...]:
    fused = op not in limits.PRODUCTS or (len(args) > 1 and limits.cuda_product(op, args) is None)
    if name == "auto":
        long_sum = op == "pointwise" and fused and args[0].shape[1] > limits.CUDA_SHORT_SUM
        return BACKENDS if fused and not long_sum else _PRODUCTS_ORDER
    if name == "cuda" and not fused and _machine_why_not("cuda") is None:
        return ("triton", "cuda")
    return (name,)


def backends() -> dict[str, str | None]:
    """Every backend with None if this machine and build can use it, else the reason why not."""
    return {backend: _machine_why_not(backend) for backend in BACKENDS}
