"""The `dmlfast` command: its subcommands, and what becomes of an error."""

import importlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

import dmlfast
from dmlfast.errors import UserError, unknown_name
from dmlfast.text import visible

# Each module holds a Click command called `command` and is imported only to run it.
COMMANDS = {
    "train": ("dmlfast.cli.train", "Train an embedding and keep it in a run folder."),
    "embed": ("dmlfast.cli.embed", "Write a data set's embeddings to an HDF5 file."),
    "eval": ("dmlfast.cli.eval", "Measure how well embeddings retrieve, and draw them."),
    "search": ("dmlfast.cli.search", "Find the images nearest to a given one."),
    "recipes": ("dmlfast.cli.recipes", "List the papers' settings and published results."),
    "bench": ("dmlfast.cli.bench", "Measure time and memory of a loss against PyTorch."),
    "tune": ("dmlfast.cli.tune", "Measure block sizes of the Triton kernels on this GPU."),
    "info": ("dmlfast.cli.info", "Show versions, devices and usable backends."),
    "demo": ("dmlfast.cli.demo", "Train, embed, evaluate and benchmark in a few minutes."),
}
INTERRUPTED = 130


class LazyGroup(click.Group):
    """A group that knows its commands' names and imports only the one that runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[name][0]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS:
            ctx.fail(str(unknown_name("command", args[0], COMMANDS)))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(dmlfast.__version__, message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show a traceback on errors, as DMLFAST_DEBUG=1 does.")
def cli(debug: bool) -> None:
    """Deep metric learning with fused losses: train, embed, evaluate, search, benchmark."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    0 right, 1 failed, 2 wrong usage, 130 interrupted, by Ctrl-C or SIGTERM. An error is one line on
    stderr.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in arguments or os.environ.get("DMLFAST_DEBUG") == "1"
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        with _sigterm_like_ctrl_c(), _warnings_said_once():
            result = cli.main(arguments, prog_name="dmlfast", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            click.echo(f"Error: {visible(_one_line(error))}", err=True)
        return 1


@contextmanager
def _sigterm_like_ctrl_c() -> Iterator[None]:
    """Lets commands clean up when they are told to end; a handler of someone else's stays."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _warnings_said_once() -> Iterator[None]:
    """A data set is read for each of its splits, and warns each time."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        known = text in said
        said.add(text)
        return not known

    printer = logging.lastResort or logging.NullHandler()  # Python's own, which writes to stderr
    printer.addFilter(is_new)
    try:
        yield
    finally:
        printer.removeFilter(is_new)


def _one_line(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):  # without a name it is mostly that of the output
        reason = error.strerror or str(error)
        return reason if error.filename is None else f"{error.filename}: {reason}"
    kind, text = type(error).__name__, str(error).partition("\n")[0]
    return f"{kind}: {text} (--debug shows where)"
