"""The papers' studies, read from `studies.yaml`."""

from collections.abc import Mapping
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


class Row(BaseModel, frozen=True, extra="forbid"):
    """One row of a study.

    Attributes:
        name: As the table shows it.
        set: What it changes in the recipe.
        recipe: Built-in recipe of the row's method, which says how it is trained; `set` comes on top. A row with
            neither is not run.
        own_loss: Its loss is part of the method, or it has none: the study's `singlelabel` is not for it.
        needs: What must be given for it to run.
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
        title: What it asks.
        metrics: Columns, as `headline` names them.
        paper_metrics: Columns that have published figures, where not all have.
        setting: Where the published figures differ from IntCLIP's usual setting.
        clip: The CLIP that it is about, where the base recipe has the default one, RN101.
        set: What all rows change in the recipe.
        singlelabel: What they change besides on data where one label holds a photo, but for those with `own_loss`.
        figures_of: Study whose rows of the same names have the published figures.
        note: What a reader must know to compare.
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
    rows: list[Row]

    @model_validator(mode="after")
    def _figures_fit(self) -> "Study":
        width = len(self.paper_metrics or self.metrics)
        for row in self.rows:
            for figures in (row.paper, *row.paper_on.values()):
                if figures is not None and len(figures) != width:
                    raise ValueError(f"row {row.name!r} has {len(figures)} figures for {width} columns")
        return self

    def published(self, row: Row, dataset: str) -> dict[str, float]:
        """Published figures of a row by metric, in percent; for a dataset where they depend on it."""
        figures = row.paper_on.get(dataset) if row.paper_on else row.paper
        pairs = zip(self.paper_metrics or self.metrics, figures or [], strict=False)
        return {metric: value for metric, value in pairs if value is not None}


def study_names() -> list[str]:
    """Names that `load_study` takes, "table6" standing for the part that fits the dataset."""
    names = [name for name in _content() if name not in TABLE6.values()]
    return sorted([*names, "table6"])


def load_study(name: str, task: str = "multilabel") -> Study:
    """A study by name.

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
        hint = f"did you mean {close!r}?" if close else f"there are: {', '.join(study_names())}"
        raise RecipeError(f"no study {name!r}; {hint}")
    study = Study.model_validate(content[key])
    if study.figures_of is None:
        return study
    paper = {row.name: row.paper for row in Study.model_validate(content[study.figures_of]).rows}
    return study.model_copy(update={"rows": [row.model_copy(update={"paper": paper[row.name]}) for row in study.rows]})


def _content() -> Mapping[str, Any]:
    content: Mapping[str, Any] = parse_yaml(STUDIES.read_text(encoding="utf-8"))
    return content
