"""The transforms of the papers, on pictures of all shapes."""

import numpy as np
import pytest
import torch
from PIL import Image

from dmlfast.data import create_transform, transform_names
from dmlfast.errors import UserError

SHAPES = [(300, 200), (200, 300), (256, 256), (40, 50), (900, 31), (1, 1)]
SIZES = {
    "lifted": 227,
    "lifted-sop": 227,
    "norm-softmax": 224,
    "padded": 224,
    "reality-check": 227,
    "weights": 224,
}


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", transform_names())
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("train", [False, True])
def test_any_picture_becomes_an_image_of_the_papers_size(name, shape, train):
    transform = create_transform(name, train=train)
    assert transform.size == SIZES[name]
    image = transform(picture(*shape), np.random.default_rng(0))
    assert image.shape == (SIZES[name], SIZES[name], 3)
    assert image.dtype == np.uint8


@pytest.mark.parametrize("name", transform_names())
@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_grey_and_other_modes(name, mode):
    image = create_transform(name, 32)(picture(50, 40, mode))
    assert image.shape == (32, 32, 3)
    if mode in ("L", "1"):
        assert (image == image[..., :1]).all()


@pytest.mark.parametrize("name", transform_names())
def test_the_generator_decides(name):
    transform, original = create_transform(name, 48, train=True), picture(90, 70)
    images = [transform(original, np.random.default_rng(seed)) for seed in (0, 0, 1, 2, 3)]
    assert np.array_equal(images[0], images[1])
    assert not all(np.array_equal(images[0], image) for image in images[2:])


@pytest.mark.parametrize("name", transform_names())
def test_tests_draw_nothing(name):
    original, generator = picture(90, 70), np.random.default_rng(0)
    state = generator.bit_generator.state
    image = create_transform(name, 48)(original, generator)
    assert generator.bit_generator.state == state
    assert np.array_equal(image, create_transform(name, 48)(original))


@pytest.mark.parametrize("name", transform_names())
def test_without_a_generator_torch_decides(name):
    """As an argument of a data set that knows no generators, such as torchvision's."""
    transform, original = create_transform(name, 24, train=True), gradient(40, 40)
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        drawn.append([transform(original) for _ in range(8)])
    assert np.array_equal(*drawn)
    assert len({image.tobytes() for image in drawn[0]}) > 1


@pytest.mark.parametrize("name", transform_names())
def test_half_of_the_images_are_mirrored(name):
    transform, original = create_transform(name, 24, train=True), gradient(40, 40)
    mirrored = [
        image[0, 0, 0] > image[0, -1, 0]
        for image in (transform(original, np.random.default_rng(seed)) for seed in range(1000))
    ]
    assert abs(np.mean(mirrored) - 0.5) < 4 * 0.5 / np.sqrt(1000)


def test_random_crops_are_uniform_over_all_places():
    transform = create_transform("lifted", 227, train=True)
    image = Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(256, 0))
    left = [
        int(transform(image, np.random.default_rng(seed))[0, :, 0].min()) for seed in range(600)
    ]
    assert set(left) == set(range(30))
    assert np.bincount(left).max() < 50


def test_stretched_pictures_show_all_of_a_square():
    for name, margin in (("lifted", 14), ("norm-softmax", 16)):
        image = create_transform(name)(gradient(512, 128))
        assert abs(int(image[0, 0, 0]) - margin) <= 2
        assert abs(int(image[0, 0, 1]) - margin) <= 2
        assert abs(int(image[-1, -1, 1]) - (255 - margin)) <= 3


def test_padding_is_white_and_symmetric():
    image = create_transform("padded", 224)(Image.new("RGB", (512, 256), (0, 0, 0)))
    white = (image == 255).all(axis=(1, 2))
    assert white[:48].all()
    assert white[-48:].all()
    assert not image[48:-48].any()


