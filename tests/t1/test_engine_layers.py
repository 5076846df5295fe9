"""The engine's time by layer against the roofline, on made-up numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bench import engine_layers
from bench.engine_layers import Peaks, Timed, draw, measured_peaks, table
from effnet_fast.engine import Engine, Step, optimize_for_inference
from effnet_fast.models import EfficientNet

#: 1 M multiply-adds in 20 us, of which 10 at best; 4 MB of weights in 1 ms, of which 400 us.
STEPS = [
    Timed(Step("blocks.0.expand+depthwise", "32x112x112 -> 112x112", 1e6, 4096), 20e-6),
    Timed(Step("classifier", "1280 -> 1000", 1e6, 4e6), 1e-3),
]
PEAKS = Peaks(macs=1e11, bytes=1e10)


def test_a_step_is_held_against_what_takes_longer() -> None:
    arithmetic, memory = (PEAKS.of(timed.step) for timed in STEPS)
    assert arithmetic == (1e6 / 1e11, "arithmetic")
    assert memory == (4e6 / 1e10, "memory")


def test_the_table_adds_up() -> None:
    lines = [line.split() for line in table(STEPS, PEAKS).splitlines()]
    assert lines[1][:8] == [
        "blocks.0.expand+depthwise", "1.00", "4.0", "20.0", "50.0", "10.0", "50", "arithmetic",
    ]  # fmt: skip
    assert lines[2][:8] == [
        "classifier", "1.00", "3906.2", "1000.0", "1.0", "400.0", "40", "memory",
    ]  # fmt: skip
    assert lines[3] == ["total", "2.00", "3910.2", "1020.0", "2.0", "410.0", "40"]


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    draw(STEPS, PEAKS, "made up", tmp_path / "layers.png")
    with Image.open(tmp_path / "layers.png") as picture:
        assert picture.format == "PNG"
        colours = {pixel for _, pixel in picture.convert("RGB").getcolors(2**24) or []}
    assert {(0xC0, 0x39, 0x2B), (0x2C, 0x7F, 0xB8), (0, 0, 0)} <= colours


def test_the_fastest_step_is_the_peak_where_it_beats_the_loop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine_layers, "COPIED", 2**20)
    monkeypatch.setattr("bench.fma.samples", lambda repeats: (int(2e9), [1.0] * repeats))
    assert measured_peaks(STEPS, 3).macs == pytest.approx(1e12)
    monkeypatch.setattr("bench.fma.samples", lambda repeats: (2, [1.0] * repeats))
    assert measured_peaks(STEPS, 3).macs == pytest.approx(5e10)

    def no_compiler(repeats: int) -> Any:
        raise OSError("no C++ compiler")

    monkeypatch.setattr("bench.fma.samples", no_compiler)
    assert measured_peaks(STEPS, 3).macs == pytest.approx(5e10)
    assert "no C++ compiler; the fastest step's rate stands for it" in capsys.readouterr().err


def test_the_command_prints_and_draws_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Engine] = []

    def optimize(model: EfficientNet, dtype: torch.dtype) -> Engine:
        engine = optimize_for_inference(model, dtype=dtype)
        assert isinstance(engine, Engine)
        made.append(engine)
        return engine

    monkeypatch.setattr(engine_layers, "optimize_for_inference", optimize)
    monkeypatch.setattr(engine_layers, "measured_peaks", lambda timed: PEAKS)
    file = tmp_path / "layers.png"
    options = ["--threads", "1", "--dtype", "bfloat16", "--repeats", "2", "--picture", str(file)]
    assert engine_layers.main(["efficientnet_b0", *options]) == 0
    title, _, *lines = capsys.readouterr().out.splitlines()
    assert title.startswith("efficientnet_b0, one image, bfloat16, ")
    assert title.endswith(", 1 threads")
    (engine,) = made
    assert engine.dtype == torch.bfloat16
    names = [step.name for step in engine.steps(224, 224)]
    assert [line.split()[0] for line in lines[: len(names)]] == names
    assert file.stat().st_size > 0
    with pytest.raises(SystemExit):
        engine_layers.main(["--repeats", "0"])
    assert "--repeats must be >= 1, got 0" in capsys.readouterr().err
