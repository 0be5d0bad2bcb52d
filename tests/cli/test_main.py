import logging
import os
import signal
import subprocess
import sys
import threading
import types

import click
import pytest
from dmlfast.cli import main as cli

import dmlfast
from dmlfast.errors import UserError


@pytest.fixture
def command(monkeypatch):
    """Puts a function in the place of `dmlfast info`."""

    def put(run):
        module = types.SimpleNamespace(command=click.command()(run))
        monkeypatch.setitem(sys.modules, "fake_command", module)
        monkeypatch.setitem(cli.COMMANDS, "info", ("fake_command", "Stands in."))

    return put


def fail(error):
    def run():
        raise error

    return run


def test_help_lists_all_commands_and_imports_none():
    code = (
        "import sys; from dmlfast.cli.main import main; code = main(['--help']);"
        "heavy = {'torch', 'numpy', 'h5py', 'sklearn', 'matplotlib'} & set(sys.modules);"
        "sys.exit(code or bool(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    for name in ("train", "embed", "eval", "search", "recipes", "bench", "info", "demo"):
        assert f"\n  {name} " in done.stdout


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"dmlfast {dmlfast.__version__}\n"


def test_a_command_that_does_not_exist(capsys):
    assert cli.main(["evla"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "unknown command 'evla': did you mean 'eval'?" in output.err


@pytest.mark.parametrize("arguments", [["--nonsense"], ["info", "--nonsense"], ["info", "more"]])
def test_wrong_usage(command, capsys, arguments):
    command(lambda: None)
    assert cli.main(arguments) == 2
    assert "Usage: dmlfast" in capsys.readouterr().err


def test_a_command_that_works(command, capsys):
    command(lambda: click.echo("done"))
    assert cli.main(["info"]) == 0
    assert capsys.readouterr().out == "done\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("feats.h5 is damaged"), "Error: feats.h5 is damaged"),
        (FileNotFoundError(2, "No such file or directory", "a.yaml"), "Error: a.yaml: No such"),
        (OSError("odd"), "Error: odd"),
        (OSError(28, "No space left on device"), "Error: No space left on device"),
        (ZeroDivisionError("by\nzero"), "Error: ZeroDivisionError: by (--debug shows where)"),
    ],
)
def test_an_error_is_one_line(command, capsys, error, line):
    command(fail(error))
    assert cli.main(["info"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(line)
    assert output.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--debug", "info"], ["info", "--debug"]])
def test_debug_shows_where(command, capsys, arguments):
    command(fail(UserError("oh")))
    assert cli.main(arguments) == 1
    assert "Traceback" in capsys.readouterr().err


def test_debug_by_the_environment(command, capsys, monkeypatch):
    monkeypatch.setenv("DMLFAST_DEBUG", "1")
    command(fail(UserError("oh")))
    assert cli.main(["info"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupt(command, capsys, error):
    command(fail(error))
    assert cli.main(["info"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_sigterm_ends_a_command_like_ctrl_c(command, capsys):
    cleaned = []

    def run():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            cleaned.append(True)

    command(run)
    assert cli.main(["info"]) == 130
    assert cleaned
    assert capsys.readouterr().err.strip() == "Interrupted."
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_handlers_of_others_stay(command):
    seen = []
    command(lambda: seen.append(signal.getsignal(signal.SIGTERM)))
    thread = threading.Thread(target=cli.main, args=(["info"],))
    thread.start()
    thread.join()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        cli.main(["info"])
        assert seen == [signal.SIG_DFL, signal.SIG_IGN]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_a_click_error_keeps_its_exit_code(command, capsys):
    command(fail(click.BadParameter("no")))
    assert cli.main(["info"]) == 2
    command(fail(click.ClickException("no")))
    assert cli.main(["info"]) == 1
    command(fail(SystemExit(3)))
    with pytest.raises(SystemExit, match="3"):
        cli.main(["info"])


@pytest.mark.skipif(os.name != "posix", reason="pipes as POSIX has them")
@pytest.mark.parametrize("echo", ["click.echo('x' * 100)", "print('x' * 100)"])
def test_a_reader_that_has_seen_enough(echo):
    code = f"""
import click, sys, types
from dmlfast.cli import main as cli
@click.command()
def run():
    for _ in range(2000):
        {echo}
sys.modules["fake"] = types.SimpleNamespace(command=run)
cli.COMMANDS["info"] = ("fake", "")
sys.exit(cli.main(["info"]))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline().startswith("x")
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() in (1, -signal.SIGPIPE)


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "dmlfast", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"dmlfast {dmlfast.__version__}\n"


def test_a_warning_is_printed_once_a_command(command, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own

    def run():
        for name in ("glyphs", "folder", "glyphs"):
            logging.getLogger("dmlfast.data").warning("%s is closed-set", name)

    command(run)
    for _ in range(2):
        assert cli.main(["info"]) == 0
        assert capsys.readouterr().err.splitlines() == [
            "glyphs is closed-set",
            "folder is closed-set",
        ]
    run()
    assert capsys.readouterr().err.count("glyphs") == 2
