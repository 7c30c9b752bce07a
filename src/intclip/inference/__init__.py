"""Inference: bundles, predictor, engines, export. Names are imported on first use."""

from typing import TYPE_CHECKING

from intclip.lazy import lazy_names

if TYPE_CHECKING:
    from intclip.inference.bundle import Bundle, load_bundle, save_bundle
    from intclip.inference.engines import Engine, compile_module
    from intclip.inference.loading import load
    from intclip.inference.prediction import Prediction
    from intclip.inference.predictor import Predictor

__all__ = ["Bundle", "Engine", "Prediction", "Predictor", "compile_module", "load", "load_bundle", "save_bundle"]

__getattr__ = lazy_names(
    __name__,
    {
        "Bundle": "bundle",
        "Engine": "engines",
        "Prediction": "prediction",
        "Predictor": "predictor",
        "compile_module": "engines",
        "load": "loading",
        "load_bundle": "bundle",
        "save_bundle": "bundle",
    },
)
