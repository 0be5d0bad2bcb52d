"""A folder per class: one's own images, ImageNet's, ImageNet's class lists."""

import time
import tracemalloc

import pytest
from PIL import Image

from dmlfast.data import create_dataset
from dmlfast.errors import UserError


def load(root, split, **options):
    return create_dataset("folder", split, str(root), **{"val_fraction": 0, **options})


@pytest.fixture
def root(tmp_path, write_image):
    """Four classes of two images, and what else is found beside these."""
    for name in ("zebra", "Ape", "bear", "cat"):
        for file in ("2.jpg", "1.PNG"):
            write_image(f"images/{name}/{file}")
    for junk in ("bear/._2.jpg", "bear/notes.txt", ".git/x.jpg", "__MACOSX/bear/x.jpg", "x.jpg"):
        (tmp_path / "images" / junk).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / junk).write_bytes(b"junk")
    (tmp_path / "images/cat/.DS_Store").touch()
    (tmp_path / "images/aardvark").mkdir()
    return tmp_path / "images"


def test_the_first_half_in_the_order_of_the_names_trains(root):
    train, test = load(root, "train"), load(root, "test")
    assert list(train.paths) == ["Ape/1.PNG", "Ape/2.jpg", "bear/1.PNG", "bear/2.jpg"]
    assert list(test.paths) == ["cat/1.PNG", "cat/2.jpg", "zebra/1.PNG", "zebra/2.jpg"]
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert test.labels.tolist() == [2, 2, 3, 3]
    assert train.class_names == ["Ape", "bear", "cat", "zebra"]
    assert train[3][0].shape == (3, 6, 8)


def test_what_to_do_about_damaged_images(root):
    for file in ("Ape/1.PNG", "Ape/2.jpg"):
        (root / file).write_bytes(b"junk")
    with pytest.raises(UserError, match=r"Ape/1\.PNG is not an image"):
        load(root, "train")[0]
    assert load(root, "train", on_error="skip")[0][1] == 1


def test_photos_are_turned(root, write_image):
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image("images/Ape/1.PNG", exif=exif)
    assert load(root, "train")[0][0].shape == (3, 8, 6)


def test_splits_of_ones_own(tmp_path, write_image, caplog):
    for path in ("train/b/1.jpg", "train/a/1.jpg", "val/c/1.jpg", "test/d/1.jpg", "test/b2/1.jpg"):
        write_image(path)
    splits = [load(tmp_path, split) for split in ("train", "val", "test")]
    assert [list(split.paths) for split in splits] == [
        ["train/a/1.jpg", "train/b/1.jpg"],
        ["val/c/1.jpg"],
        ["test/b2/1.jpg", "test/d/1.jpg"],
    ]
    assert [split.labels.tolist() for split in splits] == [[0, 1], [3], [2, 4]]
    assert splits[0].class_names == ["a", "b", "b2", "c", "d"]
    (tmp_path / "test/a").mkdir()  # has no images
    assert not load(tmp_path, "test").closed_set
    assert not caplog.records


def test_closed_set(tmp_path, write_image, caplog):
    for number in range(10):
        for name in "ab":
            write_image(f"train/{name}/{number}.jpg")
    write_image("test/b/1.jpg")
    test = load(tmp_path, "test")
    assert (test.labels.tolist(), test.closed_set) == ([1], True)
    assert "folder is closed-set: its splits share classes" in caplog.text
    val = load(tmp_path, "val", val_fraction=0.2)
    assert val.labels.tolist() == [0, 0, 1, 1]
    assert not set(val.paths) & set(load(tmp_path, "train", val_fraction=0.2).paths)


def test_validation_is_drawn_from_the_classes_that_train(tmp_path, write_image):
    for number in range(6):
        write_image(f"train/{number}/1.jpg")
    write_image("test/9/1.jpg")
    train = load(tmp_path, "train", val_fraction=0.5, seed=3)
    val = load(tmp_path, "val", val_fraction=0.5, seed=3)
    assert sorted([*train.labels, *val.labels]) == list(range(6))
    assert len(val) == 3


def test_class_lists(root, write_text):
    write_text("train.txt", "zebra", "Ape", "")
    write_text("images/test.txt", "bear")
    lists = {"train_classes": str(root.parent / "train.txt"), "test_classes": "test.txt"}
    train, test = load(root, "train", **lists), load(root, "test", **lists)
    assert list(train.paths) == ["Ape/1.PNG", "Ape/2.jpg", "zebra/1.PNG", "zebra/2.jpg"]
    assert train.class_names == ["Ape", "zebra", "bear"]
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert test.labels.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("Ape bear", "bear", "both list 1 class, such as bear"),
        ("Ape", "beer", "unknown class folder in .* 'beer': did you mean 'bear'"),
        ("../images/Ape", "bear", "names '../images/Ape', which is not inside its folder"),
    ],
)
def test_wrong_class_lists(root, write_text, train, test, message):
    lists = {}
    for part, names in (("train", train), ("test", test)):
        lists[f"{part}_classes"] = str(write_text(f"{part}.txt", *names.split()))
    with pytest.raises(UserError, match=message):
        load(root, "train", **lists)


def test_one_class_list(root):
    with pytest.raises(UserError, match="train_classes and test_classes must be given together"):
        load(root, "train", train_classes="train.txt")


def test_nothing_to_read(tmp_path, write_image):
    with pytest.raises(UserError, match=r"folder needs a folder of images per class in .* nothing"):
        load(tmp_path, "train")
    write_image("train/a/1.jpg")
    with pytest.raises(UserError, match=r"folder in .* has no test images"):
        load(tmp_path, "test")


def test_links_that_lead_out_of_the_folder(root, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"dog leads outside"):
        load(root, "train")


@pytest.mark.long
def test_100000_images_are_listed_in_seconds_and_megabytes(tmp_path):
    for number in range(1000):
        folder = tmp_path / f"class-{number:04d}"
        folder.mkdir()
        for image in range(100):
            (folder / f"{image:06d}.jpg").touch()
    start = time.perf_counter()
    train = load(tmp_path, "train")
    assert time.perf_counter() - start < 5
    assert len(train) == 50_000

    tracemalloc.start()
    train = load(tmp_path, "train")
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 50_000 * (21 + 8 + 8) + 1_000_000  # path, where it ends, label; names of classes
