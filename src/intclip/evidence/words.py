"""Evidence for a label in the words of a text, and its highlighting."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from intclip.errors import IntclipError
from intclip.extras import require

if TYPE_CHECKING:  # it imports torch, which the service does without
    from intclip.methods.base import WordUnit

Array = npt.NDArray[np.float64]
Score = Callable[[Sequence[str]], Array]
"""Scores T texts: (T, K) log-odds or cosines."""
How = Literal["occlusion", "shapley"]

MOST_PARTS = 128
"""Maximum number of parts of a text: every part costs one pass."""
SHAPLEY_ORDERS = 25
"""Number of random orders of the words; the error of a weight falls with its square root."""
FAINT = 0.08
"""Words with a smaller share of the strongest weight are not coloured."""
_FOR, _AGAINST = "188, 55, 84", "49, 104, 174"


@dataclass(frozen=True)
class WordEvidence:
    """Evidence for a label in a text, by word.

    Attributes:
        label: The label's name.
        probability: Probability of the label by text alone; None for a zero-shot model, whose
            probabilities apply to photos.
        score: The explained score: the label's log-odds, or the cosine of text and label.
        unit: Unit of the score.
        words: The words in order with their weights; positive for the label.
    """

    label: str
    probability: float | None
    score: float
    unit: "WordUnit"
    words: list[tuple[str, float]]

    def _repr_html_(self) -> str:
        return f"<div><p><b>{escape(self.label)}</b></p><p>{highlight(self)}</p></div>"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        words = [{"word": word, "weight": weight} for word, weight in self.words]
        return {"label": self.label, "probability": self.probability, "score": self.score, "unit": self.unit} | {
            "words": words
        }


def word_evidence(
    text: str, label: str, index: int, score: Score, unit: "WordUnit", how: str = "occlusion"
) -> WordEvidence:
    """Compute the weights of a text's words for a label.

    Args:
        text: The text.
        label: The label's name.
        index: Its index among the K labels.
        score: Scores texts.
        unit: Unit of the scores.
        how: "occlusion": the drop in the score without the word. A word that occurs twice, or has a synonym nearby,
            gets little. "shapley": the mean drop over random orders of the words; the weights add up to the score minus
            that of an empty text, and repeated words share. It needs captum and about 25 times as long.

    Raises:
        IntclipError: The text is empty, or the method is unknown.
        MissingExtraError: captum is not installed.
    """
    if how not in get_args(How):
        raise IntclipError(f"unknown method {how!r}: choose occlusion or shapley")
    parts = part(text)
    if not parts:
        raise IntclipError("the text has no words to explain; give one that has")
    if how == "shapley":
        whole, weights = float(score([text])[0, index]), shapley(parts, score, index)
    else:
        scores, falls = occlusion(parts, score)
        whole, weights = float(scores[index]), falls[:, index]
    probability = float(1 / (1 + np.exp(-whole))) if unit == "log-odds" else None
    return WordEvidence(label, probability, whole, unit, list(zip(parts, map(float, weights), strict=True)))


def part(text: str) -> list[str]:
    """Split a text at white space into words; into groups of words if there are more than `MOST_PARTS`."""
    words = re.findall(r"\S+", text)
    if len(words) <= MOST_PARTS:
        return words
    return [" ".join(run) for run in np.array_split(np.array(words, dtype=object), MOST_PARTS)]


def occlusion(parts: Sequence[str], score: Score) -> tuple[Array, Array]:
    """Return scores (K,) of the whole text, and their drop (n, K) without each of its n parts."""
    texts = [_join(parts)] + [_join([*parts[:i], *parts[i + 1 :]]) for i in range(len(parts))]
    scores = score(texts)
    return scores[0], scores[0] - scores[1:]


def shapley(parts: Sequence[str], score: Score, index: int, *, orders: int = SHAPLEY_ORDERS, seed: int = 0) -> Array:
    """Sample Shapley values (n,) of a text's parts for a label (captum); they sum to score(all) − score(none).

    Source: Castro, Gómez, Tejada: Polynomial calculation of the Shapley value based on sampling, 2009.
    """
    import torch

    captum = require("captum.attr", "explain")

    def read(masks: torch.Tensor) -> torch.Tensor:
        rows = masks.tolist()
        return torch.from_numpy(score([_join([w for w, kept in zip(parts, row, strict=True) if kept]) for row in rows]))

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        tool = captum.ShapleyValueSampling(read)
        found = tool.attribute(
            torch.ones(1, len(parts), dtype=torch.float64),
            baselines=0,
            target=index,
            n_samples=orders,
            perturbations_per_eval=32,
        )
    return np.asarray(found[0].numpy(), dtype=np.float64)


def highlight(evidence: WordEvidence) -> str:
    """Render the text as HTML with coloured words: red for the label, blue against it, more intense if stronger.

    The post's content is escaped. Weights are tooltips, and words against the label have a
    dotted underline, so that colour is not the only cue.
    """
    most = max((abs(weight) for _, weight in evidence.words), default=0.0)
    pieces = []
    for word, weight in evidence.words:
        share = abs(weight) / most if most else 0.0
        if share < FAINT:
            pieces.append(escape(word))
            continue
        colour = _FOR if weight > 0 else _AGAINST
        dots = "" if weight > 0 else ";text-decoration:underline dotted"
        style = f"background:rgba({colour}, {0.55 * share:.2f});color:inherit;border-radius:3px{dots}"
        pieces.append(f'<mark style="{style}" title="{weight:+.3f} {evidence.unit}">{escape(word)}</mark>')
    return " ".join(pieces)


def words_page(evidence: WordEvidence) -> str:
    """Render `highlight` as a standalone offline page."""
    caption = f"{evidence.unit} {evidence.score:.2f}"
    if evidence.probability is not None:
        caption = f"probability {evidence.probability:.3f}, {caption}"
    title = escape(evidence.label)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n</head>\n'
        '<body style="font: 17px/1.7 system-ui, sans-serif; max-width: 44em; margin: 2em auto; padding: 0 1em">\n'
        f"<h1>{title}</h1>\n<p>{escape(caption)}</p>\n<p>{highlight(evidence)}</p>\n"
        "<p>Red words support the label, dotted blue ones oppose it; hover over a word for its "
        "weight.</p>\n</body>\n</html>\n"
    )


def _join(parts: Sequence[str]) -> str:
    # Encoders do not accept empty texts; a blank one represents no words.
    return " ".join(parts) or " "
