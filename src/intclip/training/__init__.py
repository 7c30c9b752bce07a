"""Training: recipes, the loop, checkpoints. Heavy names are imported on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intclip.training.recipe import Recipe, builtin_recipes, load_recipe
    from intclip.training.run import TrainResult, train

__all__ = ["Recipe", "TrainResult", "builtin_recipes", "load_recipe", "train"]

_LAZY = {"Recipe": "recipe", "TrainResult": "run", "builtin_recipes": "recipe", "load_recipe": "recipe", "train": "run"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
