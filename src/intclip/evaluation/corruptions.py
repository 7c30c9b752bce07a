"""A model's figures on photos that were corrupted, kind by kind, as curves over five strengths."""

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
    progress: bool = True,
) -> Curves:
    """Score a split again under every corruption and strength, with the thresholds of the clean evaluation.

    Args:
        predictor: The model.
        dataset: As it was evaluated.
        split: The split that was scored.
        clean: What `evaluate` gave on the photos as they are.
        batch_size: Photos computed at once.
        workers: Threads that decode photos.
        progress: Show a progress bar for every pass when standard error is a terminal.

    Returns:
        JSON values: "task", "clean" (headline figures) and "corrupted": kind to its figures by strength, from 1 to 5.
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
                progress=progress,
            )
            thresholds = clean.report.get("thresholds", 0.5)
            report = make_report(scores, clean.task, predictor.taxonomy, thresholds, positive_share=share)
            corrupted[kind].append(headline(report, clean.task))
    return {"task": clean.task, "clean": headline(clean.report, clean.task), "corrupted": corrupted}


def render_curves(curves: Mapping[str, Any], title: str) -> str:
    """The curves as Markdown: the main figure (mAP or accuracy) by kind and strength, and its mean over strengths."""
    key = main_figure(curves)
    clean = curves["clean"][key]
    rows = []
    for kind, figures in curves["corrupted"].items():
        values = [each[key] for each in figures]
        kept = sum(values) / len(values) / clean if clean else None
        rows.append([kind, *map(percent, values), percent(sum(values) / len(values)), percent(kept)])
    header = ["Corruption", *map(str, STRENGTHS), "Mean", "Kept (%)"]
    head = f"{TITLES[key]} (%) on corrupted photos, by strength; {percent(clean)} on the photos as they are."
    return f"# {title}\n\n{head}\n\n{markdown_table(header, rows)}"


def draw_curves(curves: Mapping[str, Any], path: Path, title: str) -> None:
    """The curves as PNG, strength 0 being the photos as they are.

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
    """The figure that tables and plots show."""
    return "mAP" if curves["task"] == "multilabel" else "accuracy"
