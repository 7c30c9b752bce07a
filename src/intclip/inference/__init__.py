"""Inference: bundles, predictor, engines, export. Names are imported on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intclip.inference.bundle import Bundle, load_bundle, save_bundle
    from intclip.inference.engines import Engine, compile_module
    from intclip.inference.loading import load
    from intclip.inference.prediction import Prediction
    from intclip.inference.predictor import Predictor

__all__ = ["Bundle", "Engine", "Prediction", "Predictor", "compile_module", "load", "load_bundle", "save_bundle"]

_HOMES = {
    "Bundle": "bundle",
    "Engine": "engines",
    "Prediction": "prediction",
    "Predictor": "predictor",
    "compile_module": "engines",
    "load": "loading",
    "load_bundle": "bundle",
    "save_bundle": "bundle",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
