import errno
import fcntl
import os
import resource
import shutil
import signal
from contextlib import contextmanager

import pytest

from dmlfast.errors import UserError
from dmlfast.training import run_folder
from dmlfast.training.run_folder import RunFolder, create_run, newest_run, open_run

from .helpers import tiny_config


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return create_run(tiny_config(), tmp_path / "run")


def row(step: int, **values: str) -> dict[str, str]:
    return {"step": str(step), "loss": f"{step / 8}", **values}


def add_steps(run: RunFolder, *steps: int) -> None:
    for step in steps:
        run.step_folder(step).mkdir()


def test_settings_come_back(run):
    assert run.config == tiny_config()
    assert RunFolder(run.path).config == tiny_config()


def test_summary_rows_come_back_without_a_line_that_is_cut_short(run):
    run.append_summary(row(1))
    run.append_summary(row(2))
    with run.summary_path.open("a") as file:
        file.write("3,0.3")
    assert run.summary() == [row(1), row(2)]
    run.go_back(2, 2)
    run.append_summary(row(3))
    assert run.summary() == [row(1), row(2), row(3)]


def test_going_back_cuts_and_cleans(run):
    add_steps(run, 1, 2, 3)
    for step in (1, 2, 3):
        run.append_summary(row(step))
    (run.checkpoints_path / ".tmp-1-step-4").mkdir()
    (run.path / ".tmp-1-summary.csv").write_text("half")
    run.go_back(2, 1)
    assert [line["step"] for line in run.summary()] == ["1", "2"]
    assert run.steps() == [1, 2]
    assert os.readlink(run.checkpoints_path / "last") == "step-2"
    assert os.readlink(run.checkpoints_path / "best") == "step-1"
    assert not list(run.path.rglob(".tmp-*"))
    run.go_back(0, 0)
    assert run.summary() == []


def test_pruning_keeps_the_newest_and_the_best(run):
    add_steps(run, 2, 4, 6, 8, 10)
    run.prune(keep=2, best=4)
    assert run.steps() == [4, 8, 10]


def test_links_are_swapped_without_a_gap(run, monkeypatch):
    add_steps(run, 1, 2)
    run.link(1, 1)
    links = []
    real = os.replace

    def look(source, target):
        links.append((os.readlink(run.checkpoints_path / "last"), os.readlink(source)))
        real(source, target)

    monkeypatch.setattr(os, "replace", look)
    run.link(2, 1)
    assert links == [("step-1", "step-2")]
    assert os.readlink(run.checkpoints_path / "last") == "step-2"


