"""How a call is timed: by CUDA events or the clock, and on a GPU as the replay of a CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")


def milliseconds(run: Callable[[], object], cuda: bool) -> float:
    """One call, by CUDA events or by the clock."""
    if not cuda:
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    run()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after))


def percentiles(times: list[float]) -> dict[str, float]:
    """p20, p50 and p80."""
    values = np.percentile(times, (20, 50, 80))
    return {f"p{p}": float(v) for p, v in zip((20, 50, 80), values, strict=True)}


def replayable(run: Callable[[], T]) -> Callable[[], T]:
    """``run`` as a CUDA graph: a call replays it and returns the result, always the same tensors.

    So the time is the GPU's alone: launching an op from Python takes 10 to 100 us, as long as many
    of these kernels. Three calls before the capture let every library choose and load its kernels.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay(_held: Callable[[], T] = run) -> T:  # run's own tensors are the graph's inputs
        graph.replay()
        return result

    return replay
