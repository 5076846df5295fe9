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

import torch
from torch import Tensor

#: In the order in which "auto" tries them.
BACKENDS = ("cuda", "triton", "cpu", "reference")
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


@cache
def _machine_why_not(backend: str) -> str | None:
    """Why ``backend`` cannot run anything on this machine and in this build; None if it can."""
    if backend == "reference":
        return None
    if backend == "cuda":
        try:
            from effnet_fast import _C
        except ImportError as error:
            return f"the native module is not built ({error}); run: pip install -e ."
        if not _C.cuda_built():
            return "effnet_fast._C was built without CUDA (no nvcc at installation)"
    if backend == "triton" and find_spec("triton") is None:
        return "triton is not installed"
    if backend in ("cuda", "triton") and not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return f"this version has no {backend} kernels yet"


def why_not(op: str, backend: str, x: Tensor) -> str | None:
    """Why ``backend`` cannot run ``op`` on input ``x``, or None if it can.

    Args:
        op: a name of the op vocabulary ("depthwise", "pointwise", ...), or a composite of it.
        backend: one of :data:`BACKENDS`.
        x: the op's activation input; only its metadata are looked at.
    """
    check_name(backend)
    if backend == "reference":
        if not x.is_floating_point():
            return f"{op} computes on floating-point activations, not {x.dtype}"
        return None
    return _machine_why_not(backend)


def choose(op: str, name: str, x: Tensor) -> str:
    """The concrete backend for ``op`` on ``x``; ``name`` is what :func:`requested` returned.

    Raises:
        BackendUnavailableError: the backend asked for by name cannot run it; the message is its
            :func:`why_not`.
    """
    if name != "auto":
        reason = why_not(op, name, x)
        if reason is not None:
            raise BackendUnavailableError(f"backend {name!r} cannot run {op}: {reason}")
        return name
    reasons = {}
    for candidate in BACKENDS:
        reasons[candidate] = why_not(op, candidate, x)
        if reasons[candidate] is None:
            return candidate
    raise BackendUnavailableError(
        f"no backend can run {op}: " + "; ".join(f"{b}: {r}" for b, r in reasons.items())
    )


def backends() -> dict[str, str | None]:
    """Every backend with None if this machine and build can use it, else the reason why not."""
    return {backend: _machine_why_not(backend) for backend in BACKENDS}
