"""Everyday scenes: what people photograph, each with the intents that somebody could well have in photographing it."""

import itertools
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np
import numpy.typing as npt

from intclip.labels.taxonomy import Taxonomy
from intclip.strict_yaml import parse_yaml

FILE = "scenes.yaml"
STEP = 0.05
"""How much less plausible an intent is than the one that the file names before it."""


@dataclass(frozen=True, eq=False)
class Scenes:
    """S scenes and what is plausible in them.

    Attributes:
        texts: S short captions.
        intents: Names of I intents.
        plausible: (S, I) in [0, 1], how plausible the intent is in the scene: 1 of the first one that the file names,
            `STEP` less of each further one, 0 of all others.
    """

    texts: tuple[str, ...]
    intents: tuple[str, ...]
    plausible: npt.NDArray[np.float32]

    def judged(self, taxonomy: Taxonomy) -> dict[int, npt.NDArray[np.float32]]:
        """Columns (S,) of `plausible`, by the place of the class of a taxonomy that has the intent's name or alias."""
        spelled = {spelling.casefold(): name for spelling, name in taxonomy.aliases.items()}
        spelled |= {name.casefold(): name for name in taxonomy.names}
        found = {}
        for column, intent in enumerate(self.intents):
            if (name := spelled.get(intent.casefold())) is not None:
                found[taxonomy.names.index(name)] = self.plausible[:, column]
        return found


@lru_cache(maxsize=1)
def load_scenes() -> Scenes:
    """The scenes that come with the package."""
    content = parse_yaml(files("intclip.labels").joinpath(FILE).read_text(encoding="utf-8"))
    codes = {code: place for place, code in enumerate(content["intents"])}
    texts: list[str] = []
    rows: list[list[int]] = []
    for pattern, intents in content["scenes"].items():
        for text in expand(pattern):
            texts.append(text)
            rows.append([codes[code] for code in intents.split()])
    plausible = np.zeros((len(texts), len(codes)), dtype=np.float32)
    for row, columns in enumerate(rows):
        plausible[row, columns] = 1 - STEP * np.arange(len(columns))
    return Scenes(tuple(texts), tuple(content["intents"].values()), plausible)


def expand(pattern: str) -> list[str]:
    """Texts that a pattern stands for: "a {red|blue} {car|bus}" is four of them."""
    parts = re.split(r"\{([^}]*)\}", pattern)
    choices = [part.split("|") if place % 2 else [part] for place, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]
