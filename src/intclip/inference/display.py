"""Predictions as HTML in notebooks, plots, and pandas tables."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from intclip.data.images import data_url
from intclip.evidence.display import source_photo
from intclip.extras import require
from intclip.inference.results import CONFLICT_COLUMN, score_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

    from intclip.inference.prediction import Prediction

UNCLEAR = "no clear intent"
"""Shown if no label reaches its threshold."""
THUMBNAIL = 160
MOST_SHOWN = 50
"""Number of predictions shown in a notebook."""
_BARS = 5
_ACCENT, _QUIET = "#bc3754", "#a9a3b4"


def headline(prediction: "Prediction") -> str:
    """Summarise a prediction in one line: predicted labels, most probable first, or none."""
    found = answer(prediction)
    if prediction.error is not None:
        return found
    return f"Probably: {found}" if prediction.clear else found[0].upper() + found[1:]


def answer(prediction: "Prediction") -> str:
    """Name the predicted labels with their probabilities, most probable first."""
    if prediction.error is not None:
        return f"cannot be read: {prediction.error}"
    held = set(prediction.labels)
    named = [f"{name} {value:.2f}" for name, value in prediction.top(len(prediction.taxonomy)) if name in held]
    return ", ".join(named) or UNCLEAR


def prediction_html(prediction: "Prediction", *, bars: int = _BARS) -> str:
    """Render the photo (if it is a file), the summary, and the most probable labels as bars."""
    photo = None if prediction.error is not None else source_photo(prediction.source, min_side=THUMBNAIL)
    picture = "" if photo is None else f'<img src="{data_url(photo, THUMBNAIL, quality=80)}" alt="" style="margin:0">'
    held = set(prediction.labels)
    rows = "".join(
        f'<tr style="background:none"><td style="text-align:left">{escape(name)}</td><td><div style="width:120px;'
        f'background:rgba(127,127,127,.25)"><div style="width:{100 * value:.0f}%;height:8px;'
        f'background:{_ACCENT if name in held else _QUIET}"></div></div></td><td>{value:.2f}</td></tr>'
        for name, value in prediction.top(bars)
    )
    return (
        f'<div style="display:flex;gap:16px;margin:8px 0">{picture}<div><div style="opacity:.7">'
        f"{escape(prediction.source)}</div><b>{escape(headline(prediction))}</b>"
        f'<table style="margin:4px 0">{rows}</table></div></div>'
    )


def predictions_html(predictions: "Sequence[Prediction]") -> str:
    """Render the first `MOST_SHOWN` predictions."""
    shown = "".join(prediction_html(one, bars=3) for one in predictions[:MOST_SHOWN])
    more = len(predictions) - MOST_SHOWN
    return shown + (f"<p>and {more} more</p>" if more > 0 else "")


def plot_prediction(prediction: "Prediction", *, count: int = 10, ax: "Axes | None" = None) -> "Axes":
    """See `Prediction.plot`."""
    axes: Axes = require("matplotlib.pyplot", "notebook").subplots()[1] if ax is None else ax
    held, ranked = set(prediction.labels), prediction.top(count)[::-1]
    limits = dict(zip(prediction.taxonomy.names, prediction.thresholds.tolist(), strict=True))
    places = range(len(ranked))
    axes.barh(places, [value for _, value in ranked], color=[_ACCENT if name in held else _QUIET for name, _ in ranked])
    if not prediction.taxonomy.exclusive:
        axes.plot([limits[name] for name, _ in ranked], places, "|", color="black", markersize=12, label="threshold")
        axes.legend(loc="lower right")
    axes.set_yticks(places, [name for name, _ in ranked], parse_math=False)
    axes.set_xlim(0, 1)
    axes.set_xlabel("probability")
    axes.set_title(headline(prediction) if len(held) < 2 else f"Probably: {prediction.top(1)[0][0]}", parse_math=False)
    return axes


def predictions_frame(predictions: "Sequence[Prediction]") -> "DataFrame":
    """See `Predictions.to_pandas`."""
    pandas = require("pandas", "notebook")
    rows = []
    for one in predictions:
        row: dict[str, Any] = {"source": one.source, "error": one.error, "labels": one.labels}
        if any(other.conflict is not None for other in predictions):
            row[CONFLICT_COLUMN] = None if one.conflict is None else one.conflict.score
        rows.append(row | dict(zip(score_columns(one.taxonomy.names), one.probabilities.tolist(), strict=True)))
    frame: DataFrame = pandas.DataFrame(rows)
    return frame
