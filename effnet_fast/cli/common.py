"""What the subcommands share: the error that ends one, devices, output."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from effnet_fast.backends import BACKENDS, backends, check_name


class CommandError(Exception):
    """The command cannot do what was asked; ``str()`` is all that the user is told. Status 2."""


def chosen_device(text: str) -> torch.device:
    """``auto`` (CUDA where there is any), ``cpu``, ``cuda`` or ``cuda:i``."""
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise CommandError(f"unknown device {text!r}; known: auto, cpu, cuda, cuda:0, ...")
    if device.type == "cuda":
        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= seen:
            raise CommandError(f"no device {text!r}: torch sees {seen} CUDA devices")
    return device


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """torch's CPU threads until the end of the block: ``count``, None leaves them.

    Runtimes made within the block (:mod:`effnet_fast.cli.runtimes`) have as many.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_name(device: torch.device) -> str:
    """The make of ``device`` as its driver, or the kernel, names it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def checked_backend(name: str) -> str:
    """``name`` if it is "auto" or a backend that this machine can use."""
    try:
        check_name(name)
    except ValueError as error:
        raise CommandError(str(error)) from error
    reason = backends().get(name)
    if reason is not None:
        usable = [b for b in BACKENDS if backends()[b] is None]
        raise CommandError(f"backend {name!r}: {reason}; usable here: auto, {', '.join(usable)}")
    return name


def emit(text: str) -> None:
    """One answer to stdout, at once, above a progress bar where there is one."""
    encoding = sys.stdout.encoding or "utf-8"
    tqdm.write(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stdout)
    sys.stdout.flush()


def complain(text: str) -> None:
    """One line to stderr, above a progress bar where there is one."""
    encoding = sys.stderr.encoding or "utf-8"
    tqdm.write(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr)
