"""How long a depthwise layer takes by the model of a multiprocessor: geometry times clocks.

A launch is `waves` of work items per block; an item is `rows` rows of `column_tiles` tiles, with
those that complete its windows. What a block does for one row comes from the machine code
(:mod:`bench.multiprocessor`), with as many blocks beside it as a multiprocessor holds. Tiles come
from the library's own launchers (bench/tiles.cpp), the share of columns, channels and rows that do
not exist with them. A block's rows in flight stand beside Little's law in the table.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from bench import records
from bench.multiprocessor import Access, Machine, clocks_per_pass
from bench.sass import Instruction, Loop, Program, compiled, steady_loop

ROOT = Path(__file__).resolve().parents[1]
MULTIPROCESSORS = 132
CLOCK = 1.755e9
LATENCY = 800e-9  # of memory under load, for Little's law
# Fitted, with Machine's line_clocks and barrier_clocks, to the records of an H200.
START_CLOCKS = 1500.0  # from item to item: places, and the first row's way
LAUNCH_SECONDS = 3e-6
LINE_CLOCKS, BARRIER_CLOCKS, CONFLICTS = 2.0, 20.0, 1.3
LINE = 128
VECTOR = 16

# Ways not taken: single channels where C is odd, sums that are NaN taken again, clamps, residual
# gradients; and where nothing is fused, activations.
NOT_TAKEN = r"(STG|LDG)\S*U16|I2F|^LDG\.|FSETP\.GEU"
POOL = r"^STS$"  # a cell of pool sums, every 4th row
AVOID = {
    "plain": rf"{NOT_TAKEN}|MUFU|{POOL}",
    "inference": NOT_TAKEN,
    "training": rf"{NOT_TAKEN}|{POOL}|MUFU\.RCP",
    "backward": NOT_TAKEN,
}
SOURCES = ("depthwise_tensor", "depthwise_bwd")


class Layer(NamedTuple):
    """Of a depthwise op: its mode as in bench.kernels, taps, stride and x's [n, c, side, side]."""

    mode: str
    kernel: int
    stride: int
    n: int
    c: int
    side: int


class TileOf(NamedTuple):
    """A launch as bench/tiles.cpp prints it: csrc/cuda/depthwise.cuh says what its fields are."""

    vectors: int
    groups: int
    images: int
    columns_in: int
    rows: int
    column_tiles: int
    items: int
    channel_blocks: int
    parts: int
    threads: int
    shared: int


@dataclass(frozen=True)
class Prediction:
    """Seconds, and where they come from; clocks are of a row of all blocks that are resident."""

    seconds: float
    clocks: float
    compute: float  # clocks with memory that never lets wait
    memory: float  # clocks that the bytes take at copy bandwidth
    in_flight: float  # bytes on their way to a multiprocessor
    needed: float  # by Little's law, at copy bandwidth
    lanes: float  # share that has pixels and channels that exist


def tiles(csrc: Path, layers: Sequence[Layer]) -> list[TileOf | None]:
    """How each layer is cut by the launchers of ``csrc``; None: another kernel takes it."""
    from tests.cuda_emu.build import cuda_includes, why_not

    if (reason := why_not()) is not None:
        raise SystemExit(f"bench/tiles.cpp cannot be compiled: {reason}")
    with tempfile.TemporaryDirectory() as scratch:
        program = f"{scratch}/tiles"
        flags = "-std=c++17 -O0 -w -static -no-pie -fno-pic -x c++ -include cuda_emulator.h"
        paths = f"-DEFFNET_FAST_CUDA_ARCHS=90 -I{csrc} -I{csrc.parent}/tests/cuda_emu"
        command = ["g++", *flags.split(), *paths.split(), "-isystem", str(cuda_includes())]
        command += [str(ROOT / "bench" / "tiles.cpp"), "-Wl,--unresolved-symbols=ignore-all"]
        subprocess.run([*command, "-o", program], check=True)
        asked = "".join(
            f"{x.mode} {x.kernel} {x.stride} {x.n} {x.c} {x.side} {x.side} {MULTIPROCESSORS}\n"
            for x in layers
        )
        said = subprocess.run([program], input=asked, capture_output=True, text=True, check=True)
    return [TileOf(*map(int, a.split())) if a else None for a in said.stdout.splitlines()]


