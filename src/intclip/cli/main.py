"""The `intclip` command: its groups, and how errors leave it."""

import errno
import logging
import re
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from intclip.cli.ablate import ablate
from intclip.cli.app import app as app_command
from intclip.cli.batch import batch
from intclip.cli.benchmark import benchmark
from intclip.cli.calibrate import calibrate
from intclip.cli.common import printable, wrong_number
from intclip.cli.data import app as data_app
from intclip.cli.demo import demo
from intclip.cli.describe import describe
from intclip.cli.distill import distill
from intclip.cli.evaluate import evaluate
from intclip.cli.fit import fit
from intclip.cli.labels import app as labels_app
from intclip.cli.lite_align import lite_align
from intclip.cli.mccl import app as mccl_app
from intclip.cli.predict import explain, export, predict
from intclip.cli.push import push
from intclip.cli.report import report
from intclip.cli.search import index, search
from intclip.cli.serve import serve
from intclip.cli.train import train
from intclip.errors import IntclipError
from intclip.machine import memory_is_short

INTERRUPTED = 130
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
_NO_MEMORY = re.compile("can(.t|not) allocate memory|out of memory|bad_alloc|can.t start new thread", re.IGNORECASE)

app = typer.Typer(
    name="intclip",
    help="Tells why a photo was taken or shared, and what it makes people feel.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # plain help: importing rich for it takes longer than everything else together
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        from intclip.version import __version__

        print(__version__)
        raise typer.Exit


_COMMANDS = (
    predict, batch, index, search, explain, report, app_command, export, push, fit, describe, train, distill, evaluate,
    calibrate, ablate, benchmark, lite_align, serve, demo,
)  # fmt: skip
for _command in _COMMANDS:
    app.command()(_command)
app.add_typer(data_app, name="data")
app.add_typer(labels_app, name="labels")
app.add_typer(mccl_app, name="mccl")


def main() -> None:
    """Run the command line: 0 on success, 2 with one line on wrong input, 130 when interrupted."""
    _log_to_stderr()
    run_to_exit(lambda: app(standalone_mode=False))


class _Plain(logging.Formatter):
    """Messages with nothing that a terminal obeys."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def _log_to_stderr() -> None:
    """Tell warnings, and of our own work what takes long and is done once. A service tells it in its own way."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain("%(message)s"))
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.startswith("intclip."))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("intclip").setLevel(logging.INFO)


def run_to_exit(action: Callable[[], object]) -> NoReturn:
    """Do something and leave the process as a command does; see `main`."""
    try:
        code = action()
    except IntclipError as error:
        _fail(str(error))
    except typer.TyperException as error:
        _usage(error)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        sys.exit(0)
    except (OSError, MemoryError, RuntimeError) as error:
        if (lack := _shortage(error)) is None:
            raise
        _fail(lack)
    if code == INTERRUPTED:  # typer returns it for Ctrl-C
        print("intclip: interrupted", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _shortage(error: Exception) -> str | None:
    """What the machine lacked, where that is why something failed deep inside."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:  # a log, a lock: what is written in many places
        return f"cannot use {error.filename or 'a file'}: {error.strerror}; free space or choose a writable place"
    # torch and its libraries have no kind of their own for it, nor always a word.
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) or memory_is_short():
        place = " on the GPU" if "CUDA" in str(error) else ""
        return f"no memory is left{place}; free some, or ask for smaller batches and fewer workers"
    return None


def _usage(error: typer.TyperException) -> None:
    """A command without its arguments shows its help; any other misuse one line."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), file=sys.stderr)
        sys.exit(2)
    _fail(wrong_number(error) or error.format_message())


def _fail(message: str) -> None:
    print(f"intclip: {printable(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(2)
