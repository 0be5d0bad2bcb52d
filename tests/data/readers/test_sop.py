"""Stanford Online Products in its official folder."""

import pytest

from dmlfast.data import create_dataset
from dmlfast.errors import UserError

HEADER = "image_id class_id super_class_id path"


@pytest.fixture
def root(tmp_path, write_image, write_text, set_counts):
    """Classes 9, 10, 11 and 12, so that the order of the numbers is not the alphabet's."""
    set_counts("sop", train=(4, 2), test=(4, 2))
    lines = []
    for number in range(8):
        kind, super_class = (("bicycle", 1), ("coffee_maker", 2))[number % 2]
        path = f"{kind}_final/{number}_0.JPG"
        write_image(f"Stanford_Online_Products/{path}")
        lines.append(f"{number + 1} {9 + number // 2} {super_class} {path}")
    write_text("Stanford_Online_Products/Ebay_train.txt", HEADER, *lines[:4])
    write_text("Stanford_Online_Products/Ebay_test.txt", HEADER, *lines[4:])
    return tmp_path


def test_the_lists_are_the_splits(root):
    train = create_dataset("sop", "train", str(root), val_fraction=0)
    test = create_dataset("sop", "test", str(root))
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert test.labels.tolist() == [2, 2, 3, 3]
    assert train.class_names == ["9", "10", "11", "12"]
    assert test.paths[0] == "bicycle_final/4_0.JPG"
    assert train.categories.tolist() == [0, 1, 0, 1]
    assert train.category_names == ["bicycle", "coffee_maker"]


def test_a_class_in_both_lists(root):
    file = root / "Stanford_Online_Products/Ebay_test.txt"
    file.write_text(file.read_text().replace(" 12 ", " 9 "))
    with pytest.raises(UserError, match="1 class is in more than one split"):
        create_dataset("sop", "test", str(root), val_fraction=0)


def test_an_image_in_both_lists(root):
    file = root / "Stanford_Online_Products/Ebay_test.txt"
    file.write_text(file.read_text().replace("bicycle_final/4", "bicycle_final/0"))
    with pytest.raises(UserError, match=r"lists bicycle_final/0_0\.JPG more than once"):
        create_dataset("sop", "test", str(root))


def test_wrong_count_and_missing_list(root, set_counts):
    set_counts("sop", train=(4, 2), test=(4, 3))
    message = r"Ebay_test\.txt: 4 test images of 2 classes, where sop has 4 of 3"
    with pytest.raises(UserError, match=message):
        create_dataset("sop", "train", str(root))
    (root / "Stanford_Online_Products/Ebay_test.txt").unlink()
    with pytest.raises(UserError, match=r"sop needs Ebay_test\.txt in .*; .* holds Ebay_train"):
        create_dataset("sop", "train", str(root))
