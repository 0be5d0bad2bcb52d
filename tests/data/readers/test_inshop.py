"""DeepFashion In-Shop, in the layouts that its images come in."""

import pytest

from dmlfast.data import create_dataset
from dmlfast.errors import UserError

ROWS = [
    ("id_00000004", "query"),
    ("id_00000001", "train"),
    ("id_00000004", "gallery"),
    ("id_00000003", "train"),
    ("id_00000002", "gallery"),
    ("id_00000001", "train"),
    ("id_00000002", "gallery"),
    ("id_00000002", "query"),
]
HEADER = "image_name item_id evaluation_status"


def name(number):
    return f"img/WOMEN/Dresses/{ROWS[number][0]}/0{number}_1_front.jpg"


def padded(rows):
    return [f"{name(i):<60}  {item}    {status:<10}" for i, (item, status) in enumerate(rows)]


@pytest.fixture
def root(tmp_path, write_image, write_text, set_counts):
    """Items 1 and 3 train, 2 and 4 test; the rows are mixed and padded with spaces."""
    set_counts("inshop", train=(3, 2), query=(2, 2), gallery=(3, 2))
    for number in range(len(ROWS)):
        write_image(name(number))
    write_text("Eval/list_eval_partition.txt", str(len(ROWS)), HEADER, *padded(ROWS))
    boxes = [f"{name(i):<60} 3 1  00{i}  001 8 005" for i in reversed(range(len(ROWS)))]
    header = "image_name clothes_type pose_type x_1 y_1 x_2 y_2"
    write_text("Anno/list_bbox_inshop.txt", str(len(ROWS)), header, *boxes)
    return tmp_path


def test_splits_and_roles(root):
    train = create_dataset("inshop", "train", str(root), val_fraction=0)
    test = create_dataset("inshop", "test", str(root))
    assert list(train.paths) == [name(1), name(3), name(5)]
    assert train.labels.tolist() == [0, 1, 0]
    assert train.role.tolist() == [0, 0, 0]
    assert list(test.paths) == [name(i) for i in (0, 2, 4, 6, 7)]
    assert test.labels.tolist() == [3, 3, 2, 2, 2]
    assert test.role.tolist() == [1, 2, 2, 2, 1]
    assert train.class_names == [f"id_0000000{i}" for i in (1, 3, 2, 4)]
    assert test[0][0].shape == (3, 6, 8)


@pytest.mark.parametrize("folder", ["Img/img", "img_highres", "Img/img_highres"])
def test_where_the_images_are(root, folder):
    (root / folder).parent.mkdir(exist_ok=True)
    (root / "img").rename(root / folder)
    (root / "Eval/list_eval_partition.txt").rename(root / "list_eval_partition.txt")
    test = create_dataset("inshop", "test", str(root))
    assert test.paths[0] == name(0).replace("img", folder, 1)
    assert test[0][0].shape == (3, 6, 8)


def test_boxes(root):
    test = create_dataset("inshop", "test", str(root), crop=True)
    assert test.boxes.tolist() == [[i, 1, 8, 5] for i in (0, 2, 4, 6, 7)]
    assert test.image(1).size == (6, 4)
    boxes = root / "Anno/list_bbox_inshop.txt"
    boxes.write_text("\n".join(boxes.read_text().splitlines()[:-1]))
    message = f"list_bbox_inshop.txt has no box for 1 image, such as {name(0)}"
    with pytest.raises(UserError, match=message):
        create_dataset("inshop", "test", str(root), crop=True)


def test_queries_without_a_gallery(root, set_counts):
    set_counts("inshop", train=(3, 2), query=(4, 2), gallery=(1, 1))
    rows = [(item, "query" if item == "id_00000002" else status) for item, status in ROWS]
    file = root / "Eval/list_eval_partition.txt"
    file.write_text("\n".join([str(len(rows)), HEADER, *padded(rows)]))
    with pytest.raises(UserError) as error:
        create_dataset("inshop", "test", str(root))
    assert str(error.value) == (f"{file}: no gallery image of 1 item that is queried: id_00000002")


def test_wrong_counts(root, set_counts):
    set_counts("inshop", train=(3, 2), query=(2, 2), gallery=(4, 2))
    with pytest.raises(UserError, match="3 gallery images of 2 classes, where inshop has 4 of 2"):
        create_dataset("inshop", "test", str(root))


def test_unknown_status(root):
    file = root / "Eval/list_eval_partition.txt"
    file.write_text(file.read_text().replace(" gallery ", " galery "))
    with pytest.raises(UserError, match="'galery' is not one of train, query, gallery"):
        create_dataset("inshop", "test", str(root))


def test_no_images(root):
    (root / "img").rename(root / "images")
    with pytest.raises(UserError, match=r"inshop needs img or Img/img or .*; .* holds Anno, Eval"):
        create_dataset("inshop", "test", str(root))


def test_an_item_of_both_sides(root, set_counts):
    file = root / "Eval/list_eval_partition.txt"
    file.write_text(file.read_text().replace("  id_00000003 ", "  id_00000004 "))
    with pytest.raises(UserError, match="1 class is in more than one split"):
        create_dataset("inshop", "test", str(root), val_fraction=0)
