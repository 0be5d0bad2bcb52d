import errno
import os
import re
import subprocess
import sys
import time

import pytest

from dmlfast.errors import UserError
from dmlfast.files import (
    ABANDONED_SECONDS,
    atomic_folder,
    atomic_write_path,
    check_writable,
    remove_folder,
    swap_link,
)


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write_path(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".txt"
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("raised", "seen", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), UserError, "a.txt: No space left"),
        (OSError("no errno here\nsecond line"), UserError, "a.txt: no errno here$"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (UserError("another line"), UserError, "^another line$"),
    ],
)
def test_a_failure_leaves_the_file_as_it_was(tmp_path, raised, seen, message):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write():
        with atomic_write_path(path) as temporary:
            temporary.write_text("half")
            raise raised

    with pytest.raises(seen, match=message):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def age(path) -> None:
    long_ago = time.time() - ABANDONED_SECONDS - 60
    os.utime(path, (long_ago, long_ago))


def test_what_a_killed_process_left_long_ago_is_removed(tmp_path):
    dead, alive = (f"{process}-0123abcd" for process in (ended_process(), os.getppid()))
    names = [f".tmp-{dead}-a.h5", f".tmp-{dead}-b-a.h5", f".tmp-{alive}-a.h5", ".tmp-old-a.h5"]
    for name in names:
        (tmp_path / name).touch()
        age(tmp_path / name)
    with atomic_write_path(tmp_path / "a.h5") as temporary:
        temporary.touch()
    assert set(os.listdir(tmp_path)) == {"a.h5", *names[1:]}
    (tmp_path / names[0]).touch()  # on a shared file system, someone else's
    with atomic_write_path(tmp_path / "a.h5") as temporary:
        temporary.touch()
    assert set(os.listdir(tmp_path)) == {"a.h5", *names}


def test_so_is_a_folder_that_nothing_is_written_to(tmp_path):
    dead = ended_process()
    filled, still_filled = (tmp_path / f".tmp-{dead}-{k:08x}-cache" for k in (1, 2))
    for folder in (filled, still_filled):
        folder.mkdir()
        (folder / "pixels.bin").touch()
        age(folder)
    age(filled / "pixels.bin")
    with atomic_folder(tmp_path / "cache"):
        pass
    assert set(os.listdir(tmp_path)) == {"cache", still_filled.name}


def test_two_writers_of_a_process_do_not_meet(tmp_path):
    with atomic_folder(tmp_path / "f") as first:
        (first / "a").write_text("first")
        second = atomic_folder(tmp_path / "f")
        (second.__enter__() / "b").write_text("second")
        assert not second.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert os.listdir(tmp_path / "f") == ["a"]


def test_a_name_that_is_too_long_is_told(tmp_path):
    path = tmp_path / ("x" * 300)
    with (
        pytest.raises(UserError, match=r"File name too long$"),
        atomic_write_path(path) as temporary,
    ):
        temporary.touch()


def test_places_where_no_file_can_be(tmp_path):
    with pytest.raises(UserError, match="it is not a regular file"), atomic_write_path(tmp_path):
        pass
    with pytest.raises(UserError, match="not a regular file"), atomic_write_path("/dev/null"):
        pass
    missing = tmp_path / "none" / "a.txt"
    with pytest.raises(UserError, match="No such file"), atomic_write_path(missing) as temporary:
        temporary.write_text("x")
    for path in (tmp_path, "/dev/null", missing):
        with pytest.raises(UserError, match=f"cannot write {path}: "):
            check_writable(path)


def test_a_check_leaves_things_as_they_are(tmp_path):
    (tmp_path / "old.txt").write_text("old")
    for name in ("old.txt", "new.txt"):
        check_writable(tmp_path / name)
    assert os.listdir(tmp_path) == ["old.txt"]
    assert (tmp_path / "old.txt").read_text() == "old"


@pytest.mark.parametrize("path", ["", ".", "..", "/"])
def test_a_path_that_ends_in_no_name(tmp_path, monkeypatch, path):
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    with pytest.raises(UserError, match="the path must end in a name"), atomic_folder(path):
        pass
    with pytest.raises(UserError, match="the path must end in a name"):
        remove_folder(path)
    assert os.listdir(tmp_path) == ["home"]


def test_all_is_on_the_disk_before_the_name_appears(tmp_path, monkeypatch):
    calls = []

    def record(name):
        real = getattr(os, name)

        def call(first, *rest):
            target = os.readlink(f"/proc/self/fd/{first}") if name == "fsync" else str(first)
            final = re.sub(rf"^\.tmp-{os.getpid()}-[0-9a-f]{{8}}-", "", os.path.basename(target))
            calls.append((name, final))
            return real(first, *rest)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "rename", "replace"):
        record(name)
    with atomic_write_path(tmp_path / "a") as temporary:
        temporary.write_text("x")
    assert calls == [("fsync", "a"), ("replace", "a"), ("fsync", tmp_path.name)]
    calls.clear()
    with atomic_folder(tmp_path / "f") as folder:
        (folder / "b").write_text("x")
    assert calls == [("fsync", "b"), ("fsync", "f"), ("rename", "f"), ("fsync", tmp_path.name)]


def test_a_folder_appears_when_it_is_whole(tmp_path):
    with atomic_folder(tmp_path / "f") as temporary:
        (temporary / "a").write_text("x")
        assert not (tmp_path / "f").exists()
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f" / "a").read_text() == "x"
    with pytest.raises(UserError, match="cannot write"), atomic_folder(tmp_path / "f"):
        pass
    assert (tmp_path / "f" / "a").read_text() == "x"
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "g"):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["f"]
    remove_folder(tmp_path / "f")
    assert os.listdir(tmp_path) == []


def test_a_link_is_swapped(tmp_path):
    for target in ("one", "two"):
        swap_link(tmp_path / "last", target)
        assert os.readlink(tmp_path / "last") == target
    assert os.listdir(tmp_path) == ["last"]
    with pytest.raises(UserError, match="cannot write"):
        swap_link(tmp_path / "none" / "last", "one")
