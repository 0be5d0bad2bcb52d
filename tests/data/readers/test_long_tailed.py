"""ImageNet-LT and Places-LT, whose splits share classes."""

import pytest

from dmlfast.data import create_dataset
from dmlfast.errors import UserError

PARTS = {
    "train": ["train/n02/1.JPEG 0", "train/n02/2.JPEG 0", "train/n01/3.JPEG 1"],
    "val": ["train/n01/4.JPEG 1", "train/n02/5.JPEG 0"],
    "test": ["val/n01/6.JPEG 1", "val/n02/7.JPEG 0"],
}


@pytest.fixture
def root(tmp_path, write_image, write_text, set_counts):
    set_counts("imagenet-lt", train=(3, 2), val=(2, 2), test=(2, 2))
    for part, lines in PARTS.items():
        write_text(f"ImageNet_LT/ImageNet_LT_{part}.txt", *lines)
        for line in lines:
            write_image(line.split()[0])
    return tmp_path


def test_closed_set(root, caplog):
    for part, lines in PARTS.items():
        dataset = create_dataset("imagenet-lt", part, str(root))
        assert [
            f"{path} {label}" for path, label in zip(dataset.paths, dataset.labels, strict=True)
        ] == lines
        assert dataset.closed_set
        assert dataset.class_names == ["n02", "n01"]
    assert "imagenet-lt is closed-set: its splits share classes" in caplog.text


def test_places(tmp_path, write_image, write_text, set_counts):
    set_counts("places-lt", train=(1, 1), val=(1, 1), test=(1, 1))
    for part in PARTS:
        path = f"data_256/f/field/wild/{part}.jpg"
        write_image(path)
        write_text(f"Places_LT_{part}.txt", f"{path} 0")
    dataset = create_dataset("places-lt", "val", str(tmp_path))
    assert list(dataset.paths) == ["data_256/f/field/wild/val.jpg"]
    assert dataset.class_names == ["f/field/wild"]


def test_wrong_lists(root, set_counts):
    file = root / "ImageNet_LT/ImageNet_LT_val.txt"
    text = file.read_text()
    file.write_text(text.replace(" 1\n", " 2\n"))
    with pytest.raises(UserError, match="the labels are not those of the training classes, from 0"):
        create_dataset("imagenet-lt", "val", str(root))
    file.write_text(text.replace(" 1\n", "\n"))
    with pytest.raises(UserError, match=r"expected 'path label', found 'train/n01/4\.JPEG'"):
        create_dataset("imagenet-lt", "val", str(root))
    file.write_text(text.replace("4.JPEG", "8.JPEG"))
    with pytest.raises(
        UserError, match=r"1 of the 7 images .* is not under .* such as train/n01/8\.JPEG"
    ):
        create_dataset("imagenet-lt", "val", str(root))
    file.write_text(text.splitlines()[0])
    with pytest.raises(UserError, match="1 val image of 1 class, where imagenet-lt has 2 of 2"):
        create_dataset("imagenet-lt", "val", str(root))
    file.unlink()
    with pytest.raises(UserError, match=r"imagenet-lt needs ImageNet_LT_val\.txt or "):
        create_dataset("imagenet-lt", "val", str(root))
