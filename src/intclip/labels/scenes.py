"""Everyday scenes with the intents that are plausible reasons to photograph them."""

import itertools
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np
import numpy.typing as npt
import yaml

from intclip.labels.taxonomy import Taxonomy

FILE = "scenes.yaml"
STEP = 0.05
"""Decrease in plausibility from one intent of a scene to the next."""


@dataclass(frozen=True, eq=False)
class Scenes:
    """S scenes and their plausible intents.

    Attributes:
        texts: S short captions.
        intents: Names of I intents.
        plausible: (S, I) in [0, 1], plausibility of the intent in the scene: 1 for the first one
            listed, `STEP` less for each further one, 0 for all others.
    """

    texts: tuple[str, ...]
    intents: tuple[str, ...]
    plausible: npt.NDArray[np.float32]

    def judged(self, taxonomy: Taxonomy) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Match the K classes of a taxonomy with the intents, by name or alias.

        Returns:
            `plausible` by class (S, K), 0 for classes that are no intents, and which classes are intents (K,).
        """
        spelled = {spelling.casefold(): name for spelling, name in taxonomy.aliases.items()}
        spelled |= {name.casefold(): name for name in taxonomy.names}
        plausible = np.zeros((len(self.texts), len(taxonomy)), dtype=np.float32)
        known = np.zeros(len(taxonomy), dtype=bool)
        for column, intent in enumerate(self.intents):
            if (name := spelled.get(intent.casefold())) is not None:
                place = taxonomy.names.index(name)
                plausible[:, place], known[place] = self.plausible[:, column], True
        return plausible, known


@lru_cache(maxsize=1)
def load_scenes() -> Scenes:
    """Load the packaged scenes."""
    # libyaml is ten times as fast as `parse_yaml`, whose checks are for files of others.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content = yaml.load(files("intclip.labels").joinpath(FILE).read_text(encoding="utf-8"), Loader=loader)
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
    """Expand a pattern: "a {red|blue} {car|bus}" gives four texts."""
    parts = re.split(r"\{([^}]*)\}", pattern)
    choices = [part.split("|") if place % 2 else [part] for place, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]
