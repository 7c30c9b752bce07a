"""Recipe files: safe YAML, defaults and bases, and errors that suggest the closest key."""

import copy
import difflib
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from intclip.errors import RecipeError, first_problem, reason
from intclip.strict_yaml import parse_yaml

RECIPES = Path(__file__).parent.parent / "recipes"
MAX_BYTES = 1_000_000
Content = dict[str, Any]


def read_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Content:
    """Return a recipe's full content: defaults, bases (outermost first), the recipe, then overrides.

    Raises:
        RecipeError: Unknown recipe, malformed YAML, cyclic bases, or a malformed override.
    """
    content = _parse(RECIPES / "defaults.yaml")
    for delta in reversed(list(_with_bases(_locate(name_or_path, Path())))):
        content = merge(content, delta)
    return apply_overrides(content, overrides)


def method_training(name: str) -> Content:
    """Return a built-in recipe's training settings, including bases and defaults, without data and backbone.

    Returns: Its sections method, augment, optim and schedule, and the keys of train that affect the steps; empty for no
    recipe.
    """
    if not (RECIPES / f"{name}.yaml").is_file():
        return {}
    content = read_recipe(name)
    part: Content = {key: content[key] for key in ("method", "augment", "optim", "schedule")}
    steps = ("batch_size", "eval_batch_size", "mixup", "accumulate")
    return part | {"train": {key: content["train"][key] for key in steps}}


def apply_overrides(content: Mapping[str, Any], overrides: Sequence[str]) -> Content:
    """Apply overrides such as "optim.lr=0.01".

    Raises:
        RecipeError: One is malformed.
    """
    changed = dict(content)
    for override in overrides:
        changed = merge(changed, _override(override))
    return changed


def dump_recipe(content: Mapping[str, Any]) -> str:
    """Return a full recipe as YAML, in the order of its sections."""
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)


def describe_recipe(name: str) -> str:
    """Return the first sentence of a built-in recipe's leading comment."""
    lines = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    head = itertools.takewhile(lambda line: line.startswith("# ") and not line.startswith("#   "), lines)
    return " ".join(line.removeprefix("# ") for line in head).partition(". ")[0].rstrip(".:")


def merge(base: Mapping[str, Any], delta: Mapping[str, Any]) -> Content:
    """Merge `delta` into `base` by section; a different method drops the previous one's options."""
    merged = copy.deepcopy(dict(base))
    for key, value in delta.items():
        old = merged.get(key)
        if key == "method" and isinstance(old, dict) and isinstance(value, dict) and _other_method(old, value):
            old["options"] = {}
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else copy.deepcopy(value)
    return merged


def nearest_hint(error: ValidationError, model: type[BaseModel], where: str, prefix: str) -> RecipeError:
    """Convert the first problem of a validation to one line, with the closest known key.

    Args:
        error: From pydantic.
        model: The validated model.
        where: The recipe's name or file.
        prefix: Dotted position of the model in the recipe; empty for the whole.
    """
    problem = error.errors()[0]
    place = [str(part) for part in problem["loc"]]
    dotted = ".".join([prefix, *place] if prefix else place)
    if problem["type"] == "extra_forbidden":
        known = [f"{prefix}.{key}" if prefix else key for key in known_keys(model)]
        return RecipeError(f"{where}: unknown key {dotted!r}; {_suggest(dotted, known)}")
    # A check across a section's keys names them itself; its input would be the whole section.
    whole = problem["type"] == "value_error" and isinstance(problem["input"], dict)
    given = "" if whole or problem["type"] == "missing" else f", not {problem['input']!r}"
    return RecipeError(f"{where}: {dotted}: {first_problem(error)[1]}{given}")


def known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return all dotted keys of a model and its nested models, sections and values."""
    keys: list[str] = []
    for name, info in model.model_fields.items():
        keys.append(prefix + name)
        for kind in (info.annotation, *get_args(info.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += known_keys(kind, f"{prefix}{name}.")
    return keys


def nearest(word: str, known: Sequence[str]) -> str | None:
    """Return the most similar known word, or None."""
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.5)), None)


def _suggest(dotted: str, known: Sequence[str]) -> str:
    section, _, last = dotted.rpartition(".")
    siblings = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == section}
    same_name = [key for key in known if key.rpartition(".")[2] == last]
    best = siblings.get(nearest(last, list(siblings)) or "") or next(iter(same_name), None) or nearest(dotted, known)
    return f"did you mean {best!r}?" if best else f"known here: {', '.join(siblings or known)}"


def _locate(name_or_path: str | Path, directory: Path) -> Path:
    given = Path(name_or_path)
    if given.suffix in (".yaml", ".yml"):
        path = directory / given
        if not path.is_file():
            raise RecipeError(f"no recipe file {path}; give the path of a YAML file or the name of a built-in recipe")
        return path
    path = RECIPES / f"{name_or_path}.yaml"
    names = sorted(p.stem for p in RECIPES.glob("*.yaml") if p.stem != "defaults")
    if str(name_or_path) not in names:
        close = nearest(str(name_or_path), names)
        hint = f"did you mean {close!r}?" if close else f"built in: {', '.join(names)}; or give a .yaml file"
        raise RecipeError(f"no recipe {str(name_or_path)!r}; {hint}")
    return path


def _with_bases(path: Path) -> Iterator[Content]:
    seen: list[Path] = []
    while True:
        if path in seen:
            raise RecipeError(f"{path}: cyclic bases; remove one `base`")
        seen.append(path)
        content = _parse(path)
        base = content.pop("base", None)
        yield content
        if base is None:
            return
        if not isinstance(base, str):
            raise RecipeError(f"{path}: base must be the name or file of one recipe, not {base!r}")
        path = _locate(base, path.parent)


def _parse(path: Path) -> Content:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{path} is larger than a recipe may be ({MAX_BYTES} bytes)")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {reason(error)}; check its permissions") from error
    try:
        content = copy.deepcopy(_parse_once(text))
    except ValueError as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of sections, such as `optim: {{lr: 0.01}}`")
    return content


_parse_once = functools.lru_cache(maxsize=64)(parse_yaml)
"""A study reads the same few recipes and bases for each of its rows."""


def _override(text: str) -> Content:
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set {text!r} must have the form section.key=value, such as optim.lr=0.01")
    try:
        content = {parts[-1]: parse_yaml(value)}
    except ValueError as error:
        raise RecipeError(f"--set {text!r}: the value is not valid YAML; put it in quotes") from error
    for part in reversed(parts[:-1]):
        content = {part: content}
    return content


def _other_method(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return "name" in new and new["name"] != old.get("name")
