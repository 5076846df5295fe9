"""Pictures to tensors: equal to torchvision's preset bit for bit, and one error for bad files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import skimage
import torch
from PIL import Image

from effnet_fast.preprocess import HALF, ImageError, Recipe, imagenet_classes, load_image, to_rgb
from effnet_fast.stock import import_torchvision

DATA = Path(skimage.__file__).parent / "data"
PHOTOGRAPHS = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg")


def photograph(name: str = "chelsea.png") -> Image.Image:
    with Image.open(DATA / name) as image:
        return image.convert("RGB")


def stock(recipe: Recipe) -> Any:
    """torchvision's own preset with the same numbers."""
    transforms = import_torchvision().transforms
    return transforms._presets.ImageClassification(
        crop_size=recipe.crop,
        resize_size=recipe.resize,
        interpolation=transforms.InterpolationMode(recipe.interpolation),
        mean=recipe.mean,
        std=recipe.std,
    )


RECIPES = {
    "B0": Recipe(224, 256),
    "B1 V2, bilinear": Recipe(240, 255, "bilinear"),
    "B2, no margin": Recipe(288, 288),
    "odd, Lite's mean": Recipe(225, 257, "bicubic", HALF, HALF),
    "crop larger than resize, odd padding": Recipe(225, 100),
    "the same, to another remainder": Recipe(227, 100),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_photograph_equals_torchvision(name: str, recipe: Recipe) -> None:
    image = photograph(name)
    got = recipe(image)
    assert got.dtype == torch.float32
    assert got.shape == (3, recipe.crop, recipe.crop)
    assert torch.equal(got, stock(recipe)(image))


# Widths and heights: portrait and landscape, odd margins, the crop's own size, and the least.
SIZES = [(301, 223), (223, 301), (256, 256), (256, 999), (224, 224), (61, 37), (1, 7), (5, 1)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_size_equals_torchvision(size: tuple[int, int]) -> None:
    image, recipe = photograph().resize(size), Recipe(224, 256)
    assert torch.equal(recipe(image), stock(recipe)(image))


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGBA", "P", "CMYK", "YCbCr", "HSV"])
def test_another_mode_is_the_picture_in_rgb(mode: str) -> None:
    image, recipe = photograph().convert(mode), Recipe(224, 256)
    assert torch.equal(recipe(image), stock(recipe)(image.convert("RGB")))


@pytest.mark.filterwarnings("error")  # PIL warns of a palette with transparency
def test_a_palette_with_transparency_keeps_its_colours(tmp_path: Path) -> None:
    palette = photograph().convert("P")
    palette.save(tmp_path / "a.png", transparency=b"\x00\x80\xff")
    assert load_image(tmp_path / "a.png").tobytes() == palette.convert("RGB").tobytes()


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    grey = photograph().convert("L")
    wide = grey.convert("I").point(lambda value: value * 257).convert("I;16")
    path = tmp_path / f"a.{suffix}"
    wide.save(path)
    with Image.open(path) as read:
        assert read.mode in ("I", "I;16", "I;16B")
    assert load_image(path).tobytes() == grey.convert("RGB").tobytes()


@pytest.mark.parametrize(("value", "expected"), [(128, 0), (129, 1), (65278, 254), (65535, 255)])
def test_sixteen_bits_are_rounded_to_the_nearest(value: int, expected: int) -> None:
    assert to_rgb(Image.new("I;16", (1, 1), value)).getpixel((0, 0)) == (expected,) * 3


@pytest.mark.parametrize(("mode", "value"), [("F", 0.5), ("I", 65536), ("I", -1)])
def test_a_mode_without_a_known_range_is_refused(mode: str, value: float) -> None:
    with pytest.raises(ImageError, match=f"mode {mode}"):
        to_rgb(Image.new(mode, (4, 4), value))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture_upright(tmp_path: Path, orientation: int) -> None:
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # the inverse of how a viewer turns it
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = photograph()
    stored = upright.transpose(turns[orientation]) if orientation in turns else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    loaded = load_image(tmp_path / "a.png")
    assert loaded.size == upright.size
    assert loaded.tobytes() == upright.tobytes()


def _missing(path: Path) -> None:
    assert not path.exists()


def _folder(path: Path) -> None:
    path.mkdir()


def _text(path: Path) -> None:
    path.write_text("not a picture")


def _empty(path: Path) -> None:
    path.touch()


def _cut_jpeg(path: Path) -> None:
    content = (DATA / "rocket.jpg").read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _cut_png(path: Path) -> None:
    content = (DATA / "chelsea.png").read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _broken_png(path: Path) -> None:
    content = bytearray((DATA / "chelsea.png").read_bytes())
    content[8:24] = bytes(16)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "write", [_missing, _folder, _text, _empty, _cut_jpeg, _cut_png, _broken_png]
)
def test_a_bad_file_is_an_image_error_that_names_it(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "picture.png"
    write(path)
    with pytest.raises(ImageError, match=r"picture\.png"):
        load_image(path)


@pytest.mark.parametrize("limit", [100, 10_000])  # PIL warns up to twice the limit, then raises
def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ImageError, match="decompression bomb"):
        load_image(DATA / "chelsea.png")


def test_a_line_that_resizing_would_blow_up_is_refused() -> None:
    with pytest.raises(ImageError, match="256 x 5120000 after resizing"):
        Recipe(224, 256)(Image.new("RGB", (1, 20_000)))


def test_an_empty_picture_is_refused() -> None:
    with pytest.raises(ImageError, match="0 x 4"):
        Recipe(224, 256)(Image.new("RGB", (0, 4)))


@pytest.mark.parametrize(
    "arguments", [(0, 256), (224, -1), (224, 256, "nearest")], ids=["crop", "resize", "filter"]
)
def test_a_senseless_recipe_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"crop and resize|interpolation"):
        Recipe(*arguments)


def test_the_class_names_are_torchvisions() -> None:
    meta = import_torchvision().models._meta
    assert imagenet_classes() == tuple(meta._IMAGENET_CATEGORIES)
