"""Errors that a user can fix.

Every message is one line that says what is wrong, where, and how to fix it. The command line prints it and
exits with code 2; programs catch `IntclipError` or a subclass.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


class IntclipError(Exception):
    """Invalid input or a missing resource; the message says how to fix it."""


class ImageError(IntclipError):
    """A photo cannot be read: missing, empty, truncated, not an image, or too large."""


class CheckpointError(IntclipError):
    """A backbone checkpoint is missing, incomplete, or of an unknown layout."""


class BundleError(IntclipError):
    """A model bundle is missing, damaged, or written by a newer version."""


class RecipeError(IntclipError):
    """A recipe or a `--set` override is wrong."""


class TaxonomyError(IntclipError):
    """A taxonomy is malformed, or a label is not in it."""


class DatasetError(IntclipError):
    """A dataset is missing, malformed, or does not fit its taxonomy."""


class LanguageModelError(IntclipError):
    """A language model's endpoint rejects a request, cannot be reached, or gives no valid answer."""


class StorageError(IntclipError):
    """Something could not be written or read back: disk full, permission, a damaged cache."""


class MissingExtraError(IntclipError):
    """An optional library is not installed; the message names its extra."""


class TrainingError(IntclipError):
    """A training run cannot continue: the loss is not finite, or its directory belongs to another run."""


class TextLengthError(IntclipError):
    """A text has more tokens than its text tower takes."""

    @classmethod
    def of(cls, text: str, tokens: int, most: int, fix: str = "shorten it") -> "TextLengthError":
        """Return the error of a text with more than `most` tokens; the message ends with "; " and the fix."""
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        return cls(f"the text {shown!r} has {tokens} tokens, more than {most}; {fix}")


def listed(names: Iterable[Any], most: int = 12, *, quoted: bool = False) -> str:
    """Format names for a message: the first `most`, each in one shortened line, and how many more there are."""
    words = [repr(name) if quoted else " ".join(str(name).split())[:100] for name in names]
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more if words else "none"


def reason(error: BaseException, most: int = 160) -> str:
    """Return another library's error message in one shortened line.

    Of a system error it is the reason alone, without number and path; of a pydantic error the first problem.
    """
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    elif type(error).__name__ == "ValidationError":
        from pydantic import ValidationError

        if isinstance(error, ValidationError):
            text = ": ".join(filter(None, first_problem(error)))
    return " ".join(text.split())[:most] or type(error).__name__


def first_problem(error: "ValidationError") -> tuple[str, str]:
    """Return the dotted place (empty for the whole object) and the message of the first problem of a pydantic error."""
    first = error.errors(include_input=False, include_url=False)[0]
    place, message = ".".join(map(str, first["loc"])), first["msg"].rstrip(".")
    if first["type"] in ("value_error", "assertion_error"):  # our message after a prefix of pydantic
        return place, message.partition(", ")[2]
    return place, message[:1].lower() + message[1:]
