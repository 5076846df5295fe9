"""Machine code of NVIDIA GPUs as cuobjdump prints it: instructions, blocks, loops, paths."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

# What a path is chosen by: of branches, the one that computes and moves more, in the fewest
# instructions. So SiLU is taken rather than a clamp, and whole windows rather than edges.
WORK = re.compile(r"^(FFMA|FMUL|FADD|HMMA|MUFU|LDS|LDSM|STS|LDG|LDGSTS|STG|UTMALDG)\b")
WORD = r"\s+/\* 0x([0-9a-f]{16}) \*/"
INSTRUCTION = re.compile(rf"/\*([0-9a-f]{{4,5}})\*/\s+(.*?)\s*;(?:{WORD}{WORD})?")
PREDICATE = re.compile(r"^@!?U?P\w+\s+")
REGISTER = re.compile(r"\bR(\d+)\b")
ADDRESS = re.compile(r"`\([^)]*\)|0x([0-9a-f]+)")


def find_nvcc() -> str | None:
    """nvcc of CUDA_HOME or PATH."""
    home = os.environ.get("CUDA_HOME")
    return (shutil.which("nvcc", path=f"{home}/bin") if home else None) or shutil.which("nvcc")


def cuobjdump() -> str | None:
    """In PATH, beside nvcc, or in Triton's package; None if nowhere."""
    if (found := shutil.which("cuobjdump")) is not None:
        return found
    beside = [Path(nvcc).resolve().parent] if (nvcc := find_nvcc()) else []
    triton = find_spec("triton")  # not imported: only its folder is wanted
    if triton is not None and triton.origin is not None:
        beside.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    return next((str(p / "cuobjdump") for p in beside if (p / "cuobjdump").exists()), None)


def compiled(sources: Iterable[Path], csrc: Path) -> Iterator[Program]:
    """The programs of CUDA files that include from ``csrc``, for sm_90."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise SystemExit("nvcc is neither in $CUDA_HOME/bin nor in PATH")
    with tempfile.TemporaryDirectory() as scratch:
        for source in sources:
            cubin = Path(scratch, f"{source.stem}.cubin")
            command = [nvcc, "-std=c++17", "-O3", f"-I{csrc}", "-arch=sm_90", "-cubin"]
            subprocess.run([*command, str(source), "-o", str(cubin)], check=True)
            yield from programs(cubin)


@dataclass(frozen=True)
class Control:
    """What the compiler tells the scheduler: bits 105 to 121 of an instruction, sm_70 on."""

    stall: int  # clocks until the warp's next instruction may be issued
    sets: tuple[int, ...]  # of six scoreboards, those that it holds until its result is there,
    # or its operands are read
    waits: tuple[int, ...]  # those that must be free before it is issued

    @staticmethod
    def of(high: int) -> Control:
        """Of an instruction's upper 64 bits."""
        bits = high >> 41
        held = {bits >> 5 & 7, bits >> 8 & 7} - {7}
        return Control(bits & 15, tuple(held), tuple(b for b in range(6) if bits >> 11 + b & 1))


@dataclass(frozen=True)
class Instruction:
    """One instruction: where it is, its opcode with modifiers, its text without the predicate."""

    address: int
    text: str
    predicated: bool
    control: Control = Control(1, (), ())

    @property
    def opcode(self) -> str:
        """Such as ``LDS.64``."""
        return self.text.split()[0]

    @property
    def target(self) -> int | None:
        """Of a branch, or of BSSY."""
        found = [a for a in ADDRESS.findall(self.text) if a]
        return int(found[-1], 16) if found else None


@dataclass
class Loop:
    """A natural loop: its header and all of its blocks, by number."""

    program: Program
    header: int
    blocks: frozenset[int]

    def instructions(self) -> Iterator[Instruction]:
        """Of all blocks."""
        for block in sorted(self.blocks):
            yield from self.program.blocks[block]

    def count(self, pattern: re.Pattern[str]) -> int:
        """Instructions whose opcode matches."""
        return sum(bool(pattern.search(i.opcode)) for i in self.instructions())

    def has(self, pattern: re.Pattern[str]) -> bool:
        """Whether any instruction matches."""
        return any(pattern.search(i.opcode) for i in self.instructions())

    def steady_blocks(
        self, avoid: str, rare: str, share: float
    ) -> list[tuple[list[Instruction], float]]:
        """The way from the header back to it that does most :data:`WORK` in fewest instructions.

        It enters no block that has ``avoid``, a pattern of its opcodes, one a line. A block that
        has ``rare``, or that only one such leads to, is entered once in 1 / ``share`` times: it
        comes with that weight, the others with 1.
        """
        program = self.program
        weights, scores = {}, {}
        texts = {b: "\n".join(i.opcode for i in program.blocks[b]) for b in self.blocks}
        seldom = {b for b, text in texts.items() if re.search(rare, text, re.MULTILINE)}
        for b, text in texts.items():
            if re.search(avoid, text, re.MULTILINE):
                continue
            opcodes = text.split("\n")
            weights[b] = 1.0 if seldom.isdisjoint(program.dominators[b]) else share
            done = sum(bool(WORK.search(opcode)) for opcode in opcodes)
            scores[b] = (weights[b] * done, -weights[b] * len(opcodes))

        @cache
        def best(block: int) -> tuple[tuple[float, float], tuple[int, ...]] | None:
            """(score, blocks) from ``block`` to the header; None if there is no way."""
            if block not in weights:
                return None
            found: tuple[tuple[float, float], tuple[int, ...]] | None = None
            for successor in program.successors[block]:
                if successor != self.header and successor in program.dominators[block]:
                    continue  # once more round a loop within
                rest = ((0.0, 0.0), ()) if successor == self.header else best(successor)
                if rest is not None and (found is None or rest[0] > found[0]):
                    found = rest
            if found is None:
                return None
            (done, length), own = found[0], scores[block]
            return (done + own[0], length + own[1]), (block, *found[1])

        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(max(limit, 10 * len(self.blocks) + 1000))
        try:
            result = best(self.header)
        finally:
            sys.setrecursionlimit(limit)
        if result is None:
            raise ValueError(f"{program.name}: no path through the loop avoids {avoid}")
        return [(program.blocks[block], weights[block]) for block in result[1]]


