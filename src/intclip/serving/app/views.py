"""The parts of the page that are HTML: strip of photos, photo with evidence, bars, words."""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from intclip.data.images import data_url, read_image
from intclip.evidence.evidence import LEGEND, colors, overlay
from intclip.inference.prediction import Prediction
from intclip.serving.app.session import PHOTO_ALONE, Session
from intclip.serving.app.studio import Studio

PAGE = Path(__file__).parent / "page"
PICTURE = 960
"""Longer side of the large photo, in pixels."""
BRANCHES = {
    PHOTO_ALONE: ("Photo", "the photo alone"),
    "sight": ("Sight", "what is seen"),
    "semantic": ("Semantic", "what is meant"),
    "fused": ("Fused", "sight and semantic together"),
}
"""Choice to its name on the page and what it shows."""
_STOPS = 9
_HEADING = 1
"""Height of a group's heading, in rows."""
_DISPUTED = 2
"""Labels told where photo and words disagree."""


def show_label(session: Session, prediction: Prediction) -> str | None:
    """The label whose evidence is shown: the chosen one, else the most probable; None where nothing is known."""
    if prediction.error is not None:
        return None
    if session.label in prediction.taxonomy.names:
        return session.label
    return prediction.top(1)[0][0]


def show_branch(session: Session, maps: Sequence[str]) -> str:
    """The chosen map where the reader has it, else the one that decides."""
    if session.branch == PHOTO_ALONE or session.branch in maps:
        return session.branch
    return "fused" if "fused" in maps else next(iter(maps), PHOTO_ALONE)


