"""Training: recipes, the loop, checkpoints. Heavy names are imported on first use."""

from typing import TYPE_CHECKING

from intclip.lazy import lazy_names

if TYPE_CHECKING:
    from intclip.training.recipe import Recipe, builtin_recipes, load_recipe
    from intclip.training.run import TrainResult, train

__all__ = ["Recipe", "TrainResult", "builtin_recipes", "load_recipe", "train"]

__getattr__ = lazy_names(
    __name__,
    {"Recipe": "recipe", "TrainResult": "run", "builtin_recipes": "recipe", "load_recipe": "recipe", "train": "run"},
)
