"""Every tensor of a foreign checkpoint lands where it belongs, and a bad one changes nothing."""

import importlib
import io
import pickle
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from effnet_fast import architecture, models
from effnet_fast.checkpoints import (
    Checkpoint,
    CheckpointError,
    convert,
    load_into,
    read_file,
    unwrap,
)
from effnet_fast.preprocess import HALF, IMAGENET_MEAN, IMAGENET_STD
from effnet_fast.stock import import_torchvision

torchvision = import_torchvision()
timm = importlib.import_module("timm")  # it imports torchvision, which has to be there by now

StateDict = dict[str, Tensor]
B = [f"efficientnet_b{i}" for i in range(8)]
LITE = [f"efficientnet_lite{i}" for i in range(5)]


def depths(name: str) -> list[int]:
    return [stage.layers for stage in architecture.stages(architecture.variant(name))]


def convert_for(name: str, state_dict: StateDict, **options: Any) -> Checkpoint:
    eps, momentum = architecture.variant(name).batch_norm
    return convert(
        state_dict,
        stage_depths=depths(name),
        default_eps=eps,
        default_momentum=momentum,
        **options,
    )


@cache  # not to be changed, nor timm's below
def own_keys(name: str) -> StateDict:
    """The state_dict to arrive at: torchvision's, and for Lite, which it lacks, our model's."""
    with torch.device("meta"):
        if name in LITE:
            return models.create_model(name).state_dict()
        model: nn.Module = getattr(torchvision.models, name)()
    return model.state_dict()


@cache
def timm_keys(name: str, **options: Any) -> StateDict:
    with torch.device("meta"):
        state_dict: StateDict = timm.create_model(name, **options).state_dict()
    return state_dict


def lukemelas_keys(name: str) -> Iterator[str]:
    """The keys of lukemelas's models and their Lite fork, in their order: that of execution."""

    def norm(module: str) -> Iterator[str]:
        for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            yield f"{module}.{leaf}"

    yield "_conv_stem.weight"
    yield from norm("_bn0")
    for block in range(sum(depths(name))):
        place = f"_blocks.{block}"
        if block >= depths(name)[0]:
            yield f"{place}._expand_conv.weight"
            yield from norm(f"{place}._bn0")
        yield f"{place}._depthwise_conv.weight"
        yield from norm(f"{place}._bn1")
        if name not in LITE:
            for module in ("_se_reduce", "_se_expand"):
                yield f"{place}.{module}.weight"
                yield f"{place}.{module}.bias"
        yield f"{place}._project_conv.weight"
        yield from norm(f"{place}._bn2")
    yield "_conv_head.weight"
    yield from norm("_bn1")
    yield "_fc.weight"
    yield "_fc.bias"


# All three namings list their tensors in the order of execution, so that renaming by position is
# a second, independent way to the same dict.


@pytest.mark.parametrize("name", B + LITE)
@pytest.mark.parametrize("naming", ["timm", "lukemelas"])
def test_every_tensor_lands_on_its_key(naming: str, name: str) -> None:
    target = own_keys(name)
    if naming == "timm":
        foreign = timm_keys(f"tf_{name}")
        assert [v.shape for v in foreign.values()] == [v.shape for v in target.values()]
        keys = list(foreign)
    else:
        keys = list(lukemelas_keys(name))
    checkpoint = convert_for(
        name, dict(zip(keys, target.values(), strict=True)), hint=f"tf_{name}.pth"
    )
    assert checkpoint.source == naming
    assert list(checkpoint.state_dict) == list(target)
    assert all(checkpoint.state_dict[key] is target[key] for key in target)


@pytest.mark.parametrize("name", B)
def test_torchvisions_own_dict_passes_unchanged(name: str) -> None:
    target = own_keys(name)
    checkpoint = convert_for(name, target)
    assert checkpoint.state_dict == target
    eps = 1e-3 if name[-1] in "567" else 1e-5
    assert (checkpoint.source, checkpoint.padding) == ("torchvision", "symmetric")
    assert (checkpoint.norm_eps, checkpoint.norm_momentum) == (eps, 0.01 if eps == 1e-3 else 0.1)


def test_a_converted_model_computes_what_timms_does() -> None:
    theirs = timm.create_model("efficientnet_b0").double().eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    ours = torchvision.models.efficientnet_b0().double().eval()
    load_into(ours, convert_for("efficientnet_b0", theirs.state_dict(), hint="efficientnet_b0"))
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


# ---------------------------------------------------------------- padding, eps, mean and std