def test_a_row_that_does_not_fit_on_the_disk_leaves_no_part(run):
    """A limit on the file's size stands in for a full disk: a part is written, then it fails."""
    run.append_summary(row(1))
    size = run.summary_path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 3, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*summary\.csv: File too large"):
            run.append_summary(row(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert run.summary_path.stat().st_size == size
    assert run.summary() == [row(1)]


def test_default_names_are_new_each_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = (create_run(tiny_config(), None) for _ in range(2))
    assert first.path.parent.name == "runs"
    assert first.path.name.endswith("-lifted-digits")
    assert second.path.name == f"{first.path.name}-2"


def test_a_run_of_which_nothing_came_is_replaced(run):
    run.events_path.mkdir()
    (run.events_path / "events.out.tfevents.1.1").write_bytes(b"old")
    create_run(tiny_config(seed=1), run.path)
    assert run.config.seed == 1
    assert not run.events_path.exists()


@pytest.mark.parametrize("name", ["summary.csv", "checkpoints/step-3", "notes.txt"])
def test_a_run_of_which_something_came_is_kept(run, name):
    (run.path / name).write_text("x")
    with pytest.raises(UserError, match="already holds a run: --resume continues"):
        create_run(tiny_config(seed=1), run.path)
    assert (run.path / name).read_text() == "x"
    assert run.config.seed == 0


def test_what_came_of_a_run_meanwhile_is_kept(run, monkeypatch):
    real = run_folder.atomic_folder

    @contextmanager
    def late(path):
        with real(path) as temporary:
            run.append_summary(row(1))
            yield temporary

    monkeypatch.setattr(run_folder, "atomic_folder", late)
    with pytest.raises(UserError, match="already holds a run"):
        create_run(tiny_config(seed=1), run.path)
    assert run.summary() == [row(1)]


def test_what_is_there_is_kept_unless_it_is_a_run_to_overwrite(run, tmp_path):
    (run.path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="already holds a run"):
        create_run(tiny_config(), run.path)
    assert (run.path / "mine.txt").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="neither empty nor a run"):
        create_run(tiny_config(), other, overwrite=True)
    with pytest.raises(UserError, match="not a folder"):
        create_run(tiny_config(), other / "thesis.tex", overwrite=True)
    assert (other / "thesis.tex").exists()
    create_run(tiny_config(seed=1), run.path, overwrite=True)
    assert run.config.seed == 1
    assert not (run.path / "mine.txt").exists()


def test_a_run_is_trained_by_one_process_at_a_time(run, tmp_path):
    with run.alone():
        with pytest.raises(UserError, match=r"another process is training into .*run"), run.alone():
            pass
        with pytest.raises(UserError, match="another process is training into"):
            create_run(tiny_config(seed=1), run.path, overwrite=True)
        with pytest.raises(UserError, match="another process is training into"):
            create_run(tiny_config(seed=1), run.path)
        with create_run(tiny_config(), tmp_path / "other").alone():
            assert run.config.seed == 0
    create_run(tiny_config(seed=1), run.path, overwrite=True)
    assert run.config.seed == 1


def test_a_process_that_was_forked_does_not_hold_the_lock(run):
    """A loading process outlives one that is killed."""
    (began, begin), (ended, end) = os.pipe(), os.pipe()
    with run.alone():
        child = os.fork()
        if not child:
            os.write(begin, b"x")
            os.read(ended, 1)
            os._exit(0)
        os.read(began, 1)
        with pytest.raises(UserError, match="another process is training"), run.alone():
            pass
    try:
        with run.alone():  # while the child is still there
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
    finally:
        os.write(end, b"x")
        os.waitpid(child, 0)


def test_a_file_system_without_locks_is_trained_on(run, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with run.alone():
        run.append_summary(row(1))
    assert run.summary() == [row(1)]


def test_links_that_were_copied_as_folders_become_links_again(run, tmp_path):
    add_steps(run, 1, 2)
    (run.step_folder(1) / "state.json").write_text("1")
    run.link(1, 1)
    copy = RunFolder(tmp_path / "copy")
    shutil.copytree(run.path, copy.path)
    assert not (copy.checkpoints_path / "last").is_symlink()
    copy.link(2, 1)
    assert os.readlink(copy.checkpoints_path / "last") == "step-2"
    assert (copy.checkpoints_path / "best" / "state.json").read_text() == "1"
    assert sorted(os.listdir(copy.checkpoints_path)) == ["best", "last", "step-1", "step-2"]


def test_a_run_that_cannot_be_replaced_stays(run, monkeypatch):
    """As on a full disk."""
    run.append_summary(row(1))

    def write_config(self, config):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RunFolder, "write_config", write_config)
    with pytest.raises(UserError, match=r"cannot write .*run: No space left on device"):
        create_run(tiny_config(seed=1), run.path, overwrite=True)
    assert run.config.seed == 0
    assert run.summary() == [row(1)]
    assert os.listdir(run.path.parent) == ["run"]


def test_an_empty_folder_is_taken(tmp_path):
    assert create_run(tiny_config(), tmp_path).config == tiny_config()


def test_the_folder_one_is_in_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"cannot write '\.': the path must end in a name"):
        create_run(tiny_config(), ".")


def test_out_below_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .*file/run"):
        create_run(tiny_config(), tmp_path / "file" / "run")


def test_resuming_with_other_settings(run, tmp_path):
    open_run(tiny_config(max_steps=99, workers=3, log_interval=5), run.path)
    with pytest.raises(UserError, match=r"was trained with embedding-dim 8, not 16"):
        open_run(tiny_config(embedding_dim=16), run.path)
    with pytest.raises(UserError, match="not a run folder"):
        open_run(tiny_config(), tmp_path / "none")
    with pytest.raises(UserError, match="give its folder"):
        open_run(tiny_config(), None)


def test_the_newest_run_is_the_one_that_was_trained_last(tmp_path):
    with pytest.raises(UserError, match="there is no trained run in"):
        newest_run(tmp_path)
    for number, name in enumerate(("b", "exp/a", "c")):
        run = create_run(tiny_config(), tmp_path / name)
        if name != "c":  # this one has no checkpoint yet
            add_steps(run, 1)
            run.link(1, 1)
            os.utime(run.checkpoints_path / "last", (number, number), follow_symlinks=False)
    assert newest_run(tmp_path).path == tmp_path / "exp" / "a"


def test_checkpoints_that_are_not_there(run, tmp_path):
    with pytest.raises(UserError, match="has no checkpoint 'best' yet"):
        run.checkpoint("best")
    with pytest.raises(UserError, match="is not a run folder"):
        RunFolder(tmp_path / "none").checkpoint("best")
