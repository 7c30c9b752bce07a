"""Import optional libraries, and say which extra brings a missing one."""

import importlib
from types import ModuleType

from intclip.errors import MissingExtraError


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: Dotted name of the module.
        extra: The extra of this project that installs it.

    Raises:
        MissingExtraError: The module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        root = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != root:
            raise
        raise MissingExtraError(f"{root} is not installed; install it with: pip install 'intclip[{extra}]'") from error
