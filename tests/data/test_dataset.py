"""Data sets by name, their splits and what they hand out."""

import numpy as np
import pytest
import torch

from dmlfast.data import create_augmentation, create_dataset, parse_options
from dmlfast.data.listing import TEST, TRAIN, VAL
from dmlfast.data.registry import split_rows
from dmlfast.errors import UserError


@pytest.fixture(scope="module")
def digits():
    return create_dataset("digits", "test")


@pytest.mark.parametrize("name", ["digits", "glyphs"])
def test_splits_share_nothing(name):
    splits = [create_dataset(name, split) for split in ("train", "val", "test")]
    classes = [set(split.labels.tolist()) for split in splits]
    paths = [set(split.paths) for split in splits]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not classes[i] & classes[j]
        assert not paths[i] & paths[j]
    train, val, test = classes
    num_classes = len(splits[0].class_names)
    assert train | val == set(range(num_classes // 2))
    assert test == set(range(num_classes // 2, num_classes))
    assert [split.split for split in splits] == ["train", "val", "test"]


def test_digits():
    splits = [create_dataset("digits", split) for split in ("train", "val", "test")]
    assert sum(map(len, splits)) == 1797
    assert [len(set(split.labels.tolist())) for split in splits] == [3, 2, 5]
    train = splits[0]
    assert (train.name, train.channels, train.image_size) == ("digits", 1, (8, 8))
    assert train.class_names == [str(digit) for digit in range(10)]
    assert int(train.images.max()) == 255
    assert int(train.images.min()) == 0


def test_validation_classes_are_drawn_with_the_seed():
    def val(seed):
        labels = np.repeat(np.arange(1000), 2)
        rows = split_rows(labels, np.where(labels < 500, TRAIN, TEST), "val", 0.1, seed)
        classes, sizes = np.unique(labels[rows], return_counts=True)
        assert set(sizes) == {2}
        return classes.tolist()

    assert val(0) == val(0)
    assert val(0) != val(1)
    assert len(val(0)) == 50
    assert max(val(0)) < 500
    spread = np.histogram(val(0), bins=5, range=(0, 500))[0]
    assert spread.min() > 0


def test_no_validation():
    labels, parts = np.arange(10), np.repeat([TRAIN, TEST], 5)
    assert split_rows(labels, parts, "train", 0.0, 0).tolist() == [0, 1, 2, 3, 4]
    assert split_rows(labels, parts, "val", 0.0, 0).tolist() == []
    assert len(create_dataset("digits", "val", val_fraction=0)) == 0


def test_validation_of_a_closed_set_is_a_share_of_every_class():
    labels = np.repeat(np.arange(4), [1, 9, 10, 25])
    parts = np.full(len(labels), TRAIN)
    train, val, other = (
        split_rows(labels, parts, split, 0.2, seed, closed_set=True).tolist()
        for split, seed in (("train", 0), ("val", 0), ("val", 1))
    )
    assert np.bincount(labels[val], minlength=4).tolist() == [0, 1, 2, 5]
    assert sorted(train + val) == list(range(len(labels)))
    assert val != other


def test_validation_that_is_given_is_kept():
    labels, parts = np.arange(6), np.array([TRAIN, VAL, TEST] * 2)
    rows = [split_rows(labels, parts, split, 0.3, 0).tolist() for split in ("train", "val", "test")]
    assert rows == [[0, 3], [1, 4], [2, 5]]


def test_test_images_need_no_validation():
    assert split_rows(np.arange(2), np.array([TRAIN, TEST]), "test", 0.1, 0).tolist() == [1]


def test_classes_of_two_splits():
    labels, parts = np.array([0, 1, 2, 2]), np.array([TRAIN, TRAIN, TRAIN, TEST])
    with pytest.raises(UserError, match="1 class is in more than one split"):
        split_rows(labels, parts, "test", 0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": True}, "digits takes no options, such as 'crop'"),
        (
            {"name": "cub200", "corp": True},
            "unknown option of cub200 'corp': did you mean 'crop'? (known: crop, on_error)",
        ),
        ({"name": "cub200", "crop": "yes"}, "crop must be True or False, not 'yes'"),
        ({"name": "sop", "on_error": "stopp"}, "unknown on_error 'stopp': did you mean 'stop'?"),
        ({"name": "sop", "crop": True}, "unknown option of sop 'crop'"),
        ({"name": "vehicleid", "on_error": "skip"}, "vehicleid is read from files of your own"),
        ({"name": "digit"}, "unknown data set 'digit': did you mean 'digits'?"),
        ({"split": "tset"}, "unknown split 'tset': did you mean 'test'?"),
        ({"val_fraction": 1.0}, "val_fraction must be at least 0 and below 1, not 1.0"),
        ({"val_fraction": -0.1}, "val_fraction must be at least 0 and below 1, not -0.1"),
        ({"val_fraction": float("nan")}, "val_fraction must be at least 0 and below 1, not nan"),
        ({"val_fraction": 0.95}, "a val_fraction of 0.95 leaves no class to train on"),
        ({"seed": -1}, "the seed must be at least 0, not -1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UserError) as error:
        create_dataset(**{"name": "digits", **arguments})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_options_as_text():
    options = {"crop": True, "on_error": "skip", "subset": "1600", "test_classes": "a=b.txt"}
    assert parse_options("crop=True, on-error=skip,subset=1600,test_classes=a=b.txt") == options
    assert parse_options("crop=false") == {"crop": False}
    assert parse_options(None) == parse_options("") == {}


@pytest.mark.parametrize("text", ["crop", "crop=", "=true", "crop=true,"])
def test_what_is_no_options(text):
    with pytest.raises(UserError, match="data set options must be NAME=VALUE,NAME=VALUE, not '"):
        parse_options(text)


def test_settings_are_no_options():
    with pytest.raises(UserError, match="'seed' is not a data set option but a setting"):
        parse_options("seed=3")


def test_unknown_augmentation():
    with pytest.raises(UserError, match="unknown data set 'glyph': did you mean 'glyphs'"):
        create_augmentation("glyph")


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_take(digits, kind):
    images, labels = digits.take(kind([5, 0, 5, 2]))
    assert images.shape == (4, 1, 8, 8)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    for row, index in enumerate([5, 0, 5, 2]):
        image, label = digits[index]
        assert torch.equal(images[row], image)
        assert labels[row].item() == label == digits.labels[index]


def test_take_nothing(digits):
    images, labels = digits.take([])
    assert images.shape == (0, 1, 8, 8)
    assert labels.shape == (0,)


def test_pictures(digits):
    picture = digits.image(3)
    assert (picture.mode, picture.size) == ("L", (8, 8))
    assert np.array_equal(np.asarray(picture), digits.images[3, 0].numpy())
