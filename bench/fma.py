"""The most fused multiply-adds a second that this CPU's cores do: the arithmetic ceiling.

A loop of independent multiply-adds in registers, compiled for the machine at hand by its C++
compiler (torch.compile needs one too), on as many threads as torch uses.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

SOURCE = """
#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));
constexpr int kChains = 12;  // more than latency times units, and all of them in registers

// Does kChains vectors of multiply-adds `rounds` times; returns the flop of it.
extern "C" double multiply_add(long rounds, float* out) {
  const Vector a = Vector{} + out[0], b = Vector{} + out[1];
  Vector chain[kChains];
  for (int i = 0; i < kChains; ++i) chain[i] = Vector{} + out[0] * i;
  for (long r = 0; r < rounds; ++r)
    for (int i = 0; i < kChains; ++i) chain[i] = chain[i] * a + b;
  Vector sum{};
  for (int i = 0; i < kChains; ++i) sum += chain[i];
  out[2] = sum[0];
  return 2.0 * kChains * (kBytes / sizeof(float)) * rounds;
}
"""
ROUNDS = 4_000_000  # some 10 ms


def samples(repeats: int) -> tuple[int, list[float]]:
    """Flop of one sample on all threads, and the ms of each sample.

    Raises OSError where there is no C++ compiler.
    """
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise OSError("no C++ compiler (c++, g++) in PATH: the FMA peak is not measured")
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as scratch:
        library = Path(scratch, "fma.so")
        command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", "-x", "c++", "-"]
        subprocess.run([*command, "-o", str(library)], input=SOURCE, text=True, check=True)
        multiply_add = ctypes.CDLL(str(library)).multiply_add
    multiply_add.restype = ctypes.c_double
    multiply_add.argtypes = [ctypes.c_long, ctypes.POINTER(ctypes.c_float)]

    def run(_: int) -> float:  # ctypes gives up the GIL
        return float(multiply_add(ROUNDS, (ctypes.c_float * 3)(0.5, 0.5, 0.0)))

    times = []
    with ThreadPoolExecutor(threads) as pool:
        flop = int(sum(pool.map(run, range(threads))))
        for _ in range(repeats):
            start = time.perf_counter()
            list(pool.map(run, range(threads)))
            times.append(1e3 * (time.perf_counter() - start))
    return flop, times
