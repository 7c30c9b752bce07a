"""Predict why photos were taken or shared, and what they make people feel: IntCLIP and related methods.

    import intclip
    model = intclip.load("lite")
    model.predict(["a.jpg"])[0].labels

Heavy imports happen on first use of a name.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intclip.inference.loading import load
    from intclip.inference.prediction import Prediction
    from intclip.inference.predictor import Predictor
    from intclip.version import __version__

__all__ = ["Prediction", "Predictor", "__version__", "load"]

_HOMES = {
    "__version__": "intclip.version",
    "Prediction": "intclip.inference.prediction",
    "Predictor": "intclip.inference.predictor",
    "load": "intclip.inference.loading",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'intclip' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return public names, imported or not."""
    return sorted({*globals(), *__all__})
