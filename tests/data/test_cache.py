"""Decoded and resized pictures on the disk."""

import pickle
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch

from dmlfast.data import cache, prepare_images, transform_names
from dmlfast.data.cache import CachedPictures, cache_pictures
from dmlfast.data.transforms import Resize
from dmlfast.errors import UserError

from .pictures import PictureFiles

RESIZE = Resize("short", 40)


@pytest.fixture
def files(tmp_path) -> PictureFiles:
    (tmp_path / "files").mkdir()
    return PictureFiles(tmp_path / "files")


@pytest.mark.parametrize("name", transform_names())
def test_cached_images_are_the_same(files, tmp_path, name):
    transform = {"name": name, "size": 32}
    rows, seeds = np.arange(len(files)), range(len(files))
    for train in (False, True):
        plain, cached = (
            prepare_images(files, transform, train, cache_dir=folder)
            for folder in (None, tmp_path / "cache")
        )
        generators = [[np.random.default_rng(seed) for seed in seeds] for _ in range(2)]
        one, other = plain.take(rows, generators[0]), cached.take(rows, generators[1])
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_each_picture_is_decoded_once(files, tmp_path, workers):
    cache_pictures(files, RESIZE, tmp_path / "cache", workers=workers)
    files.opened.clear()
    cached = cache_pictures(files, RESIZE, tmp_path / "cache")
    assert len(files.opened) == 3  # to see that these are still the same pictures
    for row in range(len(files)):
        expected = RESIZE(PictureFiles.image(files, row))
        assert np.array_equal(np.asarray(cached.image(row)), np.asarray(expected))


def test_other_sizes_and_other_pictures_are_cached_apart(files, tmp_path):
    folder = tmp_path / "cache"
    places = {
        cache_pictures(files, resize, folder).folder for resize in (RESIZE, Resize("pad", 40))
    }
    files.split = "val"
    places.add(cache_pictures(files, RESIZE, folder).folder)
    shutil.copy(files.folder / "5.png", files.folder / "0.png")
    places.add(cache_pictures(files, RESIZE, folder).folder)
    assert len(places) == 4


def test_other_processes_get_the_name_and_not_the_pixels(files, tmp_path):
    cached = cache_pictures(files, RESIZE, tmp_path / "cache")
    before = np.asarray(cached.image(3))
    again = pickle.loads(pickle.dumps(cached))
    assert isinstance(again, CachedPictures)
    assert len(pickle.dumps(cached)) < 10_000
    assert np.array_equal(np.asarray(again.image(3)), before)


def test_a_cache_appears_when_it_is_whole(files, tmp_path):
    (files.folder / "7.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"cannot read 7\.png"):
        cache_pictures(files, RESIZE, tmp_path / "cache", workers=1)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_disk_without_room(files, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**12, 10**12, 10**9)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError) as error:
        cache_pictures(files, RESIZE, tmp_path / "cache")
    assert str(error.value) == (
        f"a cache of 12 images takes 0.0 GB and {tmp_path / 'cache'} has 1.0 GB free: train without"
        " --cache-images, or give another folder"
    )
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_place_that_cannot_be_written(files, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="cannot write"):
        cache_pictures(files, RESIZE, tmp_path / "cache")
