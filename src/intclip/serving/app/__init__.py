"""The web app (`intclip app`): Gradio over the same queue as the REST API."""

import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from intclip.extras import require


class _Later(ModuleType):
    """Stands for a module until something of it is asked for (`importlib.util.LazyLoader` would load at any import)."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def _lightly() -> Iterator[None]:
    """In here Gradio's import does without two things that make up over half of it, and that the page has no use for.

    For editors it writes a stub file beside each of its classes, anew at every import. It spares classes that have no
    source file, so in here all of its own say that they have none. And it imports pandas, for tables and plots; in here
    that imports nothing, and whoever asks for something of pandas gets it then.
    """
    find, later = inspect.getfile, _Later("pandas")

    def getfile(object: Any) -> str:
        if isinstance(object, type) and object.__module__.startswith("gradio."):
            raise OSError("no stubs are wanted")
        return find(object)

    inspect.getfile = getfile
    sys.modules.setdefault("pandas", later)
    try:
        yield
    finally:
        inspect.getfile = find
        if sys.modules.get("pandas") is later:
            del sys.modules["pandas"]


with _lightly():
    require("gradio", "app")