TF, TORCH = ("same", 1e-3), ("symmetric", 1e-5)
IMAGENET, HALVES = (IMAGENET_MEAN, IMAGENET_STD), (HALF, HALF)
HINTS = {
    "tf_efficientnet_b0-0af12548.pth": (TF, IMAGENET),
    "tf_efficientnet_b0_ns-c0e6a31c.pth": (TF, IMAGENET),
    "tf_efficientnet_b0_ap-f262efe1.pth": (TF, HALVES),
    "tf_efficientnet_b0.ap_in1k": (TF, HALVES),
    "TF_EfficientNet_B0_adv.bin": (TF, HALVES),
    "my-tf_efficientnet_b0.pth": (TF, IMAGENET),
    "efficientnet_b0_ra-3dd342df.pth": (TORCH, IMAGENET),
    "efficientnet_b0.ra_in1k": (TORCH, IMAGENET),
    "efficientnet_b0.ra4_e3600_r224_in1k": (TORCH, HALVES),
}


@pytest.mark.parametrize(("hint", "expected"), HINTS.items(), ids=HINTS)
def test_timms_file_names_tell_its_families_apart(hint: str, expected: tuple[Any, Any]) -> None:
    got = convert_for("efficientnet_b0", timm_keys("efficientnet_b0"), hint=hint)
    assert (got.padding, got.norm_eps) == expected[0]
    assert (got.mean, got.std) == expected[1]


def test_timms_own_configurations_agree_with_what_is_told_by_name() -> None:
    """All of timm's pretrained B0 to B7 and Lite tags."""
    known = set(B + LITE)
    seen = 0
    for tag in timm.list_models(["efficientnet_[bl]*", "tf_efficientnet_[bl]*"], pretrained=True):
        architecture_name = tag.split(".")[0]
        name = architecture_name.removeprefix("tf_")
        if name not in known:
            continue
        seen += 1
        config = timm.get_pretrained_cfg(tag)
        got = convert_for(name, timm_keys(architecture_name), hint=tag)
        assert (got.mean, got.std) == (config.mean, config.std), tag
        assert got.padding == ("same" if tag.startswith("tf_") else "symmetric"), tag
    assert seen > 30


@pytest.mark.parametrize("hint", ["", "model.safetensors", "my_efficientnet_b0.pth", "best.pth"])
def test_an_ambiguous_dict_of_timms_asks_for_the_family(hint: str) -> None:
    with pytest.raises(CheckpointError, match=r'padding="same", norm_eps=1e-3 .*tf_efficientnet'):
        convert_for("efficientnet_b0", timm_keys("efficientnet_b0"), hint=hint)


def test_padding_and_eps_that_are_given_are_believed() -> None:
    foreign = timm_keys("efficientnet_b0")
    options: dict[str, Any] = {"padding": "same", "norm_eps": 1e-4}
    for hint in ("", "efficientnet_b0.pth"):
        got = convert_for("efficientnet_b0", foreign, hint=hint, **options)
        assert (got.padding, got.norm_eps) == ("same", 1e-4)
    with pytest.raises(CheckpointError, match="padding"):  # one of the two does not give the other
        convert_for("efficientnet_b0", foreign, padding="same")


@pytest.mark.parametrize(
    ("name", "hint", "expected"),
    [
        ("efficientnet_b0", "efficientnet-b0-355c32eb.pth", IMAGENET),
        ("efficientnet_b0", "adv-efficientnet-b0-b64d5a18.pth", HALVES),
        ("efficientnet_lite0", "efficientnet-lite0-57934424.pth", HALVES),
    ],
)
def test_lukemelas_is_tensorflows_convention(name: str, hint: str, expected: Any) -> None:
    state_dict = dict.fromkeys(lukemelas_keys(name), torch.zeros(()))
    got = convert_for(name, state_dict, hint=hint)
    assert (got.padding, got.norm_eps, got.norm_momentum) == ("same", 1e-3, 0.01)
    assert (got.mean, got.std) == expected


def test_a_missing_num_batches_tracked_is_zero() -> None:
    target = own_keys("efficientnet_b0")
    keys = [key for key in lukemelas_keys("efficientnet_b0") if "num_batches" not in key]
    kept = [value for key, value in target.items() if "num_batches" not in key]
    got = convert_for("efficientnet_b0", dict(zip(keys, kept, strict=True))).state_dict
    assert got.keys() == target.keys()
    counters = [value for key, value in got.items() if "num_batches" in key]
    assert all(c.dtype == torch.int64 and c.shape == () and int(c) == 0 for c in counters)


@pytest.mark.parametrize("keys", [["layer1.0.conv1.weight", "fc.weight"], ["features.0.weight"]])
def test_an_unknown_naming_is_refused_with_its_first_keys(keys: list[str]) -> None:
    with pytest.raises(CheckpointError, match=f"thing is no EfficientNet.*{keys[0]}"):
        convert_for("efficientnet_b0", dict.fromkeys(keys, torch.zeros(1)), where="thing")


# ---------------------------------------------------------------- files

