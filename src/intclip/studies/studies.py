"""The papers' studies, read from `studies.yaml`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, model_validator

from intclip.errors import RecipeError
from intclip.strict_yaml import parse_yaml
from intclip.training.recipe_file import nearest

STUDIES = Path(__file__).with_name("studies.yaml")
TABLE6 = {"singlelabel": "table6a", "multilabel": "table6b"}
"""Parts of Table 6 by the task of the dataset."""
Figures = list[float | None]


class StudyRow(BaseModel, frozen=True, extra="forbid"):
    """One row of a study.

    Attributes:
        name: Name in the table.
        set: Changes of the recipe.
        recipe: Built-in recipe of the row's method; `set` is applied on top. A row with neither is not run.
        own_loss: Its loss is part of the method, or it has none, so the study's `singlelabel` does not apply.
        needs: Input required to run it.
        paper: Published figures in percent, in order of the study's metrics.
        paper_on: The same, by dataset.
    """

    name: str
    set: dict[str, Any] | None = None
    recipe: str | None = None
    own_loss: bool = False
    needs: Literal["fine_taxonomy"] | None = None
    paper: Figures | None = None
    paper_on: dict[str, Figures] = {}


class Study(BaseModel, frozen=True, extra="forbid"):
    """One study.

    Attributes:
        title: Its title.
        metrics: Columns, as named by `headline`.
        paper_metrics: Columns with published figures, if not all.
        setting: Differences of the published figures' setting from IntCLIP's usual one.
        clip: The study's CLIP, which replaces the default RN101.
        set: Changes of the recipe for all rows.
        singlelabel: Additional changes on single-label data, except for rows with `own_loss`.
        figures_of: Study whose rows of the same names have the published figures.
        note: Notes for comparing.
        rows: In order of the table.
    """

    title: str
    metrics: list[str]
    paper_metrics: list[str] | None = None
    setting: dict[str, str] = {}
    clip: str | None = None
    set: dict[str, Any] = {}
    singlelabel: dict[str, Any] = {}
    figures_of: str | None = None
    note: str
    rows: list[StudyRow]

    @model_validator(mode="after")
    def _figures_fit(self) -> "Study":
        width = len(self.paper_metrics or self.metrics)
        for row in self.rows:
            for figures in (row.paper, *row.paper_on.values()):
                if figures is not None and len(figures) != width:
                    raise ValueError(f"row {row.name!r} has {len(figures)} figures for {width} columns")
        return self

    def only(self, names: Sequence[str]) -> "Study":
        """Return the study with only these rows.

        Raises:
            RecipeError: A row is unknown.
        """
        known = [row.name for row in self.rows]
        if unknown := [name for name in names if name not in known]:
            raise RecipeError(f"no row {unknown[0]!r} in this study; rows: {'; '.join(known)}")
        return self.model_copy(update={"rows": [row for row in self.rows if row.name in names]})

    def published(self, row: StudyRow, dataset: str) -> dict[str, float]:
        """Return published figures of a row by metric, in percent, possibly for a dataset."""
        figures = row.paper_on.get(dataset) if row.paper_on else row.paper
        pairs = zip(self.paper_metrics or self.metrics, figures or [], strict=False)
        return {metric: value for metric, value in pairs if value is not None}


def study_names() -> list[str]:
    """Return the names that `load_study` accepts; "table6" means the part that fits the dataset."""
    names = [name for name in _content() if name not in TABLE6.values()]
    return sorted([*names, "table6"])


def load_study(name: str, task: str = "multilabel") -> Study:
    """Load a study by name.

    Args:
        name: One of `study_names`, or a part of Table 6.
        task: Task of the dataset, which selects the part of Table 6.

    Raises:
        RecipeError: The study is unknown.
    """
    content = _content()
    key = TABLE6[task] if name == "table6" else name
    if key not in content:
        close = nearest(name, study_names())
        hint = f"did you mean {close!r}?" if close else f"choose one of: {', '.join(study_names())}"
        raise RecipeError(f"no study {name!r}; {hint}")
    study = Study.model_validate(content[key])
    if study.figures_of is None:
        return study
    paper = {row.name: row.paper for row in Study.model_validate(content[study.figures_of]).rows}
    return study.model_copy(update={"rows": [row.model_copy(update={"paper": paper[row.name]}) for row in study.rows]})


def _content() -> Mapping[str, Any]:
    content: Mapping[str, Any] = parse_yaml(STUDIES.read_text(encoding="utf-8"))
    return content
