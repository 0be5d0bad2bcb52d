"""Images that are made when they are asked for, here or in other processes."""

import numpy as np
import pytest
import torch
from PIL import Image

from dmlfast.data import create_dataset, create_transform, prepare_images
from dmlfast.data.loading import RowBatches, TransformedImages, load_rows
from dmlfast.errors import UserError

from .pictures import PictureFiles

TRANSFORM = {"name": "reality-check", "size": 32}


@pytest.fixture
def files(tmp_path) -> PictureFiles:
    return PictureFiles(tmp_path)


def test_images_are_those_of_the_transform(files):
    images = prepare_images(files, TRANSFORM)
    batch, labels = images.take([5, 0, 5])
    assert batch.shape == (3, 3, 32, 32)
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous()
    assert labels.tolist() == [1, 0, 1]
    expected = create_transform(**TRANSFORM)(files.image(5))
    assert np.array_equal(batch[0].permute(1, 2, 0).numpy(), expected)


def test_each_image_has_a_generator_of_its_own(files):
    images = prepare_images(files, TRANSFORM, train=True)

    def batch(rows, seeds):
        return images.take(rows, [np.random.default_rng(seed) for seed in seeds])[0]

    assert torch.equal(batch([3, 7], [1, 2])[1], batch([7], [2])[0])
    assert not torch.equal(batch([7], [1]), batch([7], [2]))


def test_no_rows_are_a_batch_too(files):
    batch, labels = prepare_images(files, TRANSFORM).take([])
    assert (batch.shape, labels.shape) == ((0, 3, 32, 32), (0,))


def test_a_stand_in_has_its_own_label(tmp_path):
    for name, value in (("a", 10), ("b", 200), ("c", 0), ("d", 0)):
        (tmp_path / name).mkdir()
        for k in range(2):
            Image.new("RGB", (40, 40), (value,) * 3).save(tmp_path / name / f"{k}.png")
    dataset = create_dataset("folder", "train", data_dir=tmp_path, val_fraction=0, on_error="skip")
    (tmp_path / "a" / "0.png").write_bytes(b"no picture")
    images = prepare_images(dataset, TRANSFORM)
    batch, labels = images.take([0, 3])
    assert batch.flatten(1).float().mean(1).tolist() == [(10, 200)[label] for label in labels]
    assert list(dataset.unreadable) == [0]


def test_processes_change_nothing(files):
    images = prepare_images(files, TRANSFORM)
    batches = [list(load_rows(images, 5, workers=workers)) for workers in (0, 2)]
    assert [len(labels) for _, labels in batches[0]] == [5, 5, 2]
    for (one, one_labels), (other, other_labels) in zip(*batches, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one_labels, other_labels)


def test_the_same_processes_go_through_it_again(files):
    loader = load_rows(prepare_images(files, TRANSFORM), 5, workers=1)
    first = [labels.tolist() for _, labels in loader]
    processes = loader.loader._iterator._workers
    assert [labels.tolist() for _, labels in loader] == first
    assert loader.loader._iterator._workers is processes


def test_data_sets_in_memory_need_no_processes():
    digits = create_dataset("digits", "val")
    loader = load_rows(digits, 100, workers=2)
    assert loader.workers == 0
    images = torch.cat([images for images, _ in loader])
    assert torch.equal(images, digits.images)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_cannot_be_read_is_told_in_one_line(files, workers):
    (files.folder / "7.png").write_bytes(b"nothing")
    with pytest.raises(UserError) as error:
        list(load_rows(prepare_images(files, TRANSFORM), 5, workers=workers))
    assert str(error.value) == "cannot read 7.png"


def test_pictures_of_many_sizes_need_a_transform(files):
    with pytest.raises(
        UserError, match="the images of files have different sizes: give a --transform"
    ):
        prepare_images(files, None)


def test_no_images():
    digits = create_dataset("digits", "val", val_fraction=0)
    images = prepare_images(digits, TRANSFORM, cache_dir="nowhere")
    assert isinstance(images, TransformedImages)
    assert len(images) == len(RowBatches(images, 5)) == 0
    assert list(load_rows(images, 5)) == []