class Program:
    """One kernel's code, in basic blocks."""

    def __init__(self, name: str, code: list[Instruction]) -> None:
        self.name = name
        starts = {code[0].address}
        for here, following in pairwise(code):
            if here.opcode.split(".")[0] in ("BRA", "BSSY", "BSYNC", "EXIT", "RET", "JMP", "BRX"):
                starts.add(following.address)
                if here.target is not None:
                    starts.add(here.target)
        self.blocks: list[list[Instruction]] = []
        for i in code:
            if i.address in starts:
                self.blocks.append([])
            self.blocks[-1].append(i)
        self.number = {block[0].address: n for n, block in enumerate(self.blocks)}
        reconverge = self._reconvergence(code)
        self.successors = [self._after(n, reconverge) for n in range(len(self.blocks))]
        self.dominators = self._dominators()

    @staticmethod
    def _reconvergence(code: list[Instruction]) -> dict[int, int]:
        """BSYNC's address -> where its threads go on: the target of the BSSY of its register."""
        open_: dict[str, int] = {}
        found = {}
        for i in code:
            if i.opcode.startswith("BSSY") and i.target is not None:
                open_[i.text.split()[1].rstrip(",")] = i.target
            elif i.opcode.startswith("BSYNC"):
                register = i.text.split()[-1]
                if register in open_:
                    found[i.address] = open_[register]
        return found

    def _after(self, n: int, reconverge: dict[int, int]) -> list[int]:
        last = self.blocks[n][-1]
        name = last.opcode.split(".")[0]
        following = [n + 1] if n + 1 < len(self.blocks) else []
        if name in ("BRA", "JMP"):
            taken = [self.number[last.target]] if last.target in self.number else []
            # `BRA P0, target` and `@P0 BRA target` are conditional, as is a uniform branch.
            conditional = last.predicated or bool(re.search(r"\bU?P\d", last.text))
            conditional = conditional or ".DIV" in last.opcode
            return taken + (following if conditional else [])
        if name in ("EXIT", "RET"):
            return following if last.predicated else []
        if name == "BSYNC" and last.address in reconverge:
            return [self.number[reconverge[last.address]]]
        return following

    def registers(self) -> int:
        """A thread's: one more than the highest that the code names (RZ is none)."""
        named = (int(r) for b in self.blocks for i in b for r in REGISTER.findall(i.text))
        return max(named, default=0) + 1

    def _dominators(self) -> list[set[int]]:
        every = set(range(len(self.blocks)))
        before: list[list[int]] = [[] for _ in self.blocks]
        for n, successors in enumerate(self.successors):
            for s in successors:
                before[s].append(n)
        dominators = [every if n else {0} for n in range(len(self.blocks))]
        changed = True
        while changed:
            changed = False
            for n in range(1, len(self.blocks)):
                known = [dominators[b] for b in before[n]]
                new = {n} | (set.intersection(*known) if known else set())
                if new != dominators[n]:
                    dominators[n], changed = new, True
        self.before = before
        return dominators

    def loops(self) -> list[Loop]:
        """Natural loops; those of one header are one."""
        bodies: dict[int, set[int]] = {}
        for latch, successors in enumerate(self.successors):
            for header in successors:
                if header not in self.dominators[latch]:
                    continue
                body = bodies.setdefault(header, {header})
                waiting = [latch]
                while waiting:
                    block = waiting.pop()
                    if block not in body:
                        body.add(block)
                        waiting += self.before[block]
        return [Loop(self, header, frozenset(body)) for header, body in bodies.items()]


def _readable(names: list[str]) -> list[str]:
    done = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def programs(cubin: Path) -> Iterator[Program]:
    """Every kernel in a cubin."""
    tool = cuobjdump()
    if tool is None:
        raise FileNotFoundError("cuobjdump")
    said = subprocess.run([tool, "-sass", str(cubin)], capture_output=True, text=True, check=True)
    parts = re.split(r"\n\s*Function : (\S+)", said.stdout)
    for name, text in zip(_readable(parts[1::2]), parts[2::2], strict=True):
        code = []
        for address, line, _, high in INSTRUCTION.findall(text):
            bare = PREDICATE.sub("", line)
            control = Control.of(int(high or "0", 16))
            code.append(Instruction(int(address, 16), bare, bare != line, control))
        if code:
            yield Program(name, code)


def steady_loop(program: Program, per: str) -> Loop:
    """The innermost loop that moves vectors, "stored" or "loaded", and computes most."""
    wanted = re.compile(r"^STG" if per == "stored" else r"^LDG")
    candidates = [loop for loop in program.loops() if loop.has(wanted)]
    if not candidates:
        raise ValueError(f"{program.name} has no loop with the memory instruction {wanted.pattern}")
    innermost = [a for a in candidates if not any(b.blocks < a.blocks for b in candidates)]
    return max(innermost, key=lambda loop: loop.count(re.compile(r"^(FFMA|FMUL|FADD|HFMA2|HMMA)")))
