"""The three packs of Stanford Cars, which must mean the same."""

import numpy as np
import pytest
from scipy.io import savemat

from dmlfast.data import create_dataset
from dmlfast.errors import UserError

NAMES = [
    "Volvo C30 2012",
    "Acura TL 2012",
    "Ram C/V Van 2012",
    "BMW M3 2012",
]  # not by the alphabet
COLORS = ["red", "lime", "blue", "white"]
PACKS = ["old", "devkit", "by class"]


def structs(file, variable, rows, **names):
    """Writes rows of (file, class, box) as MATLAB's array of structs."""
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", *names]
    table = np.empty(len(rows), dtype=[(field, object) for field in fields])
    for i, (path, class_id, box) in enumerate(rows):
        table[i] = (*box, class_id, path)
    savemat(file, {variable: table, "class_names": np.array(NAMES, dtype=object)})


@pytest.fixture
def images(write_image, set_counts):
    """Images of four classes in two closed-set halves: half, class, box."""
    set_counts("cars196", train=(5, 2), test=(4, 2))
    found = [(half, class_id, (class_id, 1, 7, 5)) for half in (0, 1) for class_id in (3, 1, 4, 2)]
    return [*found, (0, 2, (2, 1, 7, 5))]


def write_old(root, images, write_image):
    rows = []
    for number, (_, class_id, box) in enumerate(images, start=1):
        path = f"car_ims/{number:06d}.jpg"
        write_image(path, COLORS[class_id - 1])
        rows.append((path, class_id, box))
    structs(root / "cars_annos.mat", "annotations", rows, relative_im_path=str)


def write_devkit(root, images, write_image):
    (root / "devkit").mkdir()
    savemat(root / "devkit/cars_meta.mat", {"class_names": np.array(NAMES, dtype=object)})
    for half, part, place in (
        (0, "train", "devkit/cars_train_annos.mat"),
        (1, "test", "cars_test_annos_withlabels.mat"),
    ):
        rows = []
        for _, class_id, box in (image for image in images if image[0] == half):
            rows.append((f"{len(rows) + 1:05d}.jpg", class_id, box))
            write_image(f"cars_{part}/{rows[-1][0]}", COLORS[class_id - 1])
        structs(root / place, "annotations", rows, fname=str)


def write_by_class(root, images, write_image):
    (root / "names.csv").write_text("\n".join(NAMES) + "\n")
    for half, part in enumerate(("train", "test")):
        lines = []
        for _, class_id, box in (image for image in images if image[0] == half):
            file = f"{len(lines) + 1:05d}.jpg"
            lines.append(f"{file},{','.join(map(str, box))},{class_id}")
            folder = NAMES[class_id - 1].replace("/", "-")
            write_image(f"car_data/car_data/{part}/{folder}/{file}", COLORS[class_id - 1])
        (root / f"anno_{part}.csv").write_text("\n".join(lines) + "\n")


WRITERS = dict(zip(PACKS, (write_old, write_devkit, write_by_class), strict=True))


@pytest.mark.parametrize("pack", PACKS)
def test_packs_agree(tmp_path, images, write_image, pack):
    WRITERS[pack](tmp_path, images, write_image)
    train = create_dataset("cars196", "train", str(tmp_path), val_fraction=0)
    test = create_dataset("cars196", "test", str(tmp_path), crop=True)
    assert sorted(train.labels.tolist()) == [0, 0, 1, 1, 1]
    assert sorted(test.labels.tolist()) == [2, 2, 3, 3]
    assert train.class_names == test.class_names == NAMES
    shown = {"red": (254, 0, 0), "lime": (0, 255, 1), "blue": (0, 0, 254), "white": (255,) * 3}
    for part in (train, test):
        for i in range(len(part)):
            pixel = np.array(part.image(i).getpixel((1, 1)))
            assert np.abs(pixel - shown[COLORS[part.labels[i]]]).max() < 9
    assert train.boxes is None
    assert test.image(0).size == (7 - test.labels[0] - 1, 4)


@pytest.mark.parametrize("pack", PACKS)
def test_wrong_count(tmp_path, images, write_image, set_counts, pack):
    set_counts("cars196", train=(5, 2), test=(5, 2))
    WRITERS[pack](tmp_path, images, write_image)
    message = "4 test images of 2 classes, where cars196 has 5 of 2"
    with pytest.raises(UserError, match=message):
        create_dataset("cars196", "train", str(tmp_path))


def test_no_pack(tmp_path, images):
    with pytest.raises(UserError) as error:
        create_dataset("cars196", "train", str(tmp_path))
    assert str(error.value) == (
        f"cars196 needs cars_annos.mat or devkit or anno_train.csv in {tmp_path} or "
        f"{tmp_path}/stanford_cars; {tmp_path} holds nothing"
    )


def test_test_annotations_without_classes(tmp_path, images, write_image):
    write_devkit(tmp_path, images, write_image)
    labelled = tmp_path / "cars_test_annos_withlabels.mat"
    labelled.rename(tmp_path / "devkit/cars_test_annos.mat")
    with pytest.raises(UserError, match=r"cars196 needs cars_test_annos_withlabels\.mat or"):
        create_dataset("cars196", "train", str(tmp_path))


def test_damaged_annotations(tmp_path, images, write_image):
    write_old(tmp_path, images, write_image)
    (tmp_path / "cars_annos.mat").write_bytes(b"no MATLAB file")
    with pytest.raises(UserError, match=r"cannot read .*cars_annos\.mat"):
        create_dataset("cars196", "train", str(tmp_path))
    savemat(tmp_path / "cars_annos.mat", {"x": 1})
    with pytest.raises(UserError, match=r"cars_annos\.mat has no annotations"):
        create_dataset("cars196", "train", str(tmp_path))


@pytest.mark.parametrize(
    "line", ["00001.jpg,1,2,3,4", "00001.jpg,1,2,3,4,5", "00001.jpg,1,2,3,4,x"]
)
def test_bad_lines(tmp_path, images, write_image, line):
    write_by_class(tmp_path, images, write_image)
    (tmp_path / "anno_test.csv").write_text(line)
    with pytest.raises(UserError, match=rf"anno_test\.csv: expected .* found '{line}'"):
        create_dataset("cars196", "train", str(tmp_path))