def branches(maps: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Choice to its name and what it shows: the photo alone, and the maps; a fused one alone is of no branch."""
    names = BRANCHES | ({"fused": ("Map", "where it lies in the photo")} if tuple(maps) == ("fused",) else {})
    return {name: names[name] for name in (PHOTO_ALONE, *maps)}


def strip(session: Session, studio: Studio) -> str:
    """Thumbnails with each photo's most probable label."""
    predictions = studio.predict(session)
    kept = session.kept.get(studio.reader(session).name, {})
    rows = [
        {
            "name": photo.name,
            "thumbnail": photo.thumbnail,
            "label": predictions[place].top(1)[0][0] if predictions[place].error is None else "not read",
            "chosen": place == session.place,
            "kept": place in kept,
        }
        for place, photo in enumerate(session.photos)
    ]
    return _render("strip.html", photos=rows)


def figure(session: Session, studio: Studio) -> str:
    """The photo that is looked at, under the map of evidence, with what it shows in words."""
    photo = session.photo
    if photo is None:
        return _render("figure.html", photo=None)
    prediction = studio.predict(session)[session.place]
    label = show_label(session, prediction)
    maps = studio.reader(session).maps
    branch = show_branch(session, maps)
    called, means = branches(maps)[branch]
    evidence = None if label is None or branch == PHOTO_ALONE else studio.explain(session, label)
    image = read_image(photo.path, min_side=PICTURE)
    seen_all = True
    if evidence is not None:
        # The decoder may have halved the photo; the box is told in the pixels of the whole one.
        width, height = read_image(photo.path).size
        box = tuple(edge * image.width / width for edge in evidence.box)
        seen_all = evidence.box[2] - evidence.box[0] >= width - 1 and evidence.box[3] - evidence.box[1] >= height - 1
        image = overlay(image, getattr(evidence, branch), (box[0], box[1], box[2], box[3]))
    return _render(
        "figure.html",
        photo={"name": photo.name, "picture": data_url(image, PICTURE, quality=86), "size": image.size},
        label=label,
        branch=called.lower(),
        means=means,
        evidence=evidence is not None,
        fine=evidence is not None and evidence.kind == "fine",
        seen_all=seen_all,
        ramp=_ramp(),
        legend=LEGEND,
    )


def bars(session: Session, studio: Studio) -> str:
    """Labels of a level as bars, most probable first, under their ancestors of the coarsest level."""
    if session.photo is None:
        return _render("bars.html", columns=[], error=None)
    prediction = studio.predict(session)[session.place]
    if prediction.error is not None:
        return _render("bars.html", columns=[], error=prediction.error)
    chosen = show_label(session, prediction)
    columns = _columns(_groups(prediction, session.level, chosen))
    return _render("bars.html", columns=columns, error=None, agreement=agreement(prediction))


def agreement(prediction: Prediction) -> str | None:
    """Whether photo and words of a post agree, in one line; None where one of them was not read."""
    found = prediction.conflict
    if found is None:
        return None
    score = f"(conflict {found.score:.2f}, at most 1)"
    if not found.disputed:
        return f"Photo and words agree {score}."
    told = [
        f"{name}, {100 * photo:.0f}\u00a0% by the photo and {100 * words:.0f}\u00a0% by the words"
        for name, (photo, words) in list(found.disputed.items())[:_DISPUTED]
    ]
    more = len(found.disputed) - len(told)
    told += [f"{more} more"] if more else []
    return f"Photo and words disagree: {'; '.join(told)} {score}."


def words(session: Session, studio: Studio) -> str:
    """The caption, each word tinted by how much it speaks for or against the label; empty where there is none."""
    if session.photo is None:
        return ""
    label = show_label(session, studio.predict(session)[session.place])
    evidence = None if label is None else studio.explain_words(session, label)
    if evidence is None:
        return ""
    most = max((abs(weight) for _, weight in evidence.words), default=0) or 1.0
    shown = [
        {"word": word, "share": round(abs(weight) / most * 100), "weight": weight, "speaks": weight > 0}
        for word, weight in evidence.words
    ]
    return _render("words.html", words=shown, label=evidence.label, probability=evidence.probability)


def notice(session: Session) -> str:
    """The last notice; its number makes two equal ones differ for the browser."""
    return _render("notice.html", text=session.notice, turn=session.turn)


def _groups(prediction: Prediction, level: int, chosen: str | None) -> list[dict[str, Any]]:
    taxonomy = prediction.taxonomy
    top = len(taxonomy.levels) - 1
    level = min(level, top)
    scores, above = prediction.level(level), prediction.level(top)
    holding = set(prediction.labels)
    members = taxonomy.membership(level).T
    groups: dict[str, dict[str, Any]] = {}
    for position, (name, probability) in enumerate(scores.items()):
        classes = np.flatnonzero(members[position])
        # A parent holds where a child does; its evidence is that of its most probable child.
        best = int(classes[prediction.probabilities[classes].argmax()])
        group = taxonomy.parents[taxonomy.names[best]][-1] if level < top else ""
        entry = groups.setdefault(group, {"name": group, "probability": above.get(group, 0.0), "rows": []})
        holds = any(taxonomy.names[index] in holding for index in classes)
        # A parent has no threshold of its own.
        own = level == 0 and not taxonomy.exclusive
        threshold = round(100 * float(prediction.thresholds[best]), 1) if own else None
        row = {
            "name": name,
            "definition": taxonomy.definitions.get(name, name),
            "place": best,
            "percent": _percent(probability, None if holds else threshold),
            "width": round(100 * probability, 1),
            "holds": holds,
            "chosen": chosen is not None and taxonomy.names.index(chosen) in classes,
            "threshold": threshold,
            "probability": probability,
        }
        entry["rows"].append(row)
    for entry in groups.values():
        entry["rows"].sort(key=lambda row: -row["probability"])
    return sorted(groups.values(), key=lambda entry: -entry["probability"])


def _percent(probability: float, missed: float | None) -> float:
    """Whole percent; with a decimal where they would look as if the threshold that is missed were reached."""
    percent = round(100 * probability)
    return percent if missed is None or percent < missed else math.floor(1000 * probability) / 10


def _columns(groups: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Two columns of about one height; a single group is dealt to both by its rows."""
    if len(groups) == 1:
        rows = groups[0]["rows"]
        half = (len(rows) + 1) // 2
        return [[{"name": "", "order": place, "rows": part}] for place, part in enumerate((rows[:half], rows[half:]))]
    columns: list[list[dict[str, Any]]] = [[], []]
    heights = [0, 0]
    for order, group in enumerate(groups):
        column = heights.index(min(heights))
        columns[column].append(group | {"order": order})
        heights[column] += _HEADING + len(group["rows"])
    return columns


def _ramp() -> str:
    stops = colors(np.linspace(0, 1, _STOPS)).round().astype(int).tolist()
    return ", ".join(f"rgb({red}, {green}, {blue})" for red, green, blue in stops)


def _render(template: str, **values: Any) -> str:
    return str(_templates().get_template(template).render(**values))


@cache
def _templates() -> Any:
    from jinja2 import Environment, FileSystemLoader

    return Environment(loader=FileSystemLoader(PAGE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
