"""Import optional libraries; the error names the extra of a missing one."""

import importlib
import sys
from types import ModuleType
from typing import Any, cast

from intclip.errors import MissingExtraError


def require(module: str, extra: str | None = None) -> ModuleType:
    """Import a module on demand, because it is optional or slow to import.

    Args:
        module: Dotted name of the module.
        extra: The extra that installs it; None for core dependencies.

    Raises:
        MissingExtraError: The module is not installed.
    """
    # OpenVINO and NNCF send telemetry unless this module of theirs is missing.
    cast(dict[str, Any], sys.modules).setdefault("openvino_telemetry", None)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        root = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != root:
            raise
        package = root if extra is None else f"'intclip[{extra}]'"
        raise MissingExtraError(f"{root} is not installed; install it with: pip install {package}") from error
