"""On a CPU `effnet-fast classify` answers by the native engine, and by the model where asked."""

import importlib
from typing import Any

import pytest
from torch import Tensor, nn

import effnet_fast as ef
from effnet_fast.cli import main
from tests.t1.test_cli import TRAINED, Captured, picture, records, refused


class Counted:
    """Counts the engines made and the ops run by backend."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engines = self.passes = 0

        def made(*args: Any, **kwargs: Any) -> Any:
            self.engines += 1
            return ef.optimize_for_inference(*args, **kwargs)

        def ran(model: nn.Module, x: Tensor) -> Tensor:
            self.passes += 1
            return forward(model, x)

        forward = ef.EfficientNet.forward
        monkeypatch.setattr("effnet_fast.cli.classify.optimize_for_inference", made)
        monkeypatch.setattr(ef.EfficientNet, "forward", ran)


@pytest.mark.parametrize(
    ("options", "variable", "engine"),
    [((), "", True), ((), "auto", True), (("--backend", "engine"), "reference", True),
     ((), "reference", False), (("--backend", "auto"), "", False),
     (("--backend", "reference"), "", False)],
)  # fmt: skip
def test_the_engine_answers_on_a_cpu_unless_another_is_asked_for(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...],
    variable: str, engine: bool,
) -> None:  # fmt: skip
    if variable:
        monkeypatch.setenv("EFFNET_FAST_BACKEND", variable)
    counted = Counted(monkeypatch)
    argv = ["classify", *TRAINED, "--device", "cpu", "--json", *options]
    assert main([*argv, picture("coffee.png")]) == 0
    assert (counted.engines, counted.passes) == ((1, 0) if engine else (0, 1))
    assert len(records(capsys.readouterr().out)[0]["predictions"]) == 5


def test_engine_and_model_give_the_same_answers(capsys: Captured) -> None:
    paths = [picture("coffee.png"), picture("rocket.jpg")]
    answers = []
    for backend in ("engine", "reference"):
        assert main(["classify", *TRAINED, "--backend", backend, "--json", *paths]) == 0
        answers.append(records(capsys.readouterr().out))
    for ours, model in zip(*answers, strict=True):
        for a, b in zip(ours["predictions"], model["predictions"], strict=True):
            assert (a["label"], a["index"]) == (b["label"], b["index"])
            assert round(a["probability"], 4) == round(b["probability"], 4)


def test_the_engine_sees_coffee_in_bfloat16(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    argv = ["classify", *TRAINED, "--device", "cpu", "--dtype", "bfloat16", "--json"]
    assert main([*argv, picture("coffee.png")]) == 0
    (record,) = records(capsys.readouterr().out)
    assert counted.engines == 1
    assert record["predictions"][0]["label"] == "espresso"
    assert record["predictions"][0]["probability"] > 0.9


@pytest.mark.parametrize("options", [(), ("--backend", "engine")], ids=str)
def test_what_the_engine_does_not_take_is_no_reason_for_another(
    capsys: Captured, options: tuple[str, ...]
) -> None:
    argv = ["classify", *TRAINED, "--device", "cpu", "--dtype", "float16", *options]
    err = refused(capsys, *argv, picture("coffee.png"))
    assert "dtype torch.float16: the CPU engine computes in torch.float32" in err
    assert "--backend auto runs the model itself" in err


def test_a_backend_of_the_environment_that_nobody_knows(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFNET_FAST_BACKEND", "tpu")
    argv = ["classify", *TRAINED, "--device", "cpu", picture("coffee.png")]
    assert "unknown EFFNET_FAST_BACKEND 'tpu'; known: auto" in refused(capsys, *argv)


@pytest.mark.parametrize("options", [(), ("--backend", "reference")], ids=str)
def test_the_demo_hands_its_backend_on(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    demo = importlib.import_module("demo")
    steps: list[tuple[str, ...]] = []
    monkeypatch.setattr(demo, "main", lambda argv: steps.append(argv) or 0)
    assert demo.demo(list(options)) == 0
    assert [step[0] for step in steps] == ["classify", "bench"]
    assert [word for word in steps[0] if word in ("--backend", "reference")] == list(options)
