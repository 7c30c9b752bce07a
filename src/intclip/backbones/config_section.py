"""Read the JSON files beside a checkpoint, field by field."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from intclip.backbones.architecture import Activation, Family
from intclip.errors import CheckpointError, reason

_ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}
_LARGEST = 2**40
"""Upper limit of any size or factor; larger numbers would overflow."""
_OFF: tuple[Any, ...] = (None, False, 0, "", [], {}, "none")


@dataclass(frozen=True)
class ModelConfig:
    """Content of the configuration files; empty if there are none.

    Attributes:
        source: The file that describes the model, if any.
        family: Family of towers; None if the files do not say.
        sizes: Fields of `Architecture` that must agree with the weights.
        details: Fields of `Architecture` that cannot be inferred from the weights; also `vision_head_width`, for
            `vision_heads`.
        pixels: Fields of `Preprocess`, including the size if given.
        tokenizer: Properties of the text tower's tokens, such as `pad_id`.
    """

    source: Path | None = None
    family: Family | None = None
    sizes: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    pixels: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)


def read_object(file: Path) -> dict[str, Any]:
    """Read the object in a JSON file; empty if the file does not exist."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {file}: {reason(error)}; fetch it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"cannot read {file}: expected a JSON object, not {type(content).__name__}")
    return content


class Section:
    """A JSON object that is read field by field; remaining fields must be off."""

    def __init__(self, content: object, source: Path, name: str) -> None:
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{source}: {name} is not an object; fetch the file again")
        self.content, self.source, self.name = dict(content), source, name

    def take(self, key: str, default: Any = None) -> Any:
        """Return a field of any type."""
        return self.content.pop(key, default)

    def whole(self, key: str, default: int | None = None) -> int | None:
        """Return a positive integer; None if missing."""
        found = self.wholes(key, default)
        if isinstance(found, list):
            raise self.error(f"{key} is {found!r}, not a positive whole number")
        return found

    def wholes(self, key: str, default: int | None = None) -> int | list[int] | None:
        """Return a positive integer or a list of them; None if missing."""
        value: Any = self.content.pop(key, default)
        items = value if isinstance(value, list) and value else [value]
        if value is not None and not all(type(item) is int and 0 < item <= _LARGEST for item in items):
            raise self.error(f"{key} is {value!r}, not a positive whole number")
        return cast("int | list[int] | None", value)

    def number(self, key: str, default: float) -> float:
        """Return a positive number."""
        value = self.content.pop(key, default)
        if type(value) not in (int, float) or not 1 / _LARGEST <= value <= _LARGEST:
            raise self.error(f"{key} is {value!r}, not a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self.content.pop(key, default)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.error(f"{key} is {value!r}, neither true nor false")
        return value

    def activation(self, key: str, default: str) -> Activation:
        """Return our name of an activation."""
        value = self.content.pop(key, default)
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            raise self.error(f"the activation {value!r} is not supported; known: {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[value]

    def only(self, *harmless: str) -> None:
        """Reject remaining fields that are on."""
        left = sorted(key for key, value in self.content.items() if key not in harmless and value not in _OFF)
        if left:
            shown = ", ".join(f"{key} = {self.content[key]!r}" for key in left[:4])
            raise self.error(f"{shown} is not supported")

    def error(self, what: str) -> CheckpointError:
        """Make an error that names the file and the object in it."""
        line = " ".join(what.split())
        return CheckpointError(f"{self.source}: {self.name}: {line if len(line) <= 300 else line[:300] + '…'}")

    def square(self, key: str) -> int | None:
        """Return the side of a square, written once or twice; None if missing."""
        value = self.wholes(key)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise self.error(f"{key} = {value!r} is not a square")
            return value[0]
        return value

    def choice(self, key: str, known: Mapping[Any, str]) -> str | None:
        """Return the meaning of one of the known values; None if missing."""
        value = self.take(key)
        if value is None:
            return None
        if not isinstance(value, str | int) or value not in known:
            raise self.error(f"{key} = {value!r} is not supported; known: {', '.join(map(str, known))}")
        return known[value]

    def three(self, key: str) -> tuple[float, ...] | None:
        """Return one number per channel, or one for all; None if missing."""
        value = self.take(key)
        if value is None:
            return None
        values = value if isinstance(value, list) else [value] * 3
        if len(values) != 3 or not all(type(v) in (int, float) and abs(v) <= _LARGEST for v in values):
            raise self.error(f"{key} = {value!r} is not three numbers")
        if "std" in key and min(values) <= 0:
            raise self.error(f"{key} = {value!r} must be above 0")
        return tuple(map(float, values))


def given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are not None."""
    return {key: value for key, value in fields.items() if value is not None}
