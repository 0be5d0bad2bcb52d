"""Many paths in little memory, none of which leaves its folder."""

import pickle
import sys

import pytest

from dmlfast.data.paths import PathList, check_inside, check_relative
from dmlfast.errors import UserError

NAMES = ["a/1.jpg", "", "ä/ö.jpg", "日本/三.png", "b/2.jpg"]


def test_is_a_list_of_strings():
    paths = PathList(NAMES)
    assert list(paths) == NAMES
    assert len(paths) == 5
    assert [paths[i] for i in range(-5, 5)] == NAMES * 2
    assert paths[1:4] == NAMES[1:4]
    assert "ä/ö.jpg" in paths
    assert list(pickle.loads(pickle.dumps(paths))) == NAMES
    assert list(PathList([])) == []
    with pytest.raises(IndexError):
        paths[5]


def test_takes_the_bytes_of_the_names_and_eight_more():
    names = [f"class/{number:06d}.jpg" for number in range(10_000)]
    paths = PathList(name for name in names)
    size = sys.getsizeof(paths._text) + paths._ends.nbytes
    assert size <= 10_000 * (len(names[0]) + 8) + 100


def test_names_that_are_not_utf8():
    with pytest.raises(UserError, match=r"the file name 'a\\udcff\.jpg' is not UTF-8"):
        PathList(["a\udcff.jpg"])


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.jpg", "a/../../x.jpg", "a\\..\\x", "\\x"])
def test_paths_that_leave(path):
    with pytest.raises(UserError) as error:
        check_relative(path, "list.txt")
    assert str(error.value) == f"list.txt names '{path}', which is not below its folder"


@pytest.mark.parametrize("path", ["a/b.jpg", "a..b/..c.jpg", "..a"])
def test_paths_that_stay(path):
    assert check_relative(path, "list.txt") == path


def test_links(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "root-of-others"
    for folder in (root / "a", outside):
        folder.mkdir(parents=True)
        (folder / "x.jpg").touch()
    (root / "in").symlink_to(root / "a")
    (root / "out").symlink_to(outside)
    (root / "file.jpg").symlink_to(outside / "x.jpg")
    (tmp_path / "link").symlink_to(root)
    assert check_inside(root, "in/x.jpg") == root / "in" / "x.jpg"
    assert check_inside(tmp_path / "link", "a/x.jpg") == tmp_path / "link" / "a" / "x.jpg"
    for path in ("out/x.jpg", "file.jpg", "../root-of-others/x.jpg"):
        with pytest.raises(UserError, match="leads out of"):
            check_inside(root, path)
