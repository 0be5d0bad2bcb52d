"""Files and folders that appear whole or not at all, whatever interrupts the writing."""

import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dmlfast.errors import UserError

TEMPORARY_PREFIX = ".tmp-"
_TEMPORARY = re.escape(TEMPORARY_PREFIX) + r"(\d{1,9})-[0-9a-f]{8}-"  # and the final name
_LOCKED: set[int] = set()  # open folders
ABANDONED_SECONDS = 24 * 60 * 60  # without a write: the process may be one of another machine


def temporary_path(path: Path) -> Path:
    """A name beside `path` for what is not whole yet, another one each time; the suffix is kept.

    A path that ends in no name, such as "." or "", raises a `UserError`.
    """
    if path.name in ("", ".."):
        raise UserError(f"cannot write '{path}': the path must end in a name")
    return path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")


def write_error(path: str | Path, error: Exception) -> UserError:
    """The one line for a file that could not be written, such as on a full disk."""
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    final = re.sub(_TEMPORARY, "", str(path))
    return UserError(f"cannot write {final}: {reason}")


def fsync_path(path: str | Path) -> None:
    """Waits until a file's bytes are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(folder: str | Path) -> None:
    """Waits until a folder's names are on the disk."""
    fsync_path(folder)


def check_writable(path: str | Path) -> None:
    """Raises the `UserError` of a file that cannot be written, before there is work to be lost."""
    path = Path(path)
    temporary = temporary_path(path)
    _refuse_irregular(path)
    try:
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise write_error(path, error) from error


@contextmanager
def atomic_write_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path to write to; on success the file is synced and renamed to `path`.

    On failure the temporary file is removed and `path` stays as it was. A write that fails raises a
    `UserError` naming `path`. What killed processes left of the same file a day ago is removed.
    """
    path = Path(path)
    temporary = temporary_path(path)
    _remove_abandoned(path)
    try:
        _refuse_irregular(path)
        yield temporary
        fsync_path(temporary)
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _refuse_irregular(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise UserError(f"cannot write {path}: it is not a regular file")


def _remove_abandoned(path: Path) -> None:
    """Removes what no process here can be writing as `path`, nor one elsewhere."""
    name = re.compile(_TEMPORARY + re.escape(path.name))
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            match = name.fullmatch(entry.name)
            if not match or _is_alive(int(match[1])) or _idle(entry) < ABANDONED_SECONDS:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry)
            else:
                os.unlink(entry)


def _idle(entry: os.DirEntry[str]) -> float:
    """Seconds since a file was written to, or anything in a folder."""
    written = [entry.stat(follow_symlinks=False).st_mtime]
    if entry.is_dir(follow_symlinks=False):
        with os.scandir(entry.path) as files:
            written += [file.stat(follow_symlinks=False).st_mtime for file in files]
    return time.time() - max(written)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    return True


def append_whole(path: str | Path, data: bytes) -> None:
    """Appends to a file, which is made if need be, and waits until it is on the disk.

    What cannot be written whole is not written at all: a `UserError` names `path`.
    """
    rest = memoryview(data)
    try:
        with open(path, "ab", buffering=0) as file:
            size = file.tell()
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                file.truncate(size)
                raise
            os.fsync(file.fileno())
    except OSError as error:
        raise write_error(path, error) from error


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder to fill with files; on success all is synced and renamed to `path`.

    On failure the temporary folder is removed. `path` must not exist yet. A write that fails raises
    a `UserError` naming `path`. What killed processes left of the same folder a day ago is removed.
    """
    path = Path(path)
    temporary = temporary_path(path)
    _remove_abandoned(path)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            fsync_path(file)
        fsync_folder(temporary)
        os.rename(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def folder_lock(path: str | Path) -> Iterator[bool]:
    """Locks a folder in the block; yields False where another process has, and never waits.

    The lock ends with the process, however it ends, whatever processes it has forked. A file system
    that knows no locks is taken for unlocked.
    """
    folder = os.open(path, os.O_RDONLY)
    _LOCKED.add(folder)
    try:
        yield _lock(folder)
    finally:
        if folder in _LOCKED:  # not in a process that was forked in the block
            _LOCKED.remove(folder)
            os.close(folder)


def _lock(folder: int) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _close_locked() -> None:
    while _LOCKED:
        os.close(_LOCKED.pop())


os.register_at_fork(after_in_child=_close_locked)


def remove_folder(path: str | Path) -> None:
    """Removes a folder so that its name never stands for a part of it."""
    path = Path(path)
    old = temporary_path(path)
    os.rename(path, old)
    shutil.rmtree(old)


def swap_link(link: str | Path, target: str) -> None:
    """Points the symbolic link at `target`, relative to the link's folder, in one step."""
    link = Path(link)
    temporary = temporary_path(link)
    try:
        os.symlink(target, temporary)
        os.replace(temporary, link)
        fsync_folder(link.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise write_error(link, error) from error
