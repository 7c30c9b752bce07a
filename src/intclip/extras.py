"""Import optional libraries, and say which extra brings a missing one."""

import importlib
import sys
from types import ModuleType
from typing import Any, cast

from intclip.errors import MissingExtraError


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: Dotted name of the module.
        extra: The extra of this project that installs it.

    Raises:
        MissingExtraError: The module is not installed.
    """
    # OpenVINO and NNCF tell their makers over the network what they convert, unless this module of theirs is not there.
    cast(dict[str, Any], sys.modules).setdefault("openvino_telemetry", None)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        root = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != root:
            raise
        raise MissingExtraError(f"{root} is not installed; install it with: pip install 'intclip[{extra}]'") from error
