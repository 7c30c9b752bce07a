"""The web app (`intclip app`): Gradio over the same queue as the REST API."""

import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from intclip.extras import require

_NOT_NEEDED = "pandas"
"""Gradio imports it for the tables of pages that have some; it takes a quarter of the app's start."""


class _Later(ModuleType):
    """Stands for a module until something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def _without_pandas() -> Iterator[None]:
    """In here an import of pandas imports nothing; whoever imports it afterwards gets it."""
    if _NOT_NEEDED in sys.modules or find_spec(_NOT_NEEDED) is None:
        yield
        return
    later = sys.modules[_NOT_NEEDED] = _Later(_NOT_NEEDED)
    try:
        yield
    finally:
        if sys.modules.get(_NOT_NEEDED) is later:
            del sys.modules[_NOT_NEEDED]


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


with _without_stubs(), _without_pandas():
    require("gradio", "app")
