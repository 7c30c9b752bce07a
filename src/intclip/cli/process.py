"""Output, signals and exit codes of a command's process."""

import codecs
import errno
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

import typer

from intclip.cli.common import printable, wrong_value
from intclip.errors import IntclipError
from intclip.machine import memory_is_short

INTERRUPTED = 130
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
_NO_MEMORY = re.compile("can(.t|not) allocate memory|out of memory|bad_alloc|can.t start new thread", re.IGNORECASE)
_NOISY = ("tifffile",)
"""Libraries whose log messages repeat a photo's error."""


class Stopped(BaseException):
    """Raised on SIGTERM and SIGHUP, so that partial files are removed before exit."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def prepare_process() -> None:
    """Set up standard streams, their encoding, logging to standard error, and clean exit on signals."""
    _open_closed_streams()
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


def _open_closed_streams() -> None:
    """Connect standard streams that the caller closed (`>&-`, some services) to the null device.

    Otherwise Python has no such stream, and the next file that is opened gets its number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 (stays open)


def run_to_exit(action: Callable[[], object]) -> NoReturn:
    """Run a function and exit the process.

    The exit code is 0 on success or when standard output is closed, 2 with one line on wrong input, 130
    when interrupted. After SIGTERM or SIGHUP the process ends by that signal.
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
    """Discard further standard output: its reader is gone."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, sys.stdout.fileno())
    os.close(sink)


def _leave_quietly() -> NoReturn:
    sys.stdout = sys.__stdout__ or sys.stdout  # Typer replaces it with a wrapper
    silence_stdout()
    sys.exit(0)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def _escape(error: UnicodeError) -> tuple[str, int]:
    r"""Escape what a stream cannot encode like JSON: \uXXXX, with surrogate pairs outside the basic plane."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    codes = (units[place : place + 2].hex() for place in range(0, len(units), 2))
    return "".join(f"\\u{code}" for code in codes), error.end


class _Plain(logging.Formatter):
    """Formats messages without control characters."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def _log_to_stderr() -> None:
    """Log warnings and intclip's own messages. A service has its own logging."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain("%(message)s"))
    handler.addFilter(_is_shown)
    logging.basicConfig(handlers=[handler])
    logging.getLogger("intclip").setLevel(logging.INFO)


def _is_shown(record: logging.LogRecord) -> bool:
    ours = record.name.startswith("intclip.")
    return ours or (record.levelno >= logging.WARNING and record.name.partition(".")[0] not in _NOISY)


def _shortage(error: Exception) -> str | None:
    """Return a message if the cause of an error is lack of memory, disk space or permission."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:  # logs, locks: written in many places
        return f"cannot use {error.filename or 'a file'}: {error.strerror}; free space or choose a writable place"
    # torch and its libraries have no exception class for it.
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) or memory_is_short():
        place = " on the GPU" if "CUDA" in str(error) else ""
        return f"out of memory{place}; free some, or choose smaller batches and fewer workers"
    return None


def _usage(error: typer.TyperException) -> None:
    """Show help for a command without arguments, and one line for any other usage error."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), file=sys.stderr)
        sys.exit(2)
    _fail(wrong_value(error) or error.format_message())


def _fail(message: str) -> None:
    print(f"intclip: {printable(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(2)
