"""Data sets whose images are files: what is read, cropped, skipped and refused."""

import logging
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dmlfast.data import create_transform, prepare_images
from dmlfast.data.images import ImageDataset, open_image
from dmlfast.data.paths import PathList
from dmlfast.errors import UserError

COLORS = {"a/0.png": "red", "a/1.png": "lime", "a/2.png": "blue", "b/0.png": "white"}
RED, LIME, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def shrink(picture, generator):
    """A transform: 2 x 3 pixels, a bit darker in training."""
    pixels = np.array(picture.resize((3, 2)))
    return pixels - generator.integers(1, 200, dtype=np.uint8) if generator else pixels


@pytest.fixture
def dataset(tmp_path, write_image) -> ImageDataset:
    """Three images of one class and one of another; of many sizes."""
    for number, (path, color) in enumerate(COLORS.items()):
        write_image(path, color, size=(8 + number, 6))
    return ImageDataset(
        name="folder",
        split="all",
        root=tmp_path,
        labels=np.array([0, 0, 0, 1]),
        paths=PathList(COLORS),
        class_names=["a", "b"],
    )


def damage(dataset, *indices):
    for index in indices:
        file = dataset.root / dataset.paths[index]
        file.write_bytes(file.read_bytes()[:45])


def colors(images):
    return [tuple(image[:, 0, 0].tolist()) for image in images]


def test_images_as_they_are(dataset):
    image, label = dataset[1]
    assert (image.shape, image.dtype, label) == ((3, 6, 9), torch.uint8, 0)
    assert colors([image]) == [LIME]
    picture = dataset.image(3)
    assert (picture.mode, picture.size, picture.getpixel((0, 0))) == ("RGB", (11, 6), WHITE)
    assert (len(dataset), dataset.channels) == (4, 3)


def test_channels_rows_and_columns_stay_in_their_places(dataset):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(dataset.root / "a/0.png")
    image, _ = dataset[0]
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))


def test_batches(dataset):
    dataset.transform = shrink
    images, labels = dataset.take([3, 0, 3, 2])
    assert (images.shape, images.dtype, labels.dtype) == ((4, 3, 2, 3), torch.uint8, torch.int64)
    assert colors(images) == [WHITE, RED, WHITE, BLUE]
    assert labels.tolist() == [1, 0, 1, 0]
    assert torch.equal(dataset[3][0], images[0])
    assert dataset.image_size == (2, 3)
    assert dataset.take(np.array([], dtype=np.int64))[0].shape[:2] == (0, 3)


def test_every_image_has_its_generator(dataset):
    dataset.transform = shrink

    def take(*seeds):
        return dataset.take([3] * len(seeds), [np.random.default_rng(seed) for seed in seeds])[0]

    assert torch.equal(take(0, 1), torch.cat([take(0), take(1)]))
    assert not torch.equal(take(0), take(1))


def test_a_batch_needs_a_transform(dataset):
    for take in (dataset.take, dataset.take_readable):
        with pytest.raises(UserError, match="without a transform they cannot form a batch"):
            take([0])


def test_boxes(dataset):
    pixels = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    Image.fromarray(pixels).save(dataset.root / "a/0.png")
    dataset.boxes = np.array([[2, 1, 5, 4], [-3, 2, 100, 100], [0, 0, 0, 0], [11, 0, 20, 5]])
    assert np.array_equal(np.asarray(dataset.image(0)), pixels[1:4, 2:5])
    assert dataset.image(1).size == (9, 4)
    assert dataset.image(2).size == (10, 6)
    with pytest.raises(
        UserError, match=r"b/0\.png: the box \[11, 0, 20, 5\] covers no part of the image"
    ):
        dataset.image(3)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png"), ("LA", "png"), ("1", "png")],
)
def test_every_mode_becomes_rgb(write_image, mode, suffix):
    picture = open_image(write_image(f"x.{suffix}", "white", mode=mode))
    assert picture.mode == "RGB"
    assert picture.getpixel((4, 3)) == WHITE


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_of_16_bits_the_upper_8_are_read(tmp_path, dtype):
    pixels = np.array([[0, 255, 256, 32768, 65535]], dtype=dtype)
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    assert np.asarray(open_image(tmp_path / "x.tif"))[0, :, 1].tolist() == [0, 0, 1, 128, 255]


def test_floating_point_is_refused(tmp_path):
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=r"x\.tif holds floating-point numbers"):
        open_image(tmp_path / "x.tif")


def test_photos_are_turned_only_where_that_is_asked(write_image):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    file = write_image("x.jpg", size=(8, 6), exif=exif)
    assert open_image(file).size == (8, 6)
    assert open_image(file, upright=True).size == (6, 8)


def test_damaged_images_stop(dataset):
    damage(dataset, 1)
    dataset.transform = shrink
    for read in (dataset.image, dataset.__getitem__, lambda i: dataset.take([i])):
        with pytest.raises(UserError, match=r"a/1\.png") as error:
            read(1)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError):
        dataset.take_readable([0, 1])


def test_what_is_no_image(dataset):
    (dataset.root / "a/0.png").write_text("<html>")
    with pytest.raises(UserError, match=r"a/0\.png is not an image"):
        dataset.image(0)
    (dataset.root / "a/0.png").unlink()
    with pytest.raises(UserError, match=r"cannot read .*a/0\.png: No such file"):
        dataset.image(0)


