"""How much memory something takes: the GPU's allocator's figures, or the resident set on a CPU."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter:
    """Bytes taken beyond those in use when the meter was made, at the most.

    On a GPU: since then, by torch.cuda.max_memory_allocated. On a CPU: during :meth:`peak`'s call,
    by Linux's high-water mark of the resident set, so that compiling and converting a model, which
    end before, do not count; what the model and its runtime keep does.
    """

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            _trim()
        self.before = torch.cuda.memory_allocated() if cuda else _resident("VmRSS") or 0

    def peak(self, call: Callable[[], object]) -> int | None:
        """The bytes; ``call`` is what is measured on a CPU. None where the system does not say."""
        if self.cuda:
            return torch.cuda.max_memory_allocated() - self.before
        gc.collect()
        _trim()
        try:
            _CLEAR.write_text("5")  # the high-water mark becomes the present resident set
        except OSError:
            return None
        call()
        after = _resident("VmHWM")
        return None if after is None else max(0, after - self.before)


def _resident(field: str) -> int | None:
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:  # no Linux
        return None
    return None if found is None else 1024 * int(found[1])


def _trim() -> None:
    """Give freed memory back, or what the next allocates would not show; glibc only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
