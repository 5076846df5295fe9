"""What a multiprocessor's clock does with its warps: machine code run without data, on a model.

Every warp walks one path through a kernel's steady-state loop, over and over. A scheduler issues
one instruction per clock, of the warp that may go on and has waited longest. A warp may go on when
the clocks have passed that its last instruction stalls it for, when the scoreboards are free that
the next one waits for (both as the compiler wrote them into the code), when the sums that it reads
have left the tensor core, and when the unit it needs is free. At a barrier it waits for its block;
at a wait for asynchronous copies, or for a row that comes in boxes, for memory. Boxes cost what
copies of the same lines do: nothing measured says otherwise.

Units of a scheduler's own take an instruction for some clocks; what the multiprocessor has one of
(shared memory, the way to L2, its share of memory's bandwidth) serves in order of arrival. Not
modelled: instruction fetch, register banks, divergence, L1 hits, and what other multiprocessors do.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.sass import REGISTER, Instruction

SCHEDULERS = 4

# Of a scheduler's own units: clocks that one instruction of a warp takes (CUDA programming guide,
# arithmetic throughput, 9.0).
INTERVALS = {"alu": 2.0, "multiply": 2.0, "conversion": 2.0, "mufu": 8.0, "tensor": 4.0}
UNITS = {
    "alu": "IADD3 IADD LEA LOP3 PLOP3 SHF SHL SHR ISETP FSETP SEL FSEL IMNMX FMNMX VIMNMX PRMT MOV",
    "multiply": "IMAD",
    "conversion": "F2F F2FP I2F F2I HADD2 I2FP",
    "mufu": "MUFU",
    "tensor": "HMMA",  # of 16 x 8 x 16; of 16 x 8 x 8 half as long
}
UNIT_OF = {opcode: unit for unit, opcodes in UNITS.items() for opcode in opcodes.split()}
# Clocks from issue to result, for what scoreboards tell of, and of the tensor core.
LATENCIES = {"shared": 29.0, "shuffle": 24.0, "mufu": 20.0, "tensor": 33.0, "other": 24.0}
GLOBAL_LATENCY = 600.0
QUEUE = 48.0  # clocks of work that may wait before a shared unit
WRITES = 2000.0  # and before memory
SUBSET = re.compile(r"\.(?:U|S)?(8|16|32|64|128)\b")


def bytes_of(opcode: str) -> int:
    """That a load or store moves for one lane."""
    if matrices := re.search(r"LDSM\.16\.M(?:T)?88\.([24])", opcode):
        return 4 * int(matrices[1])
    width = SUBSET.search(opcode)
    return int(width[1]) // 8 if width else 4


@dataclass(frozen=True)
class Access:
    """A warp's load or store, on average: lines of 128 bytes, and bytes that memory moves."""

    lines: float
    bytes: float


@dataclass(frozen=True)
class Machine:
    """The rates of one multiprocessor, in clocks, and what was fitted to measurements."""

    bytes_per_clock: float  # memory's, its share
    line_clocks: float  # between two lines' requests on the way to L2
    barrier_clocks: float
    copy: Access = field(default=Access(8, 512))  # LDGSTS and LDG
    store: Access = field(default=Access(8, 256))  # STG
    conflicts: float = 1.0  # of LDS, STS and copies of 16 bytes: clocks for those of a fair spread
    ring: int = 0  # rows that boxes fill, all but one of them on their way


@dataclass(frozen=True)
class Step:
    """One instruction, as the simulation wants it."""

    kind: str  # "plain", "shared", "shuffle", "copy", "load", "store", "commit", "wait", "barrier",
    # and of boxes "box", "arm", "row"
    stall: int
    sets: tuple[int, ...]
    waits: tuple[int, ...]
    unit: str | None
    busy: float  # clocks of its unit
    latency: float
    needs: tuple[int, ...]  # HMMA whose sums it reads, by place in the path
    pending: int = 0  # groups of copies that a wait lets stay on their way


def _kind(opcode: str) -> str:
    name = opcode.split(".")[0]
    if name in ("LDS", "LDSM", "STS", "ATOMS"):
        return "shared"
    if name == "SYNCS":
        return "row" if "PHASECHK" in opcode else "arm"
    return {
        "SHFL": "shuffle", "LDGSTS": "copy", "LDG": "load", "STG": "store", "LDGDEPBAR": "commit",
        "DEPBAR": "wait", "BAR": "barrier", "UTMALDG": "box",
    }.get(name, "plain")  # fmt: skip


def steps(path: Sequence[Instruction], machine: Machine) -> list[Step]:
    """The path for :func:`clocks_per_pass`."""
    found: list[Step] = []
    sums: dict[int, int] = {}  # register -> place of the HMMA that it comes from
    for place, instruction in enumerate(path):
        name = instruction.opcode.split(".")[0]
        registers = [int(r) for r in REGISTER.findall(instruction.text)]
        kind, unit = _kind(instruction.opcode), UNIT_OF.get(name)
        busy = INTERVALS[unit] if unit else 1.0
        latency = LATENCIES.get(unit or kind, LATENCIES["other"])
        if name == "HMMA":
            # D and, the last operand, C; A and B come from loads, which scoreboards tell of.
            reads = registers[-1:] if "RZ" not in instruction.text.split(",")[-1] else []
            needs = {sums[r] for r in reads if r in sums}
            half = ".1688." in instruction.opcode
            busy, latency = busy / (2 if half else 1), latency * (0.75 if half else 1)
            sums |= dict.fromkeys(range(registers[0], registers[0] + 4), place)
        else:
            needs = {sums.pop(r) for r in registers if r in sums}
        if kind == "shared":
            busy = bytes_of(instruction.opcode) / 4
            if name != "LDSM" and bytes_of(instruction.opcode) == 16:
                busy *= machine.conflicts
            if "RZ, [RZ]" in instruction.text:  # does nothing but keep copies in order
                busy = 1.0
        pending = int(instruction.text.split(",")[-1], 16) if kind == "wait" else 0
        control = instruction.control
        found.append(Step(
            kind, max(control.stall, 1), control.sets, control.waits, unit, busy, latency,
            tuple(needs), pending,
        ))  # fmt: skip
    return found


