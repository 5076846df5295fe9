"""A model, not a measurement: do the CUDA kernels have instructions to spare while memory delivers?

    python -m bench.issue_model            compiles csrc/cuda for sm_90 and prints a table
    python -m bench.issue_model --kernel depthwise_fwd
    python -m bench.issue_model --records FILE    depthwise layers, measured beside predicted

It reads machine code. Of every kernel it takes the steady-state loop, walks the path through its
body that does most work (less the blocks that the modelled call does not enter), and counts, for
each 16-byte vector that the loop writes (or reads, where it only reduces), instruction slots, and
the slots' worth of time of the units that are narrower than the issue ports. Beside them stands how
many slots the chip can issue while memory moves that vector's bytes. The largest figure names what
binds if nothing waits: latencies, occupancy, barriers, the loops' beginnings and ends, halos and
idle lanes are left out. With them depthwise layers of which this says that memory binds took up to
three times a copy's time on an H200.

With --records they are in (:mod:`bench.layer_model`, :mod:`bench.multiprocessor`): the table says
what the model makes of the sources that were measured and of those that there are now, and ends in
the mean and the spread of measured over predicted.

The chip is an H100 (sm_90): 132 multiprocessors, 4 schedulers of 32 lanes each, at 1.755 GHz, and
3.0 TB/s, or what a record measured. A slot is one lane of one instruction.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from bench.layer_model import CLOCK, MULTIPROCESSORS, VECTOR, table
from bench.multiprocessor import INTERVALS, SCHEDULERS, UNIT_OF, bytes_of
from bench.sass import Loop, compiled, cuobjdump, programs, steady_loop

CSRC = Path(__file__).resolve().parents[1] / "csrc"
SLOTS_PER_SECOND = MULTIPROCESSORS * SCHEDULERS * 32 * CLOCK
BYTES_PER_SECOND = 3.0e12

SHARED_BYTES_PER_CLOCK = 128
SHUFFLE_CLOCKS = 4  # of a scheduler: 32 lanes a clock for all four


@dataclass(frozen=True)
class Model:
    """How to read one kernel: whose vectors to count, and the bytes that memory moves for each."""

    label: str
    pattern: str  # of the readable name
    bytes_per_vector: int
    avoid: str = r"\0"  # blocks with such an instruction are not entered
    rare: str = r"\0"  # blocks with such an instruction are entered seldom:
    share: float = 0.0  # so often
    per: str = "stored"  # or "loaded": vectors of which the loop's figures are given


# Ways that the modelled calls do not take: single channels stored where C is odd, and sums that are
# NaN taken again, channel by channel.
SINGLE, AGAIN = r"STG\S*U16", r"LDG\S*U16|I2F"
# A pool cell is written every 4th row, boxes are asked for by one warp of mostly 4, and moments
# are rebased twice in a thread's life.
POOL, BOX, REBASE = r"^STS$", r"UTMALDG|SYNCS\.ARRIVE", r"MUFU\.RCP"


def _models() -> list[Model]:
    found = []
    for kernel in (3, 5):
        for stride in (1, 2):
            name = rf"depthwise_tensor_kernel<__nv_bfloat16, {kernel}, {stride}, "
            shape = f"k{kernel} s{stride}"
            traffic = VECTOR * (stride * stride + 1)
            label = f"depthwise inference {shape}"
            quarter = rf"{POOL}|{BOX}"
            found.append(Model(label, name + "false, true>", traffic, AGAIN, quarter, 0.25))
            label += " without boxes"
            found.append(Model(label, name + "false, false>", traffic, AGAIN, POOL, 0.25))
            # With an output activation, which training does not have: an upper bound.
            label = f"depthwise training {shape}"
            found.append(Model(label, name + "true, false>", traffic, rf"{AGAIN}|{POOL}", REBASE))
            # dx and x at full size, g and y at the output's.
            traffic = 2 * VECTOR + 2 * VECTOR // stride**2
            name = rf"depthwise_bwd_kernel<__nv_bfloat16, {kernel}, {stride}\b"
            found.append(Model(f"depthwise backward {shape}", name, traffic, SINGLE))
    for op, vectors, per in (
        ("bn_residual", 3, "stored"),
        ("bn_residual_bwd", 3, "stored"),
        ("bn_bwd_reduce", 1, "loaded"),
        ("se_pool", 1, "loaded"),
        ("se_bwd_reduce", 1, "loaded"),
    ):
        name = rf"\b{op}_kernel<__nv_bfloat16"
        found.append(Model(op, name, VECTOR * vectors, r"LDG\S*U16", per=per))
    return found


@dataclass(frozen=True)
class Estimate:
    """Slots for one vector: of every instruction, of the narrow units' time, of memory's time."""

    slots: float
    units: dict[str, float]
    memory: float

    @property
    def binding(self) -> str:
        """What takes longest."""
        times = {"issue": self.slots, "memory": self.memory, **self.units}
        return max(times, key=times.__getitem__)


def estimate(loop: Loop, model: Model) -> Estimate:
    """Count along the steady path of ``loop``."""
    blocks = loop.steady_blocks(model.avoid, model.rare, model.share)
    path = [(instruction, weight) for block, weight in blocks for instruction in block]
    units: defaultdict[str, float] = defaultdict(float)
    moved = 0.0
    for instruction, weight in path:
        opcode = instruction.opcode
        name = opcode.split(".")[0]
        if unit := UNIT_OF.get(name):
            units[unit] += weight * INTERVALS[unit]
        if name == "SHFL":
            units["shuffle"] += weight * SHUFFLE_CLOCKS
        if name in ("LDS", "LDSM", "STS"):
            units["shared memory"] += weight * bytes_of(opcode) * 128 / SHARED_BYTES_PER_CLOCK
        wanted = ("STG",) if model.per == "stored" else ("LDG", "LDGSTS")
        moved += weight * bytes_of(opcode) if name in wanted else 0
    vectors = moved / VECTOR
    if vectors == 0:
        raise ValueError(f"{model.label}: the loop has no vectors that are {model.per}")
    seconds = model.bytes_per_vector / BYTES_PER_SECOND
    return Estimate(
        sum(weight for _, weight in path) / vectors,
        {unit: time / vectors for unit, time in units.items()},
        seconds * SLOTS_PER_SECOND,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.issue_model", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--kernel", default="", help="only .cu files with this in their name")
    parser.add_argument("--cubin", type=Path, help="read this instead of compiling")
    parser.add_argument("--records", type=Path, help="of bench.kernels on a GPU: depthwise layers")
    chosen = parser.parse_args()
    if cuobjdump() is None:
        raise SystemExit("cuobjdump is neither beside nvcc nor in Triton's package")
    if chosen.records:
        for line in table(chosen.records):
            print(line, flush=True)
        return
    sources = sorted((CSRC / "cuda").glob(f"*{chosen.kernel}*.cu"))
    found = programs(chosen.cubin) if chosen.cubin else compiled(sources, CSRC)
    by_name = {program.name: program for program in found}
    print("A static model of sm_90, bf16: slots per 16-byte vector. Not a measurement.")
    print("| kernel | slots | memory delivers in | binding | narrow units |")
    print("|---|---|---|---|---|")
    for model in _models():
        for name, program in by_name.items():
            if not re.search(model.pattern, name):
                continue
            e = estimate(steady_loop(program, model.per), model)
            units = ", ".join(f"{u} {t:.0f}" for u, t in sorted(e.units.items()))
            print(f"| {model.label} | {e.slots:.0f} | {e.memory:.0f} | {e.binding} | {units} |")


if __name__ == "__main__":
    main()
