"""Metrics of a model on corrupted photos, by kind and strength."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intclip.data.corruptions import CORRUPTIONS, STRENGTHS, Corruption
from intclip.data.sample import Dataset
from intclip.evaluation.evaluate import Evaluation, align_targets, score_photos
from intclip.evaluation.report import TITLES, markdown_table, percent
from intclip.evaluation.scoring import headline, make_report
from intclip.extras import require
from intclip.files import atomic_path
from intclip.inference.predictor import Predictor

Curves = dict[str, Any]


def corruption_curves(
    predictor: Predictor,
    dataset: Dataset,
    split: str,
    clean: Evaluation,
    *,
    batch_size: int = 32,
    workers: int | None = None,
) -> Curves:
    """Score a split again under every corruption and strength, with the thresholds of the clean evaluation.

    Args:
        predictor: The model.
        dataset: The evaluated dataset.
        split: The scored split.
        clean: Result of `evaluate` on clean photos.
        batch_size: Photos per batch.
        workers: Threads that decode photos.

    Returns:
        JSON values: "task", "clean" (headline metrics) and "corrupted": kind to its metrics by strength, from 1 to 5.
    """
    targets = align_targets(dataset.targets(split), dataset.taxonomy, predictor.taxonomy)
    share = clean.report.get("positive_share", 0.5)
    corrupted: dict[str, list[dict[str, float]]] = {}
    for kind in CORRUPTIONS:
        corrupted[kind] = []
        for strength in STRENGTHS:
            scores, _ = score_photos(
                predictor,
                dataset.splits[split],
                targets,
                change=Corruption(kind, strength),
                batch_size=batch_size,
                workers=workers,
            )
            report = make_report(scores, clean.task, predictor.taxonomy, clean.thresholds, positive_share=share)
            corrupted[kind].append(headline(report, clean.task))
    return {"task": clean.task, "clean": headline(clean.report, clean.task), "corrupted": corrupted}


def render_curves(curves: Mapping[str, Any], title: str) -> str:
    """Render the curves as Markdown: the main metric (mAP or accuracy) by kind and strength, and its mean."""
    key = main_figure(curves)
    clean = curves["clean"][key]
    rows = []
    for kind, figures in curves["corrupted"].items():
        values = [each[key] for each in figures]
        kept = sum(values) / len(values) / clean if clean else None
        rows.append([kind, *map(percent, values), percent(sum(values) / len(values)), percent(kept)])
    header = ["Corruption", *map(str, STRENGTHS), "Mean", "Retained (%)"]
    head = f"{TITLES[key]} (%) on corrupted photos, by strength; {percent(clean)} on clean photos."
    return f"# {title}\n\n{head}\n\n{markdown_table(header, rows)}"


def draw_curves(curves: Mapping[str, Any], path: Path, title: str) -> None:
    """Plot the curves as PNG; strength 0 is clean.

    Raises:
        MissingExtraError: The extra `train` is not installed.
        StorageError: It cannot be written.
    """
    key = main_figure(curves)
    figure = require("matplotlib.figure", "train").Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for kind, figures in curves["corrupted"].items():
        values = [100 * each[key] for each in (curves["clean"], *figures)]
        axes.plot(range(len(values)), values, marker="o", markersize=4, label=kind)
    axes.set(xlabel="strength", ylabel=f"{TITLES[key]} (%)", title=title, ylim=(0, None))
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    with atomic_path(path) as partial:
        partial.write_bytes(buffer.getvalue())


def main_figure(curves: Mapping[str, Any]) -> str:
    """Return the metric shown in tables and plots."""
    return "mAP" if curves["task"] == "multilabel" else "accuracy"
