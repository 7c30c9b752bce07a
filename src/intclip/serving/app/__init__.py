"""The web app (`intclip app`): Gradio over the same queue as the REST API."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from intclip.extras import require


@contextmanager
def _without_stubs() -> Iterator[None]:
    """Gradio writes a stub file for each of its classes at every import, a third of the import's time.

    It leaves out classes that have no source file; in here all of its own say that they have none.
    """
    find = inspect.getfile

    def getfile(thing: Any) -> str:
        if isinstance(thing, type) and thing.__module__.startswith("gradio."):
            raise OSError("no stubs are wanted")
        return find(thing)

    inspect.getfile = getfile  # type: ignore[assignment]
    try:
        yield
    finally:
        inspect.getfile = find


with _without_stubs():
    require("gradio", "app")
