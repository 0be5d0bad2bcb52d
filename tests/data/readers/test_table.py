"""Images listed in a CSV file as open-metric-learning does."""

import pytest
from PIL import Image

from dmlfast.data import create_dataset
from dmlfast.errors import UserError

HEADER = "label,path,split,is_query,is_gallery,category,x_1,x_2,y_1,y_2"
ROWS = [
    "10,a/1.jpg,train,,,cars,,,,",
    "9,a/2.jpg,train,,,birds,1,4,2,6",
    "10,a/3.jpg,train,None,None,cars,1.0,4.0,2.0,6.0",
    "2,b/4.jpg,validation,True,False,cars,,,,",
    "2,b/5.jpg,validation,0,1,cars,,,,",
    "11,b/6.jpg,validation,1.0,True,birds,,,,",
]


@pytest.fixture
def table(tmp_path, write_image, write_text):
    for row in ROWS:
        write_image(row.split(",")[1])
    return write_text("df.csv", HEADER, *ROWS)


def load(table, split, **options):
    return create_dataset("csv", split, str(table), **{"val_fraction": 0, **options})


def change(table, old, new):
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new, 1))


def test_splits_roles_and_categories(table):
    train, test = load(table, "train"), load(table.parent, "test")
    assert train.class_names == test.class_names == ["2", "9", "10", "11"]
    assert train.labels.tolist() == [2, 1, 2]
    assert test.labels.tolist() == [0, 0, 3]
    assert list(test.paths) == ["b/4.jpg", "b/5.jpg", "b/6.jpg"]
    assert test.role.tolist() == [1, 2, 0]
    assert train.role.tolist() == [0, 0, 0]
    assert train.categories.tolist() == [1, 0, 1]
    assert train.category_names == ["birds", "cars"]
    assert train.boxes is None
    assert not test.closed_set


def test_boxes(table):
    train = load(table, "train", crop=True)
    assert train.boxes.tolist() == [[0, 0, 0, 0], [1, 2, 4, 6], [1, 2, 4, 6]]
    assert [train.image(i).size for i in range(3)] == [(8, 6), (3, 4), (3, 4)]


def test_photos_are_turned(table, write_image):
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image("a/1.jpg", exif=exif)
    assert load(table, "train")[0][0].shape == (3, 8, 6)


def test_fewer_columns_and_names_for_labels(table):
    lines = [",".join(row.split(",")[:3]) for row in ROWS[:3]]
    table.write_text("\n".join(["label,path,split", *lines]).replace("10,", "ten,"))
    train = load(table, "train")
    assert (train.class_names, train.labels.tolist()) == (["9", "ten"], [1, 0, 1])
    assert train.role is None
    assert train.categories is None
    with pytest.raises(UserError, match="has no column x_1, y_1, x_2, y_2, which crop needs"):
        load(table, "train", crop=True)


def test_images_that_are_all_both_have_no_roles(table):
    for old, new in (("True,False", "True,True"), ("0,1,cars", "1,1,cars")):
        change(table, old, new)
    assert load(table, "test").role is None


def test_closed_set(table, caplog):
    change(table, "11,b/6.jpg", "9,b/6.jpg")
    assert load(table, "test").closed_set
    assert "csv is closed-set" in caplog.text


def test_a_sequence_is_not_used(table, caplog):
    table.write_text(
        "\n".join(line + (",seq" if line == HEADER else ",7") for line in table.read_text().split())
    )
    load(table, "test")
    assert not caplog.records
    change(table, ",seq", ",sequence")
    load(table, "test")
    assert "the column sequence is not used" in caplog.text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (HEADER, "label,file,split", "has no column path; it has label, file, split"),
        (",train,", ",training,", "line 2: the split 'training' is not one of train, validation"),
        ("0,1,cars", "0,0,cars", "line 6: neither a query nor in the gallery"),
        ("0,1,cars", "no,1,cars", "line 6: is_query is 'no', neither True nor False"),
        ("1,4,2,6", "4,1,2,6", "line 3: the box is empty"),
        ("1,4,2,6", "1,,2,6", "the coordinate '' is not a number"),
        ("a/1.jpg", "/a/1.jpg", "names '/a/1.jpg', which is not inside its folder"),
        ("a/1.jpg", "../a/1.jpg", "names '../a/1.jpg', which is not inside its folder"),
        ("a/1.jpg", "a/2.jpg", "lists a/2.jpg more than once"),
        ("a/1.jpg", "c/1.jpg", "1 of the 6 images"),
    ],
)
def test_wrong_tables(table, old, new, message):
    change(table, old, new)
    with pytest.raises(UserError) as error:
        load(table, "train", crop=True)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_which_table(table):
    table.with_name("other.csv").touch()
    with pytest.raises(UserError, match=r"csv needs one \.csv file, .* df\.csv, other\.csv"):
        load(table.parent, "train")
    table.write_text(HEADER)
    with pytest.raises(UserError, match="lists nothing"):
        load(table, "train")
