"""Taxonomies: named classes in levels, with definitions and HCI sentences, read from YAML."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from intclip.errors import TaxonomyError, listed
from intclip.labels.spelling import fold

FORMS = ("fine", "consolidated", "template", "3-5", "6-9", "11-15", "16-20")
"""Forms of class text: its name, its levels concatenated, its name and parent in a template ("An image showing
feelings, specifically joy"), HCI sentences by number of words (paper, Table 3)."""

LiftRule = Literal["max", "noisy-or", "sum"]
"""Rule for a parent's probability from its children's; see `Taxonomy.lift`."""

LAYOUT = 1
"""Version of `Taxonomy.to_dict`."""

_LISTED = 10
"""Maximum number of names in a message."""


@dataclass(frozen=True)
class Taxonomy:
    """K classes under a hierarchy.

    Attributes:
        name: Such as "intentonomy".
        names: The K class names, in the order of a model's outputs.
        levels: Level name to its class names, fine to coarse; the first level is `names`.
        parents: Class name to its ancestors, nearest first, one per coarser level; empty if there
            is only one level.
        sentence_forms: Form (see `FORMS`) to K sentences.
        definitions: Class name to its definition, if any.
        aliases: Other spellings (such as Intentonomy's short names) to class names.
        source: Where the labels come from, with licence.
        written: The HCI forms given in the file; the others use fallbacks (see `intclip.labels.load_taxonomy`).
        subsets: Partition name ("difficulty") to subset name ("easy") to class names.
        exclusive: Whether exactly one class applies to a photo (emotions, sentiment).
    """

    name: str
    names: tuple[str, ...]
    levels: Mapping[str, tuple[str, ...]]
    parents: Mapping[str, tuple[str, ...]]
    sentence_forms: Mapping[str, tuple[str, ...]]
    definitions: Mapping[str, str]
    aliases: Mapping[str, str]
    source: str
    written: tuple[str, ...] = ()
    subsets: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    exclusive: bool = False

    def __len__(self) -> int:
        """Number of classes K."""
        return len(self.names)

    def sentences(self, form: str = "11-15") -> list[str]:
        """Return the K texts of a form, in order of `names`; "fine" gives the names.

        Raises:
            TaxonomyError: The form is unknown.
        """
        if form not in self.sentence_forms:
            known = ", ".join(self.sentence_forms)
            raise TaxonomyError(f"taxonomy {self.name} has no sentences in form {form!r}; choose one of: {known}")
        return list(self.sentence_forms[form])

    def index(self, label: str) -> int:
        """Return the index of a class in `names` by name or alias, ignoring case and spacing.

        Raises:
            TaxonomyError: The name is unknown; the closest names are suggested.
        """
        spellings = {**self.aliases, **{name: name for name in self.names}}
        if label in spellings:
            return self.names.index(spellings[label])
        folded = {fold(spelling): name for spelling, name in spellings.items()}
        if (key := fold(label)) in folded:
            return self.names.index(folded[key])
        near = get_close_matches(key, folded, n=3, cutoff=0.5)
        hint = " or ".join(dict.fromkeys(repr(folded[spelling]) for spelling in near))
        remedy = f"did you mean {hint}?" if hint else f"its labels: {listed(self.names, _LISTED, quoted=True)}"
        raise TaxonomyError(f"taxonomy {self.name} has no label {label!r}; {remedy}")

    def level_index(self, level: str | int) -> int:
        """Return the position of a level in `levels`; 0 is the finest.

        Raises:
            TaxonomyError: The level is unknown.
        """
        levels = list(self.levels)
        if isinstance(level, int) and 0 <= level < len(levels):
            return level
        if isinstance(level, str) and level in levels:
            return levels.index(level)
        numbered = ", ".join(f"{i} {name}" for i, name in enumerate(levels))
        raise TaxonomyError(f"taxonomy {self.name} has no level {level!r}; its levels are: {numbered}")

    def membership(self, level: str | int) -> npt.NDArray[np.bool_]:
        """Return the membership of classes in the names of a level: (K, K_level), one True per row."""
        depth = self.level_index(level)
        names = list(self.levels.values())[depth]
        ancestors = self.names if depth == 0 else [self.parents[name][depth - 1] for name in self.names]
        return np.array([[ancestor == name for name in names] for ancestor in ancestors], dtype=np.bool_)

    def lift(
        self, probabilities: npt.NDArray[np.floating[Any]], level: str | int, rule: LiftRule = "max"
    ) -> npt.NDArray[np.float32]:
        """Lift probabilities of the K classes to a coarser level.

        "max": a parent is as probable as its most probable child. "noisy-or": 1 − Π(1 − p), for
        independent children. "sum": for exclusive classes, whose probabilities sum to 1. With every rule a parent is at
        least as probable as any of its descendants, and lifting in one step equals lifting level by level. An unknown
        child (NaN) makes its parent unknown, unless another child is certain (1).

        Args:
            probabilities: (N, K) in [0, 1], or targets.
            level: Name of a level, or its position (0 is the finest).
            rule: One of the three above.

        Returns:
            (N, K_level) in [0, 1], columns in the order of `levels[level]`.

        Raises:
            TaxonomyError: The level or rule is unknown, or K differs.
        """
        if rule not in get_args(LiftRule):
            raise TaxonomyError(f"unknown rule {rule!r}; choose one of: {', '.join(get_args(LiftRule))}")
        fine = np.asarray(probabilities, dtype=np.float64)
        if fine.ndim != 2 or fine.shape[1] != len(self):
            raise TaxonomyError(f"taxonomy {self.name} needs (N, {len(self)}) probabilities, got {fine.shape}")
        columns = []
        for members in self.membership(level).T:
            children = fine[:, members]
            if rule == "max":
                value = children.max(axis=1)
            elif rule == "noisy-or":
                value = 1 - (1 - children).prod(axis=1)
            else:
                value = np.minimum(children.sum(axis=1), 1.0)
            columns.append(np.where((children == 1).any(axis=1), 1.0, value))
        return np.stack(columns, axis=1).astype(np.float32)

    def only(self, names: Collection[str]) -> "Taxonomy":
        """Return the taxonomy of some classes, in its order, without coarser names that have no class left."""
        kept = [k for k, name in enumerate(self.names) if name in names]
        parents = {name: self.parents[name] for name in (self.names[k] for k in kept) if name in self.parents}
        used = {*(self.names[k] for k in kept), *(ancestor for line in parents.values() for ancestor in line)}

        def left(given: Iterable[str]) -> tuple[str, ...]:
            return tuple(name for name in given if name in used)

        return replace(
            self,
            names=left(self.names),
            levels={level: left(members) for level, members in self.levels.items()},
            parents=parents,
            sentence_forms={form: tuple(texts[k] for k in kept) for form, texts in self.sentence_forms.items()},
            definitions={name: text for name, text in self.definitions.items() if name in used},
            aliases={alias: name for alias, name in self.aliases.items() if name in used},
            subsets={
                key: {part: left(members) for part, members in parts.items()} for key, parts in self.subsets.items()
            },
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the taxonomy as JSON values, for a model bundle."""
        return {
            "layout": LAYOUT,
            "name": self.name,
            "source": self.source,
            "exclusive": self.exclusive,
            "levels": [{"name": level, "classes": list(names)} for level, names in self.levels.items()],
            "parents": {name: list(ancestors) for name, ancestors in self.parents.items()},
            "sentences": {form: list(sentences) for form, sentences in self.sentence_forms.items()},
            "written": list(self.written),
            "definitions": dict(self.definitions),
            "aliases": dict(self.aliases),
            "subsets": {
                key: {part: list(names) for part, names in parts.items()} for key, parts in self.subsets.items()
            },
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Taxonomy":
        """Rebuild a taxonomy from `to_dict`.

        Raises:
            TaxonomyError: An entry is missing or contradicts another, or the layout is newer than this version's.
        """
        if content.get("layout", LAYOUT) != LAYOUT:
            raise TaxonomyError(f"taxonomy layout {content['layout']} is newer than this version reads; update intclip")
        try:
            levels = {level["name"]: tuple(level["classes"]) for level in content["levels"]}
            taxonomy = cls(
                name=content["name"],
                names=next(iter(levels.values())),
                levels=levels,
                parents={name: tuple(ancestors) for name, ancestors in content["parents"].items()},
                sentence_forms={form: tuple(sentences) for form, sentences in content["sentences"].items()},
                definitions=dict(content["definitions"]),
                aliases=dict(content["aliases"]),
                source=content["source"],
                written=tuple(content["written"]),
                subsets={key: {p: tuple(n) for p, n in parts.items()} for key, parts in content["subsets"].items()},
                exclusive=bool(content["exclusive"]),
            )
        except (AttributeError, KeyError, StopIteration, TypeError) as error:
            raise TaxonomyError(
                f"taxonomy is incomplete or malformed ({error!r}); save it again with to_dict"
            ) from error
        taxonomy.check()
        return taxonomy

    def check(self) -> None:
        """Check the parts for consistency.

        Raises:
            TaxonomyError: A name is duplicate in a level, a class lacks an ancestor, or a form does not have K
                sentences.
        """

        def wrong(what: str) -> TaxonomyError:
            return TaxonomyError(f"taxonomy {self.name}: {what}; save it again with to_dict")

        if not self.names or next(iter(self.levels.values()), ()) != self.names:
            raise wrong("its first level differs from its classes")
        for level, names in self.levels.items():
            if len(set(names)) != len(names):
                raise wrong(f"level {level} has a duplicate class")
        coarser = list(self.levels.values())[1:]
        above: dict[tuple[int, str], str] = {}
        for name in self.names:
            ancestors = self.parents.get(name, ())
            if len(ancestors) != len(coarser) or any(
                a not in names for a, names in zip(ancestors, coarser, strict=True)
            ):
                raise wrong(
                    f"class {name!r} has ancestors {list(ancestors)}, but there are {len(coarser)} coarser levels"
                )
            for depth, (child, parent) in enumerate(pairwise(ancestors)):
                if (other := above.setdefault((depth, child), parent)) != parent:
                    raise wrong(f"{child!r} is under both {other!r} and {parent!r}")
        for form, sentences in self.sentence_forms.items():
            if len(sentences) != len(self.names):
                raise wrong(f"form {form} has {len(sentences)} sentences for {len(self.names)} classes")
        for alias, name in self.aliases.items():
            if name not in self.names:
                raise wrong(f"alias {alias!r} refers to {name!r}, which is not a class")
