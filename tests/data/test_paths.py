"""Many paths in little memory, none of which leaves its folder."""

import os
import pickle
import subprocess
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


def test_names_that_the_locale_cannot_read(tmp_path):
    (tmp_path / "ä.jpg").touch()
    code = "import os; from dmlfast.data.paths import PathList; PathList(os.listdir())"
    narrow = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | narrow,
        capture_output=True,
        text=True,
    )
    assert done.stderr.splitlines()[-1] == (
        r"dmlfast.errors.UserError: the file name '\udcc3\udca4.jpg' cannot be read in the locale's"
        " encoding, ascii: try LC_ALL=C.UTF-8"
    )


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.jpg", "a/../../x.jpg", "a\\..\\x", "\\x"])
def test_paths_that_leave(path):
    with pytest.raises(UserError) as error:
        check_relative(path, "list.txt")
    assert str(error.value) == f"list.txt names '{path}', which is not inside its folder"


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
        with pytest.raises(UserError, match="leads outside"):
            check_inside(root, path)