def test_white_around_a_product_is_cut_off_but_for_a_margin():
    pixels = np.full((300, 500, 3), 255, np.uint8)
    pixels[100:200, 50:148] = 0  # 98 and twice the margin are 128 wide
    pixels[10, 10] = 250
    resize = create_transform("lifted-sop").resize
    resized = np.asarray(resize(Image.fromarray(pixels)))
    assert resized.shape == (256, 256, 3)
    dark = np.argwhere(resized[..., 0] < 128)  # 128 x 130 pixels become 252 x 256
    assert np.abs(dark.min(axis=0) - [29.5, 31.5]).max() <= 1
    assert np.abs(dark.max(axis=0) - [225.5, 223.5]).max() <= 1
    pixels[10, 10] = 249
    assert (np.asarray(resize(Image.fromarray(pixels)))[0] == 255).all()
    white = np.asarray(resize(Image.new("RGB", (90, 60), "white")))
    assert (white == 255).all()
    grey = np.asarray(resize(Image.new("RGB", (90, 60), (9, 9, 9))))
    assert grey[43:213].max() == 9
    assert (grey[:42] == 255).all()


def test_the_short_side_decides_and_the_centre_is_kept():
    image = create_transform("reality-check", 227)(gradient(1024, 256))
    assert image[0, :, 0].min() > 255 * 0.38
    assert image[0, :, 0].max() < 255 * 0.62
    assert abs(int(image[0, 0, 1]) - 14) <= 2


def test_random_rectangles_cover_the_share_that_the_paper_says():
    transform, side = create_transform("reality-check", 64, train=True), 255
    pixels = gradient(256, 256)
    shares, ratios = [], []
    for seed in range(400):
        image = transform(pixels, np.random.default_rng(seed)).astype(float)
        width = abs(image[32, -1, 0] - image[32, 0, 0]) * 64 / 63 / side
        height = (image[-1, 32, 1] - image[0, 32, 1]) * 64 / 63 / side
        shares.append(width * height)
        ratios.append(width / height)
    assert 0.14 < min(shares) < 0.2
    assert 0.9 < max(shares) < 1.05
    assert 0.68 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.45


@pytest.mark.parametrize("name", transform_names())
def test_resizing_twice_is_resizing_once(name):
    resize = create_transform(name, 64).resize
    for shape in SHAPES:
        once = resize(picture(*shape))
        assert np.array_equal(np.asarray(resize(once)), np.asarray(once))


def test_transforms_in_words():
    found = {
        name: (str(made.resize), made.crop.describe(True), made.crop.describe(False))
        for name in transform_names()
        for made in [create_transform(name)]
    }
    anywhere = "{} anywhere, mirrored or not"
    assert found == {
        "lifted": ("stretched to 256 x 256", anywhere.format(227), "centre 227"),
        "lifted-sop": ("trimmed and padded to 256 x 256", anywhere.format(227), "centre 227"),
        "norm-softmax": ("stretched to 256 x 256", anywhere.format(224), "centre 224"),
        "padded": ("padded to 256 x 256", anywhere.format(224), "centre 224"),
        "reality-check": (
            "short side 256",
            "16 to 100 % of the area, mirrored or not",
            "centre 227",
        ),
        "weights": ("short side 256", "8 to 100 % of the area, mirrored or not", "centre 224"),
    }


def test_preprocessing_of_weights():
    transform = create_transform("weights", 240, interpolation="bicubic", crop_pct=0.9375)
    assert (transform.resize.side, transform.resize.interpolation) == (256, "bicubic")
    assert create_transform("weights", 224, crop_pct=1.0).resize.side == 224


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "lifed"}, "unknown transform 'lifed': did you mean 'lifted'?"),
        ({"name": "weights", "interpolation": "cubic"}, "unknown interpolation 'cubic'"),
        ({"name": "weights", "size": 0}, "the image size must be from 1 to 8192, not 0"),
        ({"name": "weights", "crop_pct": 0.0}, "crop_pct must be above 0 and at most 1, not 0.0"),
    ],
)
def test_transforms_that_there_are_not(arguments, message):
    with pytest.raises(UserError, match=message):
        create_transform(**arguments)
