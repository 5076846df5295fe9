"""The engine's time by layer against the roofline, on made-up numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from bench import engine_layers
from bench.engine_layers import Peaks, Step, draw, measured_peaks, table

#: 1 M multiply-adds in 20 us, of which 10 at best; 4 MB of weights in 1 ms, of which 400 us.
STEPS = [
    Step("blocks.0.expand+depthwise", "32x112x112 -> 112x112", 1e6, 4096, 20e-6),
    Step("classifier", "1280 -> 1000", 1e6, 4e6, 1e-3),
]
PEAKS = Peaks(macs=1e11, bytes=1e10)


def test_a_step_is_held_against_what_takes_longer() -> None:
    arithmetic, memory = (PEAKS.of(step, 1) for step in STEPS)
    assert arithmetic == (1e6 / 1e11, "arithmetic")
    assert memory == (4e6 / 1e10, "memory")
    assert PEAKS.of(STEPS[1], 100) == (100 * 1e6 / 1e11, "arithmetic")  # weights are read once


def test_the_table_adds_up() -> None:
    lines = [line.split() for line in table(STEPS, 1, PEAKS).splitlines()]
    assert lines[1][:8] == [
        "blocks.0.expand+depthwise", "1.00", "4.0", "20.0", "50.0", "10.0", "50", "arithmetic",
    ]  # fmt: skip
    assert lines[2][:8] == [
        "classifier", "1.00", "3906.2", "1000.0", "1.0", "400.0", "40", "memory",
    ]  # fmt: skip
    assert lines[3] == ["total", "2.00", "3910.2", "1020.0", "2.0", "410.0", "40"]
    eight = table(STEPS, 8, PEAKS).splitlines()[1].split()
    assert eight[1:7] == ["8.00", "4.0", "20.0", "400.0", "80.0", "400"]


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    draw(STEPS, 1, PEAKS, "made up", tmp_path / "layers.png")
    with Image.open(tmp_path / "layers.png") as picture:
        assert picture.format == "PNG"
        colours = {pixel for _, pixel in picture.convert("RGB").getcolors(2**24) or []}
    assert {(0xC0, 0x39, 0x2B), (0x2C, 0x7F, 0xB8), (0, 0, 0)} <= colours


def test_the_fastest_step_is_the_peak_where_it_beats_the_loop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine_layers, "COPIED", 2**20)
    monkeypatch.setattr("bench.fma.samples", lambda repeats: (int(2e9), [1.0] * repeats))
    assert measured_peaks(STEPS, 1, 3).macs == pytest.approx(1e12)
    monkeypatch.setattr("bench.fma.samples", lambda repeats: (2, [1.0] * repeats))
    assert measured_peaks(STEPS, 1, 3).macs == pytest.approx(5e10)
    assert measured_peaks(STEPS, 4, 3).macs == pytest.approx(2e11)

    def no_compiler(repeats: int) -> Any:
        raise OSError("no C++ compiler")

    monkeypatch.setattr("bench.fma.samples", no_compiler)
    assert measured_peaks(STEPS, 1, 3).macs == pytest.approx(5e10)
    assert "no C++ compiler; the fastest step's rate stands for it" in capsys.readouterr().err


class Engine:
    """Gives the made-up steps."""

    def __init__(self) -> None:
        self.threads, self.asked = 0, (0, 0)

    def profile(self, x: Tensor, repeats: int) -> list[tuple[str, str, float, float, float]]:
        self.threads, self.asked = torch.get_num_threads(), (x.shape[0], repeats)
        return [tuple(step) for step in STEPS]  # type: ignore[misc]


def test_the_command_prints_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine()
    monkeypatch.setattr(engine_layers, "optimize_for_inference", lambda model, dtype: engine)
    monkeypatch.setattr(engine_layers, "measured_peaks", lambda steps, n: PEAKS)
    file = tmp_path / "layers.png"
    options = ["--threads", "2", "--batch-size", "4", "--repeats", "3", "--picture", str(file)]
    assert engine_layers.main(["efficientnet_b0", *options]) == 0
    assert (engine.threads, engine.asked) == (2, (4, 3))
    out = capsys.readouterr().out
    assert out.startswith("efficientnet_b0, batch 4, float32, ")
    assert ", 2 threads\n" in out
    assert file.stat().st_size > 0
    with pytest.raises(SystemExit):
        engine_layers.main(["--repeats", "0"])
    assert "--repeats must be >= 1, got 0" in capsys.readouterr().err
