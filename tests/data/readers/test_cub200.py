"""CUB-200-2011 in its official folder."""

import shutil

import pytest

from dmlfast.data import create_dataset
from dmlfast.errors import UserError

FOLDERS = ["001.Albatross", "002.Ani", "003.Auklet", "004.Zonotrichia"]


@pytest.fixture
def root(tmp_path, write_image, write_text, set_counts):
    """Four classes of two images; the ids are not in the order of the lines of all files."""
    set_counts("cub200", train=(4, 2), test=(4, 2))
    files = [f"{folder}/{letter}.jpg" for folder in FOLDERS for letter in "ab"]
    for number, file in enumerate(files):
        write_image(f"CUB_200_2011/images/{file}", mode="L" if number == 3 else "RGB")
        (tmp_path / f"CUB_200_2011/images/{file}").with_name(f"._{file[-5:]}").write_bytes(b"junk")
    ids = range(1, 9)
    listed = list(zip(ids, files, strict=True))
    write_text("CUB_200_2011/images.txt", *(f"{id} {file}" for id, file in listed))
    labels = [f"{id} {(id + 1) // 2}" for id in ids]
    write_text("CUB_200_2011/image_class_labels.txt", *reversed(labels))
    write_text("CUB_200_2011/train_test_split.txt", *(f"{id} {id % 2}" for id in ids))
    boxes = [f"{id} {id - 1}.0 1.0 {9 - id}.0 4.0" for id in ids]
    write_text("CUB_200_2011/bounding_boxes.txt", *boxes)
    return tmp_path


def test_the_first_half_of_the_classes_trains(root):
    train = create_dataset("cub200", "train", str(root), val_fraction=0)
    test = create_dataset("cub200", "test", str(root / "CUB_200_2011"))
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert test.labels.tolist() == [2, 2, 3, 3]
    assert list(train.paths)[:2] == ["images/001.Albatross/a.jpg", "images/001.Albatross/b.jpg"]
    assert train.class_names == test.class_names == FOLDERS
    assert (train.name, train.split, test.split) == ("cub200", "train", "test")
    assert train.image(3).mode == "RGB"
    assert train.boxes is None
    assert not train.closed_set


def test_boxes(root):
    test = create_dataset("cub200", "test", str(root), val_fraction=0, crop=True)
    assert test.boxes.tolist() == [[4, 1, 8, 5], [5, 1, 8, 5], [6, 1, 8, 5], [7, 1, 8, 5]]
    assert test.image(1).size == (3, 4)


def test_wrong_count(root, set_counts):
    set_counts("cub200", train=(5, 2), test=(4, 2))
    with pytest.raises(UserError) as error:
        create_dataset("cub200", "test", str(root))
    file = root / "CUB_200_2011/image_class_labels.txt"
    message = f"{file}: 4 train images of 2 classes, where cub200 has 5 of 2"
    assert str(error.value) == message


@pytest.mark.parametrize("file", ["images.txt", "image_class_labels.txt", "bounding_boxes.txt"])
def test_missing_file(root, file):
    (root / "CUB_200_2011" / file).unlink()
    with pytest.raises(UserError, match=rf"cub200 needs {file}.* in .*; .* holds ") as error:
        create_dataset("cub200", "test", str(root), crop=True)
    assert "\n" not in str(error.value)


def test_missing_images(root):
    shutil.rmtree(root / "CUB_200_2011/images/004.Zonotrichia")
    with pytest.raises(UserError) as error:
        create_dataset("cub200", "test", str(root))
    assert str(error.value) == (
        f"2 of the 8 images that {root}/CUB_200_2011/images.txt lists are not under "
        f"{root}/CUB_200_2011, such as images/004.Zonotrichia/a.jpg"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("9 ../../x.jpg", "names 'images/../../x.jpg', which is not inside its folder"),
        ("9", "line 1: expected 'image_id path', found '9'"),
    ],
)
def test_bad_lines(root, line, message):
    file = root / "CUB_200_2011/images.txt"
    file.write_text(file.read_text().replace("1 001.Albatross/a.jpg", line))
    labels = root / "CUB_200_2011/image_class_labels.txt"
    labels.write_text(labels.read_text().replace("1 1\n", "9 1\n"))
    with pytest.raises(UserError) as error:
        create_dataset("cub200", "test", str(root))
    assert message in str(error.value)


def test_labels_of_other_images(root):
    labels = root / "CUB_200_2011/image_class_labels.txt"
    labels.write_text(labels.read_text().replace("1 1\n", "9 1\n"))
    with pytest.raises(UserError, match=r"describes 8 images, which are not the 8 images of"):
        create_dataset("cub200", "test", str(root))


def test_folder_that_is_not_there(root):
    with pytest.raises(
        UserError,
        match=r"there is no .*CUB_200_2010, the data-dir of cub200: did you mean .*_2011\?",
    ):
        create_dataset("cub200", "test", str(root / "CUB_200_2010"))
    with pytest.raises(UserError, match="give their folder as --data-dir"):
        create_dataset("cub200", "test")