SMALL = {"features.0.0.weight": torch.arange(6.0).view(2, 3), "other": torch.tensor(7)}


def same(got: StateDict, expected: StateDict) -> bool:
    return got.keys() == expected.keys() and all(torch.equal(got[k], expected[k]) for k in got)


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "pth.tar", "safetensors"])
def test_a_file_round_trips(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(SMALL, path)
    state_dict, hints = read_file(path)
    assert same(state_dict, SMALL)
    assert (hints.name, hints.config) == (path.name, {})


EMA = {"features.0.0.weight": torch.zeros(2, 3)}
CONTAINERS: dict[str, Any] = {
    "bare": SMALL,
    "state_dict": {"state_dict": SMALL, "epoch": 3, "optimizer": {"lr": 0.1}},
    "model": {"model": SMALL, "model_ema": EMA},
    "EMA, passed over": {"state_dict_ema": EMA, "state_dict": SMALL},
    "EMA, alone": {"state_dict_ema": SMALL, "epoch": 3},
    "DataParallel": {f"module.{key}": value for key, value in SMALL.items()},
    "compiled, in DDP": {"model": {f"module._orig_mod.{k}": v for k, v in SMALL.items()}},
}


@pytest.mark.parametrize("loaded", CONTAINERS.values(), ids=CONTAINERS)
def test_a_container_is_opened(loaded: Any) -> None:
    assert same(unwrap(loaded, "it"), SMALL)


@pytest.mark.parametrize(
    ("loaded", "complaint"),
    [
        ({}, "holds nothing"),
        ({"state_dict": {}}, "holds nothing"),
        ([1, 2], "holds a list"),
        (torch.zeros(3), "holds a Tensor"),
        ({"epoch": 3, "a.weight": torch.zeros(1)}, "not a name with a tensor: epoch"),
        ({3: torch.zeros(1)}, "not a name with a tensor: 3"),
        ({"module.a": torch.zeros(1), "b": 1}, "not a name with a tensor: b"),
    ],
)
def test_what_is_no_state_dict_is_refused(loaded: Any, complaint: str) -> None:
    with pytest.raises(CheckpointError, match=f"it .*{complaint}"):
        unwrap(loaded, "it")


def test_a_prefix_that_not_every_key_has_stays() -> None:
    mixed = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert same(unwrap(mixed, "it"), mixed)


class NeedsCode:
    """Unpickled, it would create the file it was given."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def saved(**options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(SMALL, buffer, **options)
    return buffer.getvalue()


BAD_FILES = {
    "cut": saved()[:-200],
    "cut, before torch 1.6": saved(_use_new_zipfile_serialization=False)[:-8],
    "damaged": bytes(400) + saved()[400:],
    "text": b"hello world, not a checkpoint\n",
    "an error page": b"<!DOCTYPE html><title>404</title>",
    "empty": b"",
    "a pickle of something else": pickle.dumps({"a": [1.5]}, protocol=2),
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_bad_file_is_one_error_that_names_it(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"w\.{suffix}.*(damaged|not a name with a tensor)"):
        read_file(path)


def test_a_cut_safetensors_file_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(SMALL, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"w\.safetensors.*damaged"):
        read_file(path)


def test_a_pickle_that_needs_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"a": NeedsCode(tmp_path / "ran")}, tmp_path / "code.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    for name in ("code.pth", "module.pth"):
        with pytest.raises(CheckpointError, match=rf"{name}.*needs code.*weights_only"):
            read_file(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:.*TorchScript:UserWarning", "ignore::DeprecationWarning")
def test_a_torchscript_archive_is_named_as_such(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt.*TorchScript"):
        read_file(tmp_path / "a.pt")


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        read_file(tmp_path / "absent.pth")
    for name in ("folder.pth", "folder.safetensors"):
        (tmp_path / name).mkdir()
        with pytest.raises(CheckpointError, match=name):
            read_file(tmp_path / name)


def test_without_safetensors_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(SMALL, tmp_path / "w.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r'w\.safetensors.*pip install "effnet-fast\[safetensor'):
        read_file(tmp_path / "w.safetensors")


# ---------------------------------------------------------------- loading


@pytest.fixture(scope="module")
def model() -> nn.Module:
    net: nn.Module = torchvision.models.efficientnet_b0()
    return net


def fresh(net: nn.Module) -> StateDict:
    """Another set of values for the keys of ``net``."""
    return {key: torch.full_like(value, 3) for key, value in net.state_dict().items()}


def test_every_value_is_copied_in_the_models_type(model: nn.Module) -> None:
    given = {
        key: value.half() if value.is_floating_point() else value
        for key, value in fresh(model).items()
    }
    given[BIAS][0] = torch.nan  # values are not judged
    load_into(model, convert_for("efficientnet_b0", given))
    for key, value in model.state_dict().items():
        assert value.dtype == (torch.int64 if "num_batches" in key else torch.float32)
        torch.testing.assert_close(value, given[key].to(value.dtype), equal_nan=True)


HEAD, BIAS, STEM = "classifier.1.weight", "classifier.1.bias", "features.0.0.weight"
COUNTER = "features.0.1.num_batches_tracked"
#: What is put in place of a B0's tensors, None for nothing, and what is said of it.
MISFITS: dict[str, tuple[dict[str, Tensor | None], str]] = {
    "missing": (
        dict.fromkeys(["features.1.0.block.0.0.weight", "features.8.0.weight", BIAS]),
        r"3 missing: features\.1\.0\.block\.0\.0\.weight, .*another variant",
    ),
    "unexpected": (
        {f"extra.{i}": torch.zeros(1) for i in range(5)},
        r"5 unexpected: extra\.0, extra\.1, extra\.2 and 2 more\.",
    ),
    "ten classes": (
        {HEAD: torch.zeros(10, 1280), BIAS: torch.zeros(10)},
        r"2 of another shape: classifier\.1\.weight \(checkpoint \[10, 1280\], model "
        r"\[1000, 1280\]\), .* Build the model with num_classes=10, not 1000\.$",
    ),
    "one channel": (
        {STEM: torch.zeros(32, 1, 3, 3)},
        r"Build the model with in_channels=1, not 3\.$",
    ),
    "transposed": (
        {HEAD: torch.zeros(1280, 1000)},
        r"\(checkpoint \[1280, 1000\], model \[1000, 1280\]\)\.$",
    ),
    "integers": (
        {BIAS: torch.zeros(1000, dtype=torch.int64)},
        r"1 of an unfit type: classifier\.1\.bias \(checkpoint torch\.int64, model torch\.float32",
    ),
    "a float counter": (
        {COUNTER: torch.zeros(())},
        r"checkpoint torch\.float32, model torch\.int64",
    ),
    "sparse": ({BIAS: torch.zeros(1000).to_sparse()}, r"checkpoint torch\.sparse_coo, model"),
    "no data": ({BIAS: torch.zeros(1000, device="meta")}, r"checkpoint without data"),
}


@pytest.mark.parametrize(("changes", "complaint"), MISFITS.values(), ids=MISFITS)
def test_a_misfit_is_one_error_and_changes_nothing(
    model: nn.Module, changes: dict[str, Tensor | None], complaint: str
) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    changed = {**{key: value + 1 for key, value in before.items()}, **changes}
    given = {key: value for key, value in changed.items() if value is not None}
    checkpoint = convert_for("efficientnet_b0", given, where="some.pth")
    with pytest.raises(CheckpointError, match=rf"some\.pth \(torchvision keys\).*{complaint}"):
        load_into(model, checkpoint)
    for key, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[key].nan_to_num()), key


@pytest.mark.parametrize("naming", ["torchvision", "timm", "lukemelas"])
def test_another_variant_is_named_as_such(model: nn.Module, naming: str) -> None:
    larger = own_keys("efficientnet_b1")
    keys = {
        "torchvision": list(larger),
        "timm": list(timm_keys("efficientnet_b1")),
        "lukemelas": list(lukemelas_keys("efficientnet_b1")),
    }[naming]
    given = dict(zip(keys, larger.values(), strict=True))
    checkpoint = convert_for("efficientnet_b0", given, hint="tf_efficientnet_b1.pth")
    with pytest.raises(CheckpointError, match=rf"{naming} keys.*unexpected.*another variant"):
        load_into(model, checkpoint)


def test_an_extra_key_of_a_foreign_naming_is_reported_by_its_own_name(model: nn.Module) -> None:
    foreign = {**timm_keys("efficientnet_b0"), "blocks.0.0.aa.weight": torch.zeros(1)}
    checkpoint = convert_for("efficientnet_b0", foreign, hint="efficientnet_b0")
    with pytest.raises(CheckpointError, match=r"1 unexpected: blocks\.0\.0\.aa\.weight"):
        load_into(model, checkpoint)


def test_model_options_follow_the_tensors() -> None:
    options = {"in_chans": 1, "num_classes": 7}
    foreign = dict(timm_keys("tf_efficientnet_b0", **options))
    got = convert_for("efficientnet_b0", foreign, hint="tf_efficientnet_b0")
    assert got.model_options() == {
        "padding": "same",
        "norm_eps": 1e-3,
        "norm_momentum": 0.1,
        "num_classes": 7,
        "in_channels": 1,
    }
    for key in ("classifier.weight", "conv_stem.weight"):
        del foreign[key]
    partial = convert_for("efficientnet_b0", foreign, hint="tf_efficientnet_b0").model_options()
    assert partial.keys() == {"padding", "norm_eps", "norm_momentum"}