def lines_per_chunk(c: int, chunk: int) -> float:
    """Lines of 128 bytes that ``chunk`` neighbouring bytes of one pixel of ``c`` channels touch."""
    pixel = 2 * c
    if chunk >= pixel:
        return pixel / LINE
    starts = [p * pixel + b for p in range(64) for b in range(0, pixel - chunk + 1, chunk)]
    return sum((a + chunk - 1) // LINE - a // LINE + 1 for a in starts) / len(starts)


def rows_in_ring(program: Program) -> int:
    """Of a kernel whose rows come in boxes: the barriers that it makes; else 0."""
    made = (i.opcode.startswith("SYNCS.EXCH") for block in program.blocks for i in block)
    return sum(made)


def _has(block: Sequence[Instruction], pattern: str) -> bool:
    return any(re.match(pattern, i.opcode) for i in block)


def paths(loop: Loop, layer: Layer, tile: TileOf) -> list[list[Instruction]]:
    """One for each warp of a block. Between wait and barrier a thread rebuilds what it copied: one
    vector, and some warps, where a row has more than threads, another. Boxes the first asks for.
    """
    warps = tile.threads // 32
    if loop.has(re.compile("UTMALDG")):
        first, others = (
            [i for block, weight in loop.steady_blocks(avoid, POOL, 0.25) if weight == 1
             for i in block]
            for avoid in (AVOID[layer.mode], rf"{AVOID[layer.mode]}|UTMALDG")
        )  # fmt: skip
        return [first] + [others] * (warps - 1)
    blocks = loop.steady_blocks(AVOID[layer.mode], POOL, 0.25)
    both: list[Instruction] = []
    one: list[Instruction] = []
    zone, stored = "after", False
    for block, weight in blocks:
        if weight < 1:
            continue  # every 4th row: left out
        if _has(block, "BAR"):
            zone = "multiply"
        if layer.mode == "training" and zone == "after" and _has(block, r"MUFU\.TANH"):
            continue  # an output activation, which training does not have
        both += block
        if not (zone == "before" and stored):
            one += block
        stored = stored or (zone == "before" and _has(block, r"STS\.128"))
        if _has(block, "HMMA"):
            zone = "after"
        if _has(block, "DEPBAR"):
            zone, stored = "before", False
    second = math.ceil((tile.columns_in * tile.images * tile.vectors - tile.threads) / 32)
    second = min(max(second, 0), warps) if layer.mode in ("training", "backward") else 0
    return [both] * second + [one] * (warps - second)


def resident(registers: int, tile: TileOf, grid: int) -> int:
    """Blocks of a multiprocessor: by registers, shared memory and those that there are."""
    warps = tile.threads // 32
    by_registers = 4 * (512 // (-(-registers // 8) * 8)) // warps
    by_shared = 227 * 1024 // (tile.shared + 1024)
    return max(1, min(by_registers, by_shared, round(grid / MULTIPROCESSORS)))


def predict(program: Program, layer: Layer, tile: TileOf, bytes_per_second: float) -> Prediction:
    """What the model says of a launch."""
    backward = layer.mode == "backward"
    k, s, c = layer.kernel, layer.stride, layer.c
    out = -(-layer.side // s)
    warp_paths = paths(steady_loop(program, "stored"), layer, tile)

    def count(*names: str) -> int:
        return sum(i.opcode.split(".")[0] in names for p in warp_paths for i in p)

    warps = len(warp_paths)
    rows = 1.0 if backward else count("STG") / warps / 2  # of output, or of positions, in a pass
    grid = tile.parts * tile.channel_blocks
    blocks = resident(program.registers(), tile, grid)
    waves = -(-tile.items // tile.parts)
    window = (k + s - 1) // s - 1 if backward else (k - 1) / s
    # Bytes that memory moves for a row of one block, and lines on their way to L2.
    maps_in = 2 * out * out + layer.side**2 if backward else layer.side**2
    maps_out = layer.side**2 if backward else out * out
    block_rows = grid * waves * tile.column_tiles * tile.rows
    bytes_in, bytes_out = (2 * layer.n * c * m / block_rows for m in (maps_in, maps_out))
    wide = tile.groups * tile.column_tiles * (4 // s if backward else 8)
    columns_exist = min(1.0, (layer.side / s if backward else out) / wide)
    chunk = lines_per_chunk(c, tile.vectors * VECTOR)
    if backward:
        own = tile.groups * 4 * tile.images * s
        lines_in = (2 * tile.columns_in * tile.images + own) * chunk
        lines_out = own * chunk * columns_exist
    else:
        lines_in = tile.columns_in * tile.images * s * chunk
        per_store = min(8 * lines_per_chunk(c, 32), 8 * 2 * c / LINE)
        lines_out = warps * 2 * per_store * columns_exist
    copies, stores = count("LDGSTS", "LDG", "UTMALDG") / rows, count("STG") / rows
    share = bytes_per_second / MULTIPROCESSORS
    machine = Machine(
        share / CLOCK, LINE_CLOCKS, BARRIER_CLOCKS,
        Access(lines_in / copies, bytes_in / copies),
        Access(lines_out / stores, bytes_out / stores), CONFLICTS, rows_in_ring(program),
    )  # fmt: skip
    clocks = clocks_per_pass(warp_paths, machine, blocks) / rows
    endless = replace(machine, bytes_per_clock=math.inf, line_clocks=0.0)
    waits = [i for i in warp_paths[0] if i.opcode.startswith("DEPBAR")]
    pending = int(waits[0].text.split(",")[-1], 16) if waits else machine.ring - 2
    total = waves * tile.column_tiles * ((tile.rows + window) * clocks + START_CLOCKS)
    lanes = columns_exist * c / (tile.channel_blocks * tile.vectors * 8)
    return Prediction(
        total / CLOCK + LAUNCH_SECONDS,
        clocks,
        clocks_per_pass(warp_paths, endless, blocks) / rows,
        blocks * (bytes_in + bytes_out) / machine.bytes_per_clock,
        blocks * bytes_in * (pending + 1),
        share * bytes_in / (bytes_in + bytes_out) * LATENCY,
        lanes * tile.items / (waves * tile.parts),
    )


def kernel_of(layer: Layer) -> str:
    """A pattern of its kernel's readable name."""
    shape = f"<__nv_bfloat16, {layer.kernel}, {layer.stride}"
    if layer.mode == "backward":
        return f"depthwise_bwd_kernel{shape}>"
    # Older sources knew no boxes. Others use them where the launcher (bench/tiles.cpp) is asked to.
    prologue, boxes = "false", str(os.environ.get("EFFNET_FAST_CUDA_BOXES") == "1").lower()
    if layer.mode == "training":
        prologue, boxes = "true", "false"
    return f"depthwise_tensor_kernel{shape}, {prologue}(, {boxes})?>"


def predictions(
    csrc: Path, layers: Sequence[Layer], bytes_per_second: float
) -> list[Prediction | None]:
    """Of every layer that these sources' modelled kernels take."""
    found = list(compiled([csrc / "cuda" / f"{name}.cu" for name in SOURCES], csrc))
    answers: list[Prediction | None] = []
    for layer, tile in zip(layers, tiles(csrc, layers), strict=True):
        program = next((p for p in found if re.search(kernel_of(layer), p.name)), None)
        # Once products had the backward pass at stride 1.
        other = layer.mode == "backward" and layer.stride == 1
        other = other and (csrc / "cuda" / "depthwise_tensor_bwd.cu").exists()
        # And for a while the forward pass of training at stride 2, in three slots a thread.
        other = other or (layer.mode == "training" and layer.stride == 2)
        if other or tile is None or program is None:
            answers.append(None)
        else:
            answers.append(predict(program, layer, tile, bytes_per_second))
    return answers


def measured(path: Path) -> tuple[dict[Layer, float], float, str]:
    """(layer -> seconds, copy bandwidth, commit) of a record of bench.kernels."""
    found: dict[Layer, float] = {}
    bandwidth, commit = 0.0, ""
    for line in records.read(path):
        if line["ms"] is None:
            continue
        seconds = line["ms"]["p50"] / 1e3
        if line["op"] == "copy":
            bandwidth, commit = line["bytes"] / seconds, line["environment"]["commit"]
        shape = re.match(r"k(\d) s(\d) c(\d+) (\d+)x", line["case"])
        if shape and line["op"].startswith("depthwise") and line["backend"] == "cuda":
            found.setdefault(Layer(line["mode"], *_of(shape, line)), seconds)
    if not bandwidth:
        raise SystemExit(f"{path} has no copy bandwidth: it is not a record of bench.kernels")
    if not found:
        raise SystemExit(f"{path} has no depthwise layer of the backend cuda")
    return found, bandwidth, commit


def _of(shape: re.Match[str], line: dict[str, Any]) -> tuple[int, int, int, int, int]:
    kernel, stride, c, side = map(int, shape.groups())
    return kernel, stride, line["shape"][0], c, side


def sources_at(commit: str, folder: Path) -> Path:
    """csrc as it was, and the emulator's headers for it."""
    archive = ["git", "archive", commit, "csrc", "tests/cuda_emu"]
    packed = subprocess.run(archive, cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed, check=True)
    return folder / "csrc"


def table(path: Path) -> Iterator[str]:
    """Measured and predicted, for the sources that were measured and for those that there are."""
    found, bandwidth, commit = measured(path)
    layers = list(found)
    with tempfile.TemporaryDirectory() as folder:
        then = predictions(sources_at(commit, Path(folder)), layers, bandwidth)
    now = predictions(ROOT / "csrc", layers, bandwidth)
    yield f"Measured at {commit[:7]}, copy {bandwidth / 1e12:.2f} TB/s; the rest is a model's."
    yield (
        "| layer | measured us | model us | quotient | clocks a row: all, computing, memory | "
        "KB in flight, needed | lanes used | model now us |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    logs = []
    for layer, old, new in zip(layers, then, now, strict=True):
        us = 1e6 * found[layer]
        mode, k, s, _, c, side = layer
        cells = [f"{mode} k{k} s{s} c{c} {side}x{side}", f"{us:.0f}"]
        if old is None:
            cells += ["another kernel", "", "", "", ""]
        else:
            logs.append(math.log(us / old.seconds / 1e6))
            cells += [
                f"{1e6 * old.seconds:.0f}", f"{us / old.seconds / 1e6:.2f}",
                f"{old.clocks:.0f}, {old.compute:.0f}, {old.memory:.0f}",
                f"{old.in_flight / 1024:.0f}, {old.needed / 1024:.0f}", f"{100 * old.lanes:.0f} %",
            ]  # fmt: skip
        cells.append(f"{1e6 * new.seconds:.0f}" if new else "another kernel")
        yield f"| {' | '.join(cells)} |"
    if not logs:
        return
    mean = math.exp(sum(logs) / len(logs))
    spread = math.exp(math.sqrt(sum((x - math.log(mean)) ** 2 for x in logs) / len(logs)))
    yield f"measured / model: geometric mean {mean:.2f}, spread a factor of {spread:.2f}"
