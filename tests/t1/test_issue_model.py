"""The model of a multiprocessor, on code of a few lines whose clocks can be counted by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench import layer_model
from bench.layer_model import Layer
from bench.multiprocessor import GLOBAL_LATENCY, LATENCIES, Access, Machine, clocks_per_pass
from bench.sass import Control, Instruction, Program
from tests.cuda_emu import build

FREE = Machine(math.inf, 0.0, 0.0)


def code(*lines: str | tuple[str, Control]) -> list[Instruction]:
    """Instructions, one after another; those without a control word stall one clock."""
    pairs = [(line, Control(1, (), ())) if isinstance(line, str) else line for line in lines]
    return [Instruction(16 * i, text, False, control) for i, (text, control) in enumerate(pairs)]


def clocks(
    path: Sequence[Instruction], machine: Machine = FREE, warps: int = 1, blocks: int = 1
) -> float:
    return clocks_per_pass([path] * warps, machine, blocks)


def test_a_control_word_says_what_to_wait_for() -> None:
    # As cuobjdump printed them: of an HMMA that waits for scoreboard 1, an LDSM that holds it.
    assert Control.of(0x002FEC0000001830) == Control(6, (), (1,))
    assert Control.of(0x000E6A0000000200) == Control(5, (1,), ())


def test_a_scheduler_issues_one_instruction_a_clock() -> None:
    path = code(*["FFMA R0, R1, R2, R0"] * 10)
    assert clocks(path) == 10
    assert clocks(path, warps=4) == 10  # one for each scheduler
    assert clocks(path, warps=8) == 20


def test_stalls_hide_behind_other_warps() -> None:
    path = code(*[("FFMA R0, R1, R2, R0", Control(4, (), ()))] * 10)
    assert clocks(path) == 40
    assert clocks(path, warps=16) == 40


def test_a_load_is_waited_for_where_its_scoreboard_is() -> None:
    load = ("LDS.64 R4, [R0]", Control(1, (2,), ()))
    near = clocks(code(load, ("FADD R4, R4, R5", Control(1, (), (2,)))))
    assert LATENCIES["shared"] < near < LATENCIES["shared"] + 5  # two clocks' bits, two issues
    assert clocks(code(load, "FADD R6, R4, R5")) == 2


def test_a_narrow_unit_is_busy_for_longer() -> None:
    path = code(*["MUFU.TANH R0, R1"] * 4)
    assert clocks(path, warps=4) == 32  # 4 lanes a scheduler: 8 clocks each


def test_sums_of_products_are_waited_for() -> None:
    product = "HMMA.16816.F32.BF16 R8, R0, R4, RZ"
    chain = "HMMA.16816.F32.BF16 R8, R0, R4, R8"
    other = "HMMA.16816.F32.BF16 R12, R0, R4, RZ"
    assert clocks(code(product, other)) < LATENCIES["tensor"]
    assert clocks(code(product, chain)) >= LATENCIES["tensor"]
    assert clocks(code(product, "FADD R20, R9, R9")) >= LATENCIES["tensor"]


def test_a_block_waits_for_its_slowest_warp() -> None:
    barrier = "BAR.SYNC.DEFER_BLOCKING 0x0"
    short, long = code(barrier), code(*["FFMA R0, R1, R2, R0"] * 30, barrier)
    assert 30 <= clocks_per_pass([short, long], FREE, 1) <= 32
    with_cost = replace(FREE, barrier_clocks=20.0)
    assert 49 <= clocks_per_pass([short, long], with_cost, 1) <= 51


def test_memory_delivers_at_its_rate() -> None:
    copy = "LDGSTS.E.BYPASS.LTC128B.128 [R0], desc[UR10][R2.64]"
    path = code(copy, "LDGDEPBAR", "DEPBAR.LE SB0, 0x2")
    slow = Machine(4.0, 0.0, 0.0, Access(4, 512))
    bytes_moved = 16 * 512
    assert bytes_moved < 4.4 * clocks(path, slow, warps=16) < 1.2 * bytes_moved
    lines = Machine(math.inf, 3.0, 0.0, Access(4, 512))
    assert clocks(path, lines, warps=16) > 0.9 * 16 * 4 * 3  # requests take a line's clocks each


def test_rows_that_come_in_boxes_are_waited_for() -> None:
    barrier, wait = "BAR.SYNC.DEFER_BLOCKING 0x0", "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R0], R1"
    ask = ("SYNCS.ARRIVE.TRANS64 RZ, [R0], R1", "UTMALDG.4D [UR8], [UR32]")
    paths = [code(barrier, *ask, wait), code(barrier, wait)]
    row = Access(4, 512)
    alone = clocks_per_pass(paths, Machine(4.0, 0.0, 0.0, row, ring=1), 1)  # asked for when wanted
    assert GLOBAL_LATENCY + 512 / 4 < alone < GLOBAL_LATENCY + 512 / 4 + 10
    many = clocks_per_pass(paths, Machine(4.0, 0.0, 0.0, row, ring=16), 1, passes=100)
    assert 512 / 4 < 1.1 * many < 1.3 * 512 / 4


def test_what_a_seldom_block_leads_to_is_as_seldom() -> None:
    lines = code(
        "BRA P0, 0x40",  # 00: the header
        "UTMALDG.4D [UR8], [UR32]",
        "BRA P1, 0x10",
        "FFMA R0, R1, R2, R0",  # 30: only from there
        "STG.E.64 [R2], R0",  # 40: from both
        "BRA P2, 0x00",
        "EXIT",
    )
    loops = Program("kernel", lines).loops()
    outer = max(loops, key=lambda loop: len(loop.blocks))
    weights = [weight for _, weight in outer.steady_blocks(r"\0", "UTMALDG", 0.25)]
    assert weights == [1, 0.25, 0.25, 1]


def test_the_steady_path_goes_round_inner_loops_once() -> None:
    lines = code(
        "FFMA R0, R1, R2, R0",  # 00: the header
        "BRA P0, 0x40",
        "FFMA R0, R1, R2, R0",  # 20: a loop within
        "BRA P1, 0x20",
        "STG.E.64 [R2], R0",  # 40
        "BRA P2, 0x00",
        "EXIT",
    )
    loops = Program("kernel", lines).loops()
    outer = max(loops, key=lambda loop: len(loop.blocks))
    opcodes = [i.opcode for block, _ in outer.steady_blocks(r"\0", r"\0", 0.0) for i in block]
    assert opcodes == ["FFMA", "BRA", "FFMA", "BRA", "STG.E.64", "BRA"]
    with pytest.raises(ValueError, match="no path"):
        outer.steady_blocks("STG", r"\0", 0.0)
    weights = [weight for _, weight in outer.steady_blocks(r"\0", "STG", 0.25)]
    assert weights == [1, 1, 0.25]


def test_lines_that_a_chunk_touches() -> None:
    assert layer_model.lines_per_chunk(32, 64) == 0.5  # whole pixels, one after the other
    assert layer_model.lines_per_chunk(96, 64) == 1.0
    assert layer_model.lines_per_chunk(144, 64) == 1.25  # a quarter of them lie across two


@pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))
def test_tiles_are_the_launchers_own() -> None:
    layers = [
        Layer("plain", 3, 1, 256, 96, 112),
        Layer("backward", 5, 2, 256, 672, 14),
        Layer("training", 3, 2, 256, 96, 112),
    ]
    csrc = Path(layer_model.ROOT, "csrc")
    plain, backward, other = layer_model.tiles(csrc, layers)
    assert other is None  # not a kernel for tensor cores
    assert plain is not None
    assert backward is not None
    for tile, layer in ((plain, layers[0]), (backward, layers[1])):
        assert tile.channel_blocks * tile.vectors * 8 >= layer.c
        assert tile.threads % 32 == 0
        assert tile.parts * tile.channel_blocks <= layer_model.MULTIPROCESSORS * 64
        assert tile.shared <= 99 * 1024
