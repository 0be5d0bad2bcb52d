"""PKU VehicleID and its test lists."""

import pytest

from dmlfast.data import create_dataset
from dmlfast.errors import UserError


@pytest.fixture
def root(tmp_path, write_image, write_text, set_counts):
    """Two vehicles to train on; test lists of one and of two others."""
    set_counts("vehicleid", train=(3, 2), **{"800": (2, 1), "1600": (3, 2)})
    for number in range(1, 8):
        write_image(f"VehicleID_V1.0/image/{number:07d}.jpg")
    lists = "VehicleID_V1.0/train_test_split"
    write_text(f"{lists}/train_list.txt", "0000001 20", "0000002 9", "0000003 20")
    write_text(f"{lists}/test_list_800.txt", "0000004 100", "0000005 100")
    write_text(f"{lists}/test_list_1600.txt", "0000004 100", "0000006 30", "0000005 100")
    write_text(f"{lists}/._test_list_2400.txt", "junk")
    return tmp_path


def test_subsets(root, caplog):
    train = create_dataset("vehicleid", "train", str(root), val_fraction=0)
    small = create_dataset("vehicleid", "test", str(root), val_fraction=0)
    large = create_dataset("vehicleid", "test", str(root), val_fraction=0, subset="1600")
    again = create_dataset("vehicleid", "test", str(root), val_fraction=0, subset=1600)
    assert list(again.paths) == list(large.paths)
    assert train.labels.tolist() == [1, 0, 1]
    assert [train.class_names[label] for label in train.labels] == ["20", "9", "20"]
    assert [small.class_names[label] for label in small.labels] == ["100", "100"]
    assert [large.class_names[label] for label in large.labels] == ["100", "30", "100"]
    assert large.paths[1] == "image/0000006.jpg"
    assert not caplog.records


def test_other_counts_are_only_warned_of(root, caplog, set_counts):
    set_counts("vehicleid", train=(4, 2), **{"800": (2, 1)})
    assert len(create_dataset("vehicleid", "train", str(root), val_fraction=0)) == 3
    assert "3 train images of 2 classes, where vehicleid has 4 of 2" in caplog.text
    assert len(caplog.records) == 1


def test_unknown_subset(root):
    message = "unknown subset of vehicleid '80': did you mean '800'.* 1600, 800"
    with pytest.raises(UserError, match=message):
        create_dataset("vehicleid", "test", str(root), subset="80")
