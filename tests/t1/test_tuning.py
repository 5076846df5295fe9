"""The tables of block shapes and `effnet-fast tune`: a fake GPU, fake kernels, a fake clock."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from effnet_fast import reference
from effnet_fast.cli import main, tune

triton = pytest.importorskip("triton")
from effnet_fast.kernels import tuning  # noqa: E402  (imports triton)

KEY = "c32 bf16"


class Shape(NamedTuple):
    block: int
    num_warps: int


class Other(NamedTuple):
    block: int


DEFAULT = Shape(64, 4)


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the user's table goes: an sm_90 is the current device, and nothing is cached."""
    monkeypatch.setattr(tuning, "architecture", lambda: "sm90")
    monkeypatch.setenv("EFFNET_FAST_CACHE", str(tmp_path))
    tuning.forget()
    yield tmp_path / "tuning-sm90.json"
    tuning.forget()


def write(path: Path, fields: dict[str, Any], op: str = "pool") -> None:
    tuning.write_table(path, {op: {KEY: {"config": fields}}})


# ---------------------------------------------------------------- choosing


def test_without_a_table_the_default_is_picked() -> None:
    assert tuning.pick("pool", KEY, DEFAULT) is DEFAULT


def test_the_users_table_comes_first_and_may_name_some_fields(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {"sm90": {"pool": {KEY: {"num_warps": 8}, "c8 bf16": {"num_warps": 2}}}}
    monkeypatch.setattr(tuning, "TABLE", ours)
    write(table, {"block": 128})
    assert tuning.pick("pool", KEY, DEFAULT) == Shape(128, 4)
    assert tuning.pick("pool", "c8 bf16", DEFAULT) == Shape(64, 2)
    assert tuning.pick("gate", KEY, DEFAULT) is DEFAULT


def test_a_table_is_read_once_until_told_to_forget(table: Path) -> None:
    write(table, {"block": 128})
    assert tuning.pick("pool", KEY, DEFAULT).block == 128
    write(table, {"block": 256})
    assert tuning.pick("pool", KEY, DEFAULT).block == 128
    tuning.forget()
    assert tuning.pick("pool", KEY, DEFAULT).block == 256


def test_an_architecture_has_its_own_table(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(table, {"block": 128})
    monkeypatch.setattr(tuning, "architecture", lambda: "sm80")
    assert tuning.pick("pool", KEY, DEFAULT) is DEFAULT


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not JSON"),
        ("[]", "format None"),
        ('{"format": 0, "ops": {}}', "format 0"),
        ('{"format": 1}', "must map"),
        ('{"format": 1, "ops": {"pool": {"c32 bf16": {"config": {"block": 1.5}}}}}', "must map"),
        ('{"format": 1, "ops": {"pool": {"c32 bf16": {"config": {"block": true}}}}}', "must map"),
        ('{"format": 1, "ops": {"pool": {"c32 bf16": {"config": {"rows": 2}}}}}', "sets rows"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(table: Path, text: str, why: str) -> None:
    table.write_text(text)
    with pytest.raises(tuning.TuningTableError, match=why) as error:
        tuning.pick("pool", KEY, DEFAULT)
    assert str(table) in str(error.value)
    assert "delete" in str(error.value)
    assert "effnet-fast tune" in str(error.value)


def test_a_table_that_cannot_be_read_is_named(table: Path) -> None:
    table.mkdir()
    with pytest.raises(tuning.TuningTableError, match=str(table)):
        tuning.pick("pool", KEY, DEFAULT)


def test_an_override_holds_until_the_block_ends() -> None:
    with tuning.override("pool", Shape(1, 1)):
        with tuning.override("pool", Shape(2, 2), KEY):
            assert tuning.pick("pool", KEY, DEFAULT) == Shape(2, 2)
            assert tuning.pick("pool", "other", DEFAULT) == Shape(1, 1)
        with tuning.override("pool", Shape(3, 3)):
            assert tuning.pick("pool", KEY, DEFAULT) == Shape(3, 3)
        assert tuning.pick("pool", KEY, DEFAULT) == Shape(1, 1)
        assert tuning.pick("gate", KEY, DEFAULT) is DEFAULT
    assert tuning.pick("pool", KEY, DEFAULT) is DEFAULT


def test_an_override_of_another_type_is_refused() -> None:
    with tuning.override("pool", Other(8)), pytest.raises(TypeError, match="pool"):
        tuning.pick("pool", KEY, DEFAULT)


def test_a_recording_hears_every_pick_and_sets_tables_aside(table: Path) -> None:
    table.write_text("{")
    with tuning.recording() as outer:
        tuning.pick("pool", KEY, DEFAULT)
        with tuning.recording() as inner:
            assert tuning.pick("gate", KEY, DEFAULT) is DEFAULT
    assert outer == [("pool", KEY, DEFAULT), ("gate", KEY, DEFAULT)]
    assert inner == outer[1:]


def test_candidates_begin_with_the_default_and_repeat_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tuning, "_candidates", {})
    assert tuning.candidates("pool", KEY, DEFAULT) == [DEFAULT]
    tuning.register("pool", lambda default, key: [Shape(1, 1), default, Shape(1, 1), Shape(2, 1)])
    assert tuning.candidates("pool", KEY, DEFAULT) == [DEFAULT, Shape(1, 1), Shape(2, 1)]


def test_where_the_table_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuning.table_path("sm90") == tmp_path / "tuning-sm90.json"
    monkeypatch.delenv("EFFNET_FAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert tuning.table_path("sm90") == Path("/cache/effnet_fast/tuning-sm90.json")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/user")
    assert tuning.table_path("sm90") == Path("/home/user/.cache/effnet_fast/tuning-sm90.json")


def test_a_failed_write_leaves_the_old_table(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(table, {"block": 128})

    def interrupted(path: Path, text: str, encoding: str) -> None:
        path.open("w", encoding=encoding).write(text[:5])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(table, {"block": 256})
    assert tuning.read_table(table)["pool"][KEY]["config"] == {"block": 128}
    assert list(table.parent.iterdir()) == [table]


def test_each_device_is_asked_once_for_its_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the fixture's
    current, asked = [0], []

    def target() -> SimpleNamespace:
        asked.append(current[0])
        return SimpleNamespace(backend="cuda", arch=(90, 120)[current[0]])

    active = SimpleNamespace(get_current_device=lambda: current[0], get_current_target=target)
    monkeypatch.setattr(tuning, "driver", SimpleNamespace(active=active))
    monkeypatch.setattr(tuning, "_architectures", {})
    monkeypatch.setattr(tuning, "_interpreted", lambda: False)
    for device, expected in ((0, "sm90"), (1, "sm120"), (0, "sm90")):
        current[0] = device
        assert tuning.architecture() == expected
    assert asked == [0, 1]
    monkeypatch.setattr(tuning, "_interpreted", lambda: True)
    assert tuning.architecture() == tuning.INTERPRETER


# ---------------------------------------------------------------- tuning


class Clock:
    """A timer that looks a call's block up; a block that is not listed is where Ctrl-C comes."""

    def __init__(self, milliseconds: dict[int, float]) -> None:
        self.milliseconds = milliseconds
        self.asked: list[tuple[str, int]] = []

    def __call__(self, call: tune.Call) -> float:
        block = tuning.pick(call.op, call.key, call.default).block
        self.asked.append((call.key, block))
        if block not in self.milliseconds:
            raise KeyboardInterrupt
        return self.milliseconds[block]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tune.Call]:
    """se_pool's calls on 4 and on 8 channels, from a kernel that block 16 breaks, 8192 exceeds."""
    right = reference.se_pool

    def se_pool(x: Tensor, affine: Tensor | None, act: str) -> Tensor:
        config = tuning.pick("pool", f"c{x.shape[1]}", DEFAULT)
        if config.block == 8192:
            raise triton.OutOfResources(300_000, 232_448, "shared memory")
        wrong = 0.01 if config.block == 16 else 0.0
        return right(x, affine, act) + wrong

    monkeypatch.setattr(reference, "se_pool", se_pool)
    op = torch.ops.effnet_fast.se_pool

    def program() -> None:
        for channels in (4, 8, 4):
            op(torch.randn(2, channels, 3, 3, requires_grad=True), None, "silu", "reference")

    return tune.record(program)


def offer(monkeypatch: pytest.MonkeyPatch, *blocks: int) -> None:
    shapes = [Shape(block, 4) for block in blocks]
    monkeypatch.setattr(tuning, "_candidates", {"pool": lambda default, key: shapes})


def kept(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())["ops"]
    return found


def test_each_question_is_recorded_once(calls: list[tune.Call]) -> None:
    assert [(c.op, c.key, c.default) for c in calls] == [
        ("pool", "c4", DEFAULT),
        ("pool", "c8", DEFAULT),
    ]
    assert calls[1]().shape == (2, 8)


def test_the_plan_counts_configurations(
    calls: list[tune.Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, 64, 32)
    assert tune._plan(calls).splitlines()[-1] == "2 keys, 4 measurements"


def test_the_fastest_is_kept_with_how_it_was_measured(
    calls: list[tune.Call], table: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    offer(monkeypatch, 32, 128, 256)
    clock = Clock({64: 2.0, 32: 1.9, 128: 1.0, 256: 1.5})
    assert tune.tune(calls, clock, "A GPU") == 0
    assert [block for key, block in clock.asked if key == "c4"] == [64, 32, 128, 256, 64, 128]
    entry = kept(table)["pool"]["c8"]
    assert entry["config"] == {"block": 128, "num_warps": 4}
    assert (entry["ms"], entry["default_ms"], entry["device"]) == (1.0, 2.0, "A GPU")
    assert entry["triton"] == triton.__version__
    assert tuning.pick("pool", "c8", DEFAULT) == Shape(128, 4)
    assert "2 of 2 keys" in capsys.readouterr().out


def test_a_gain_within_the_noise_is_not_kept_and_an_old_entry_goes(
    calls: list[tune.Call], table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, 32)
    content = {"pool": {"c4": {"config": {"block": 32}}}, "gate": {"r8": {"config": {"rows": 4}}}}
    tuning.write_table(table, content)
    assert tune.tune(calls, Clock({64: 2.0, 32: 1.99}), "A GPU") == 0
    assert kept(table) == {"gate": content["gate"]}


def test_what_does_not_fit_the_gpu_is_passed_over(
    calls: list[tune.Call], table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, 8192, 32)
    assert tune.tune(calls, Clock({64: 2.0, 32: 1.0}), "A GPU") == 0
    assert kept(table)["pool"]["c4"]["config"]["block"] == 32


def test_a_wrong_result_is_never_timed_and_fails_the_command(
    calls: list[tune.Call], table: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    offer(monkeypatch, 16, 32)
    clock = Clock({64: 2.0, 32: 1.0})
    assert tune.tune(calls, clock, "A GPU") == 1
    assert 16 not in [block for _, block in clock.asked]
    assert kept(table)["pool"]["c4"]["config"]["block"] == 32
    assert "Shape(block=16, num_warps=4) gives other results" in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_measured(
    calls: list[tune.Call], table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offered(default: Shape, key: str) -> list[Shape]:
        return [Shape(32 if key == "c4" else 128, 4)]

    monkeypatch.setattr(tuning, "_candidates", {"pool": offered})
    with pytest.raises(KeyboardInterrupt):
        tune.tune(calls, Clock({64: 2.0, 32: 1.0}), "A GPU")
    assert list(kept(table)["pool"]) == ["c4"]


def test_a_table_of_another_version_is_replaced(
    calls: list[tune.Call], table: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    offer(monkeypatch, 32)
    table.write_text('{"format": 0}')
    assert tune.tune(calls, Clock({64: 2.0, 32: 1.0}), "A GPU") == 0
    assert set(kept(table)["pool"]) == {"c4", "c8"}
    assert str(table) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("off", "agree"), [(0.0, True), (1e-5, True), (1e-2, False), (float("nan"), False)]
)
def test_results_agree_but_for_the_order_of_summation(off: float, agree: bool) -> None:
    truth = torch.linspace(-1, 1, 9)
    assert tune._agree([truth + off, truth.new_empty(0)], [truth, truth.new_empty(0)]) is agree


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "on a CUDA GPU"),
        (("--dry-run",), "on a CUDA GPU"),
        (("--device", "cpu"), "on a CUDA GPU"),
        (("--device", "cuda:0"), "torch sees 0 CUDA devices"),
        (("--batch-size", "0"), "--batch-size must be >= 1"),
        (("--model", "efficientnet_b9"), "unknown model"),
    ],
)
def test_without_a_gpu_the_command_says_so(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", *arguments]) == 2
    assert message in capsys.readouterr().err