def test_another_image_of_the_class_stands_in(dataset, caplog):
    damage(dataset, 1)
    dataset.on_error, dataset.transform = "skip", shrink
    for _ in range(2):
        images, labels = dataset.take([0, 1, 3])
        assert colors(images) == [RED, BLUE, WHITE]
        assert labels.tolist() == [0, 0, 1]
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    assert "a/1.png" in caplog.text
    assert list(dataset.unreadable) == [1]
    damage(dataset, 2)
    assert colors(dataset.take([1, 2])[0]) == [RED, RED]
    assert "skipped (2 so far in folder)" in caplog.text


def test_an_image_of_another_class_stands_in_for_the_last_of_one(dataset):
    damage(dataset, 3)
    dataset.on_error, dataset.transform = "skip", shrink
    images, labels = dataset.take([3])
    assert (colors(images), labels.tolist()) == ([RED], [0])
    image, label = dataset[3]
    assert (colors([image]), label) == ([RED], 0)
    damage(dataset, 0, 1, 2)
    with pytest.raises(UserError, match="none of the 4 images of folder can be read"):
        dataset.take([2])


def test_evaluation_leaves_damaged_images_out(dataset, caplog):
    damage(dataset, 1, 3)
    dataset.on_error, dataset.transform = "skip", shrink
    images, labels, rows = dataset.take_readable([3, 2, 1, 0])
    assert colors(images) == [BLUE, RED]
    assert (labels.tolist(), rows.tolist(), rows.dtype) == ([0, 0], [2, 0], np.int64)
    assert "a/1.png" in caplog.text
    assert "b/0.png" in caplog.text
    images, labels, rows = dataset.take_readable([1])
    assert len(images) == len(labels) == len(rows) == 0


def test_decompression_bombs(dataset, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(UserError, match=r"cannot read .*a/0\.png: .*decompression bomb"):
        dataset.image(0)


def test_links_that_lead_out_of_the_folder(dataset, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "x.png"
    (dataset.root / "a/0.png").rename(outside)
    (dataset.root / "a/0.png").symlink_to(outside)
    with pytest.raises(UserError, match="leads outside"):
        dataset.image(0)


def test_a_part_keeps_what_belongs_to_its_images(dataset):
    dataset.boxes = np.arange(16).reshape(4, 4)
    dataset.role = np.array([1, 2, 1, 2], dtype=np.uint8)
    dataset.categories = np.array([5, 6, 7, 8])
    dataset.on_error, dataset.closed_set = "skip", True
    dataset.unreadable[0] = "why"
    part = dataset.with_rows(np.array([3, 1]), "test")
    assert (part.split, list(part.paths)) == ("test", ["b/0.png", "a/1.png"])
    assert part.labels.tolist() == [1, 0]
    assert part.boxes.tolist() == [[12, 13, 14, 15], [4, 5, 6, 7]]
    assert part.role.tolist() == [2, 2]
    assert part.categories.tolist() == [8, 6]
    assert (part.on_error, part.closed_set, part.unreadable) == ("skip", True, {})
    assert part.class_names == ["a", "b"]
    assert dataset.split == "all"
    assert dataset.with_classes(np.array([0]), "val").labels.tolist() == [0, 0, 0]


def test_goes_to_other_processes(dataset):
    dataset.transform = shrink
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy.take([2])[0], dataset.take([2])[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_read_is_found_at_once(dataset, caplog, workers):
    dataset.on_error = "skip"
    assert dataset.readable(workers) is dataset
    damage(dataset, 0, 2)
    found = dataset.readable(workers)
    kept = [row for row in range(len(dataset)) if row not in (0, 2)]
    assert list(found.paths) == [dataset.paths[row] for row in kept]
    assert found.labels.tolist() == dataset.labels[kept].tolist()
    (record,) = caplog.records
    message = record.getMessage()
    assert f"2 of the {len(dataset)} images of" in message
    assert dataset.paths[0] in message
    assert dataset.paths[2] in message


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_of_torch_crops_at_random_for_training_alone(tmp_path, workers, prepared):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    labels = np.zeros(1, np.int64)
    pictures = ImageDataset("folder", "all", tmp_path, labels, PathList(["a.png"]), ["a"])
    how = {"name": "reality-check", "size": 16}

    def images(train):
        if prepared:
            return prepare_images(pictures, how, train)
        return replace(pictures, transform=create_transform(**how, train=train))

    def drawn(train):
        torch.manual_seed(0)
        loader = DataLoader(images(train), batch_sampler=[[0] * 4] * 2, num_workers=workers)
        rows, labels = map(torch.cat, zip(*loader, strict=True))
        assert not labels.any()
        return rows

    assert len(drawn(True).flatten(1).unique(dim=0)) > 4
    assert torch.equal(drawn(True), drawn(True))
    assert torch.equal(drawn(False), images(False).take([0] * 8)[0])


def test_an_image_that_cannot_be_read_tells_how_to_go_on(dataset):
    damage(dataset, 2)
    with pytest.raises(UserError, match="folder leaves such images out with the option on_error"):
        dataset.read(2)
