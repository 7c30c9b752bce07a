"""Score how well a taxonomy's texts rank photos or descriptions, without training.

Class texts and items are embedded, and each class ranks the items by cosine. Nothing is fitted:
average precision needs no threshold, and F1 is taken where precision equals recall (a class predicts as many items as
it has positives), so that forms are comparable at any level of cosines.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intclip.errors import DatasetError
from intclip.labels.taxonomy import Taxonomy
from intclip.metrics import multilabel_report

Floats = npt.NDArray[np.floating[Any]]
Encoder = Callable[[Sequence[str]], Floats]
"""Texts to embeddings (T, D), of any norm."""


@dataclass(frozen=True)
class FormScore:
    """Ranking scores of one form.

    Attributes:
        form: Such as "11-15".
        mAP: Mean over classes of the non-interpolated average precision, in 0…1.
        mAP_voc: The same after Pascal VOC's interpolation.
        macro_f1: Mean over classes of F1 at the break-even of precision and recall.
        ranking: Mean label ranking average precision over items. It compares
            cosines of different classes, which `mAP` does not.
        per_class: Class name to {"AP", "f1", "support"}.
    """

    form: str
    mAP: float
    mAP_voc: float
    macro_f1: float
    ranking: float
    per_class: dict[str, dict[str, float]]


def score_forms(
    taxonomy: Taxonomy, items: Floats, targets: Floats, encode: Encoder, forms: Sequence[str]
) -> list[FormScore]:
    """Score several forms of a taxonomy on the same items.

    Args:
        taxonomy: K classes.
        items: Embeddings (N, D) of photos or descriptions.
        targets: (N, K), 0/1; NaN where unknown.
        encode: The text tower of the same space.
        forms: Some of `intclip.labels.FORMS`.

    Raises:
        TaxonomyError: The form is unknown.
        DatasetError: No item has a label.
    """
    if not (targets >= 0.5).any():
        raise DatasetError(f"no item has a label of {taxonomy.name}; check that the ids of labels and items match")
    unit = _unit(items)
    return [_score(taxonomy, form, unit @ _unit(encode(taxonomy.sentences(form))).T, targets) for form in forms]


def _score(taxonomy: Taxonomy, form: str, cosines: Floats, targets: Floats) -> FormScore:
    known = ~np.isnan(targets)
    positive = np.where(known, targets, 0) >= 0.5
    report = multilabel_report(cosines, targets, thresholds=_break_even(cosines, positive, known))
    classes = report["per_class"]
    rows = zip(taxonomy.names, classes["AP"], classes["f1"], classes["support"], strict=True)
    return FormScore(
        form=form,
        mAP=report["mAP"],
        mAP_voc=report["mAP_voc"],
        macro_f1=report["macro_f1"],
        ranking=_label_ranking(cosines, positive, known),
        per_class={name: {"AP": float(ap), "f1": float(f1), "support": int(n)} for name, ap, f1, n in rows},
    )


def _unit(embeddings: Floats) -> Floats:
    rows: Floats = np.asarray(embeddings, dtype=np.float64)
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def _break_even(cosines: Floats, positive: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_]) -> Floats:
    """Return each class's cosine at rank n, n its number of positives; above all items if it has none."""
    levels = np.full(cosines.shape[1], np.inf)
    for k, count in enumerate(positive.sum(axis=0)):
        if count:
            levels[k] = np.sort(cosines[known[:, k], k])[-count]
    return levels


def _label_ranking(cosines: Floats, positive: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_]) -> float:
    """Label ranking average precision over items with a label (ties count against)."""
    values = []
    for row, own, there in zip(cosines, positive, known, strict=True):
        if own.any():
            scores, relevant = row[there], own[there]
            ahead = (scores[None, :] >= scores[relevant][:, None]).sum(axis=1)
            own_ahead = (scores[relevant][None, :] >= scores[relevant][:, None]).sum(axis=1)
            values.append(float((own_ahead / ahead).mean()))
    return float(np.mean(values))


def join_descriptions(
    descriptions: Mapping[str, Any], labels: Mapping[str, npt.NDArray[np.float32]], where: str
) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Return texts (N) and targets (N, K) of common ids; several texts of an id are joined.

    Raises:
        DatasetError: A description is not a text, or the two files share no id.
    """
    texts, targets = [], []
    for identifier, text in descriptions.items():
        if isinstance(text, list) and all(isinstance(part, str) for part in text):
            text = " ".join(text)
        if not isinstance(text, str):
            raise DatasetError(f"{where}: {identifier!r} has {text!r:.40} instead of a text; write id: text")
        if identifier in labels and text.strip():
            texts.append(text)
            targets.append(labels[identifier])
    if not texts:
        raise DatasetError(f"{where}: none of its {len(descriptions)} ids has a label; give the labels of these photos")
    return texts, np.stack(targets)
