"""The long-tailed cut of the glyphs."""

import numpy as np
import pytest

from dmlfast.data import create_augmentation, create_dataset
from dmlfast.data.glyphs import load_glyphs
from dmlfast.data.long_tail import class_sizes
from dmlfast.errors import UserError


def parts(**options):
    return [create_dataset("glyphs-lt", split, **options) for split in ("train", "val", "test")]


def test_class_sizes_fall_exponentially():
    sizes = class_sizes(593, 10, 10.0)
    assert (sizes[0], sizes[-1]) == (10, 1)
    assert (np.diff(sizes) <= 0).all()
    # a size k is had from k - 1/2 to k + 1/2, of 592 steps from 10 to 1
    shares = np.log10(np.arange(2.5, 11) / np.arange(1.5, 10))
    counts = np.bincount(sizes)
    assert np.abs(counts[2:10] - 592 * shares[:8]).max() <= 1
    assert class_sizes(5, 16, 16.0).tolist() == [16, 8, 4, 2, 1]
    assert class_sizes(3, 10, 1.0).tolist() == [10, 10, 10]


def test_every_part_has_all_classes():
    train, val, test = parts()
    classes = len(train.class_names)
    drawings = np.bincount(load_glyphs().labels)
    assert classes == (drawings >= 16).sum() > 500
    for part, number in ((val, 2), (test, 4)):
        assert np.bincount(part.labels).tolist() == [number] * classes
    sizes = np.bincount(train.labels)
    assert sorted(sizes, reverse=True) == class_sizes(classes, 10, 10.0).tolist()
    assert abs(np.corrcoef(np.arange(classes), sizes)[0, 1]) < 0.15  # no order in the tail
    paths = [path for part in (train, val, test) for path in part.paths]
    assert len(set(paths)) == len(paths)
    assert [part.split for part in (train, val, test)] == ["train", "val", "test"]
    assert all(part.closed_set and part.name == "glyphs-lt" for part in (train, val, test))


def test_images_and_classes_are_those_of_the_glyphs():
    glyphs = load_glyphs()
    rows = {path: row for row, path in enumerate(glyphs.paths)}
    for part in parts():
        for index in range(0, len(part), 97):
            row = rows[part.paths[index]]
            assert (part.images[index] == glyphs.images[row]).all()
            name = glyphs.class_names[glyphs.labels[row]]
            assert part.class_names[part.labels[index]] == name


def test_it_is_the_same_for_every_seed_and_the_tail_alone_changes_with_the_imbalance():
    train, val, test = parts()
    again, _, _ = parts(seed=5, val_fraction=0.5)
    assert train.paths == again.paths
    even, val_of_even, test_of_even = parts(imbalance="1")
    assert set(np.bincount(even.labels)) == {10}
    assert set(train.paths) < set(even.paths)
    assert (val.paths, test.paths) == (val_of_even.paths, test_of_even.paths)


@pytest.mark.parametrize("imbalance", ["0.5", "11", "x", "nan", True])
def test_an_imbalance_that_cannot_be(imbalance):
    with pytest.raises(
        UserError, match=f"imbalance must be a number from 1 to 10, not {imbalance}"
    ):
        create_dataset("glyphs-lt", imbalance=imbalance)


def test_options_and_augmentation():
    with pytest.raises(UserError, match="unknown option of glyphs-lt 'imbalanced'"):
        create_dataset("glyphs-lt", imbalanced="3")
    assert create_augmentation("glyphs-lt") is create_augmentation("glyphs")


def test_it_is_said_that_classes_are_shared(caplog):
    create_dataset("glyphs-lt")
    assert "glyphs-lt is closed-set: its splits share classes" in caplog.text
