"""The affine jitter."""

import math

import pytest
import torch

from dmlfast.data import AffineJitter, create_augmentation, create_dataset


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blob(x: float, y: float, size: int = 32) -> torch.Tensor:
    """A smooth spot, (size, size), whose centre is at (x, y) from the middle."""
    position = torch.arange(size) - (size - 1) / 2
    return torch.exp(-((position - x) ** 2 + (position[:, None] - y) ** 2) / 8)


def centres(images: torch.Tensor) -> torch.Tensor:
    """Where the mass of each image is, (B, 2), x and y from the middle."""
    position = torch.arange(images.shape[-1]) - (images.shape[-1] - 1) / 2
    mass = images.sum(dim=(1, 2, 3))
    x = (images.sum(dim=(1, 2)) * position).sum(1) / mass
    y = (images.sum(dim=(1, 3)) * position).sum(1) / mass
    return torch.stack([x, y], dim=1)


@pytest.mark.parametrize("shape", [(5, 1, 32, 32), (3, 3, 8, 8), (2, 1, 9, 14)])
def test_zero_strength_is_the_identity(shape):
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(0))
    out = AffineJitter(0, 0, 0, 0)(images, generator(1))
    assert out.shape == shape
    assert out.dtype == torch.float32
    assert torch.allclose(out, images / 255, atol=1e-4)


def test_floats_are_taken_as_they_are():
    images = torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8, generator=generator(0))
    jitter = create_augmentation("glyphs")
    out = jitter(images, generator(1))
    assert torch.equal(jitter(images.float() / 255, generator(1)), out)
    assert out.min() >= 0
    assert out.max() <= 1 + 1e-6


@pytest.mark.parametrize("name", ["digits", "glyphs"])
def test_the_generator_decides(name):
    images, _ = create_dataset(name, "val").take(range(64))
    jitter = create_augmentation(name)
    torch.manual_seed(0)
    first = jitter(images, generator(3))
    torch.manual_seed(1)
    assert torch.equal(jitter(images, generator(3)), first)
    assert not torch.equal(jitter(images, generator(4)), first)
    used = generator(3)
    jitter(images, used)
    assert not torch.equal(jitter(images, used), first)


def test_each_image_has_an_amount_of_its_own():
    image = blob(4, 0).expand(8, 1, 32, 32)
    out = create_augmentation("glyphs")(image, generator(0))
    assert len({centre for centre, _ in centres(out).tolist()}) == 8


def test_translation():
    out = AffineJitter(0, 0.1, 0, 0)(blob(0, 0).expand(2000, 1, 32, 32), generator(0))
    for way in centres(out).T:
        assert way.min() == pytest.approx(-3.2, abs=0.05)
        assert way.max() == pytest.approx(3.2, abs=0.05)
        assert way.mean() == pytest.approx(0, abs=0.15)


def test_rotation():
    out = AffineJitter(30, 0, 0, 0)(blob(8, 0).expand(2000, 1, 32, 32), generator(0))
    x, y = centres(out).T
    assert torch.allclose(x.hypot(y), torch.tensor(8.0), atol=0.05)
    angle = torch.atan2(y, x) * (180 / math.pi)
    assert angle.min() == pytest.approx(-30, abs=0.3)
    assert angle.max() == pytest.approx(30, abs=0.3)


def test_scale():
    out = AffineJitter(0, 0, 0.2, 0)(blob(6, 6).expand(2000, 1, 32, 32), generator(0))
    for way in centres(out).T:
        assert way.min() == pytest.approx(6 / 1.2, abs=0.05)
        assert way.max() == pytest.approx(6 / 0.8, abs=0.05)


def test_shear():
    out = AffineJitter(0, 0, 0, 0.25)(blob(0, 8).expand(2000, 1, 32, 32), generator(0))
    x, y = centres(out).T
    assert torch.allclose(y, torch.tensor(8.0), atol=0.05)
    assert x.min() == pytest.approx(-2, abs=0.05)
    assert x.max() == pytest.approx(2, abs=0.05)


def test_nothing_is_mirrored():
    image = torch.zeros(500, 1, 32, 32)
    image[:, :, :, :8] = 1
    image[:, :, :8] = 1
    out = create_augmentation("glyphs")(image, generator(0))
    assert (centres(out) < -2).all()


def test_rotation_and_shear_keep_the_area():
    image = blob(0, 0)
    out = AffineJitter(30, 0, 0, 0.5)(image.expand(200, 1, 32, 32), generator(0))
    area = out.sum(dim=(1, 2, 3)) / image.sum()
    assert torch.allclose(area, torch.tensor(1.0), atol=0.02)
