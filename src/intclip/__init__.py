"""Predict why photos were taken or shared, and what they make people feel: IntCLIP and related methods.

    import intclip
    model = intclip.load("lite")
    model.predict(["a.jpg"])[0].labels

Heavy imports happen on first use of a name.
"""

from typing import TYPE_CHECKING

from intclip.lazy import lazy_names

if TYPE_CHECKING:
    from intclip.inference.loading import load
    from intclip.inference.prediction import Prediction
    from intclip.inference.predictor import Predictor
    from intclip.version import __version__

__all__ = ["Prediction", "Predictor", "__version__", "load"]

__getattr__ = lazy_names(
    __name__,
    {
        "__version__": "version",
        "Prediction": "inference.prediction",
        "Predictor": "inference.predictor",
        "load": "inference.loading",
    },
)


def __dir__() -> list[str]:
    """Return public names, imported or not."""
    return sorted({*globals(), *__all__})
