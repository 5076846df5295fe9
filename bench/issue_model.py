"""A model, not a measurement: do the CUDA kernels have instructions to spare while memory delivers?

    python -m bench.issue_model            compiles csrc/cuda for sm_90 and prints a table
    python -m bench.issue_model --kernel depthwise_fwd

It reads machine code. Of every kernel it takes the steady-state loop, walks the path through its
body that does most work (less the blocks that the modelled call does not enter), and counts, for
each 16-byte vector that the loop writes (or reads, where it only reduces), instruction slots, and
the slots' worth of time of the units that are narrower than the issue ports. Beside them stands how
many slots the chip can issue while memory moves that vector's bytes. The largest figure names what
binds. Left out: latencies, occupancy, bank conflicts, the loops' beginnings and ends, halos.

The chip is an H100 (sm_90): 132 multiprocessors, 4 schedulers of 32 lanes each, at 1.755 GHz, and
3.0 TB/s. A slot is one lane of one instruction.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.sass import Loop, Program, cuobjdump, find_nvcc, programs

CSRC = Path(__file__).resolve().parents[1] / "csrc"
SLOTS_PER_SECOND = 132 * 4 * 32 * 1.755e9
BYTES_PER_SECOND = 3.0e12
VECTOR = 16

# Lanes per clock and multiprocessor (CUDA programming guide, arithmetic throughput, 9.0); what is
# not listed runs at the full 128. A unit of 64 lanes takes 2 slots' time for an instruction.
LANES = {"alu": 64, "multiply": 64, "conversion": 64, "mufu": 16, "shuffle": 32, "tensor": 32}
UNITS = {
    "alu": "IADD3 IADD LEA LOP3 PLOP3 SHF SHL SHR ISETP FSETP SEL FSEL IMNMX FMNMX VIMNMX PRMT MOV",
    "multiply": "IMAD",
    "conversion": "F2F F2FP I2F F2I HADD2 I2FP",
    "mufu": "MUFU",
    "shuffle": "SHFL",
    "tensor": "HMMA",  # of 16 x 8 x 16 by mma.sync: four clocks of a scheduler's own
}
UNIT_OF = {opcode: unit for unit, opcodes in UNITS.items() for opcode in opcodes.split()}
SHARED_BYTES_PER_CLOCK = 128


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


# What a path is chosen by: of branches, the one that computes and moves more, in the fewest
# instructions. So SiLU is taken rather than a clamp, and whole windows rather than edges.
WORK = re.compile(r"^(FFMA|FMUL|FADD|HMMA|MUFU|LDS|LDSM|STS|LDG|LDGSTS|STG)\b")
# Ways that the modelled calls do not take: single channels stored where C is odd, and sums that are
# NaN taken again, channel by channel.
SINGLE, AGAIN = r"STG\S*U16", r"LDG\S*U16|I2F"
# A pool cell is written every 4th row, and moments are rebased twice in a thread's life.
POOL, REBASE = r"^STS$", r"MUFU\.RCP"


def _models() -> list[Model]:
    found = []
    for kernel in (3, 5):
        for stride in (1, 2):
            name = rf"depthwise_tensor_kernel<__nv_bfloat16, {kernel}, {stride}, "
            shape = f"k{kernel} s{stride}"
            traffic = VECTOR * (stride * stride + 1)
            label = f"depthwise inference {shape}"
            found.append(Model(label, name + "false>", traffic, AGAIN, POOL, 0.25))
            # With an output activation, which training does not have: an upper bound.
            label = f"depthwise training {shape}"
            found.append(Model(label, name + "true>", traffic, rf"{AGAIN}|{POOL}", REBASE))
            # dx and x at full size, g and y at the output's.
            traffic = 2 * VECTOR + 2 * VECTOR // stride**2
            name = (
                rf"depthwise_tensor_bwd_kernel<{kernel}>"
                if stride == 1
                else rf"depthwise_bwd_kernel<__nv_bfloat16, {kernel}, {stride}\b"
            )
            without = rf"{SINGLE}|{AGAIN}" if stride == 1 else SINGLE
            found.append(Model(f"depthwise backward {shape}", name, traffic, without))
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


def _bytes(opcode: str) -> int:
    """That a load or store moves for one lane."""
    if matrices := re.search(r"LDSM\.16\.M(?:T)?88\.([24])", opcode):
        return 4 * int(matrices[1])
    width = re.search(r"\.(?:U|S)?(8|16|32|64|128)\b", opcode)
    return int(width[1]) // 8 if width else 4


def estimate(loop: Loop, model: Model) -> Estimate:
    """Count along the steady path of ``loop``."""
    rare = re.compile(model.rare)
    path = loop.steady_path(WORK, re.compile(model.avoid), rare, model.share)
    units: defaultdict[str, float] = defaultdict(float)
    moved = 0.0
    for instruction, weight in path:
        opcode = instruction.opcode
        name = opcode.split(".")[0]
        if unit := UNIT_OF.get(name):
            units[unit] += weight * 128 / LANES[unit]
        if name in ("LDS", "LDSM", "STS"):
            units["shared memory"] += weight * _bytes(opcode) * 128 / SHARED_BYTES_PER_CLOCK
        wanted = ("STG",) if model.per == "stored" else ("LDG", "LDGSTS")
        moved += weight * _bytes(opcode) if name in wanted else 0
    vectors = moved / VECTOR
    if vectors == 0:
        raise ValueError(f"{model.label}: the loop has no vectors that are {model.per}")
    seconds = model.bytes_per_vector / BYTES_PER_SECOND
    return Estimate(
        sum(weight for _, weight in path) / vectors,
        {unit: time / vectors for unit, time in units.items()},
        seconds * SLOTS_PER_SECOND,
    )


def steady_loop(program: Program, per: str) -> Loop:
    """The innermost loop that moves vectors and computes most."""
    wanted = re.compile(r"^STG" if per == "stored" else r"^LDG")
    candidates = [loop for loop in program.loops() if loop.has(wanted)]
    if not candidates:
        raise ValueError(f"{program.name} has no loop with the memory instruction {wanted.pattern}")
    innermost = [a for a in candidates if not any(b.blocks < a.blocks for b in candidates)]
    return max(innermost, key=lambda loop: loop.count(re.compile(r"^(FFMA|FMUL|FADD|HFMA2|HMMA)")))


def compile_for_sm_90(kernel: str) -> Iterator[Program]:
    """The programs of every .cu whose name contains ``kernel``."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise SystemExit("nvcc is neither in $CUDA_HOME/bin nor in PATH")
    with tempfile.TemporaryDirectory() as scratch:
        for source in sorted((CSRC / "cuda").glob("*.cu")):
            if kernel not in source.name:
                continue
            cubin = Path(scratch, f"{source.stem}.cubin")
            command = [nvcc, "-std=c++17", "-O3", f"-I{CSRC}", "-arch=sm_90", "-cubin"]
            subprocess.run([*command, str(source), "-o", str(cubin)], check=True)
            yield from programs(cubin)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.issue_model", description=__doc__)
    parser.add_argument("--kernel", default="", help="only .cu files with this in their name")
    parser.add_argument("--cubin", type=Path, help="read this instead of compiling")
    chosen = parser.parse_args()
    if cuobjdump() is None:
        raise SystemExit("cuobjdump is neither beside nvcc nor in Triton's package")
    found = programs(chosen.cubin) if chosen.cubin else compile_for_sm_90(chosen.kernel)
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