class _Warp:
    def __init__(self, block: int, start: float, program: list[Step]) -> None:
        self.block, self.ready, self.place, self.passes = block, start, 0, 0
        self.program = program
        self.board = [0.0] * 6
        self.sums = [0.0] * len(program)
        self.copies = 0.0  # when the last of those not yet committed is there
        self.groups: deque[float] = deque()
        self.rows = 0  # of boxes, that it has waited for
        self.at_barrier = False

    def earliest(self, step: Step, boxes: Sequence[float], ring: int) -> float:
        """When it may issue ``step``, units aside; ``boxes``: when those of its block are there."""
        when = self.ready
        for b in step.waits:
            when = max(when, self.board[b])
        for place in step.needs:
            when = max(when, self.sums[place])
        if step.kind == "wait" and len(self.groups) > step.pending:
            when = max(when, *list(self.groups)[: len(self.groups) - step.pending])
        # The first rows were asked for before the loop.
        if step.kind == "row" and (row := self.rows - (ring - 1)) >= 0:
            when = max(when, boxes[row] if row < len(boxes) else math.inf)
        return when


def clocks_per_pass(
    paths: Sequence[Sequence[Instruction]], machine: Machine, blocks: int, passes: int = 10
) -> float:
    """Clocks between two passes of a warp through its path, once that is steady.

    ``paths``: of each warp of a block, with as many barriers each; the multiprocessor holds so many
    ``blocks``.
    """
    programs = {id(path): steps(path, machine) for path in paths}
    warps = len(paths)
    # Blocks begin one after another: their rows do not march in step.
    all_warps = [
        _Warp(b, 137.0 * b, programs[id(path)]) for b in range(blocks) for path in paths
    ]  # fmt: skip
    own = [all_warps[s::SCHEDULERS] for s in range(SCHEDULERS)]
    free = [dict.fromkeys(INTERVALS, 0.0) for _ in range(SCHEDULERS)]
    shared = lines = memory = 0.0  # when each will have done what is queued
    waiting = [0] * blocks
    boxes: list[list[float]] = [[] for _ in range(blocks)]
    half: dict[int, float] = {}
    clock = 0.0
    while any(w.passes < passes for w in all_warps):
        following = clock + 1e9
        for scheduler in range(SCHEDULERS):
            chosen, oldest = None, 1e18
            for w in own[scheduler]:
                if w.at_barrier:
                    continue
                step = w.program[w.place]
                when = w.earliest(step, boxes[w.block], machine.ring)
                if step.unit:
                    when = max(when, free[scheduler][step.unit])
                if step.kind == "shared" or step.kind == "shuffle":
                    when = max(when, shared - QUEUE)
                elif step.kind in ("copy", "load", "store"):
                    when = max(when, lines - QUEUE, memory - WRITES if step.kind == "store" else 0)
                if when > clock:
                    following = min(following, when)
                elif w.ready < oldest:
                    chosen, oldest = w, w.ready
            if chosen is None:
                continue
            following = clock + 1
            w, step = chosen, chosen.program[chosen.place]
            done = clock + step.latency
            if step.unit:
                free[scheduler][step.unit] = clock + step.busy
                if step.unit == "tensor":
                    w.sums[w.place] = done
            if step.kind in ("shared", "shuffle"):
                shared = max(shared, clock) + step.busy
                done = shared + step.latency
            elif step.kind in ("copy", "load", "store", "box"):
                access = machine.store if step.kind == "store" else machine.copy
                lines = max(lines, clock) + access.lines * machine.line_clocks
                memory = max(memory, lines) + access.bytes / machine.bytes_per_clock
                done = lines + step.latency  # when its operands have been read
                if step.kind == "copy":
                    w.copies = max(w.copies, memory + GLOBAL_LATENCY)
                elif step.kind == "box":
                    boxes[w.block][-1] = memory + GLOBAL_LATENCY
                elif step.kind == "load":
                    done = memory + GLOBAL_LATENCY
            elif step.kind == "arm":
                boxes[w.block].append(math.inf)
            elif step.kind == "row":
                w.rows += 1
            elif step.kind == "commit":
                w.groups.append(w.copies)
                if len(w.groups) > 16:
                    w.groups.popleft()
            for b in step.sets:
                w.board[b] = max(w.board[b], done)
            w.ready = clock + step.stall
            if step.kind == "barrier":
                waiting[w.block] += 1
                w.at_barrier = True
                if waiting[w.block] == warps:
                    waiting[w.block] = 0
                    for other in all_warps:
                        if other.block == w.block:
                            other.at_barrier = False
                            other.ready = clock + max(step.stall, machine.barrier_clocks)
            w.place += 1
            if w.place == len(w.program):
                w.place, w.passes = 0, w.passes + 1
                if w.passes == passes // 2:
                    half[id(w)] = clock
                elif w.passes == passes:
                    half[id(w)] = (clock - half[id(w)]) / (passes - passes // 2)
        clock = following
    return sum(half.values()) / len(half)
