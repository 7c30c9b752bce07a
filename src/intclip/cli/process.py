"""How a command's process writes, stops and ends."""

import codecs
import errno
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import typer

from intclip.cli.common import printable, wrong_number
from intclip.errors import IntclipError
from intclip.machine import memory_is_short

INTERRUPTED = 130
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
_NO_MEMORY = re.compile("can(.t|not) allocate memory|out of memory|bad_alloc|can.t start new thread", re.IGNORECASE)
_NOISY = ("tifffile",)
"""Libraries that log what the error of a photo says already."""


class Stopped(BaseException):
    """The system asks the process to end (SIGTERM, SIGHUP): what is half-written is removed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def prepare_process() -> None:
    """Write any character to any terminal, log to standard error, and end in order when the system asks for it."""
    codecs.register_error("intclip.escape", _escape)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="intclip.escape")
    _log_to_stderr()
    if threading.current_thread() is not threading.main_thread():
        return
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _stop)


def run_to_exit(action: Callable[[], object]) -> NoReturn:
    """Do something and leave the process as a command does.

    The exit code is 0 on success, and when whoever reads standard output wants no more; 2 with one line on wrong input;
    130 when interrupted. A process that was asked to end does so by that signal.
    """
    try:
        code = action()
        sys.stdout.flush()
    except IntclipError as error:
        _fail(str(error))
    except typer.TyperException as error:
        _usage(error)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Stopped as error:
        signal.signal(error.number, signal.SIG_DFL)
        os.kill(os.getpid(), error.number)
        sys.exit(128 + error.number)
    except BrokenPipeError:
        _leave_quietly()
    except SystemExit as error:  # Typer and Rich turn a broken pipe into exit code 1
        if isinstance(error.__context__, BrokenPipeError):
            _leave_quietly()
        raise
    except (OSError, MemoryError, RuntimeError) as error:
        if (lack := _shortage(error)) is None:
            raise
        _fail(lack)
    if code == INTERRUPTED:  # Typer returns it for Ctrl-C
        print("intclip: interrupted", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def silence_stdout() -> None:
    """Drop what goes to standard output from here on: its reader is gone."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, sys.stdout.fileno())
    os.close(sink)


def _leave_quietly() -> NoReturn:
    sys.stdout = sys.__stdout__ or sys.stdout  # Typer puts a wrapper in its place
    silence_stdout()
    sys.exit(0)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def _escape(error: UnicodeError) -> tuple[str, int]:
    r"""What a stream cannot encode, as JSON and Python write it: \uXXXX, outside the basic plane as two of them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    codes = (units[place : place + 2].hex() for place in range(0, len(units), 2))
    return "".join(f"\\u{code}" for code in codes), error.end


class _Plain(logging.Formatter):
    """Messages with nothing that a terminal obeys."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def _log_to_stderr() -> None:
    """Show warnings, and what our own work says of itself. A service logs in its own way."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain("%(message)s"))
    handler.addFilter(_is_shown)
    logging.basicConfig(handlers=[handler])
    logging.getLogger("intclip").setLevel(logging.INFO)


def _is_shown(record: logging.LogRecord) -> bool:
    ours = record.name.startswith("intclip.")
    return ours or (record.levelno >= logging.WARNING and record.name.partition(".")[0] not in _NOISY)


def _shortage(error: Exception) -> str | None:
    """What the machine lacked, where that is why something failed deep inside."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:  # a log, a lock: what is written in many places
        return f"cannot use {error.filename or 'a file'}: {error.strerror}; free space or choose a writable place"
    # torch and its libraries have no kind of their own for it, nor always a word.
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) or memory_is_short():
        place = " on the GPU" if "CUDA" in str(error) else ""
        return f"no memory is left{place}; free some, or choose smaller batches and fewer workers"
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
