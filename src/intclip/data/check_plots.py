"""Plots of `intclip data check`."""

import io
from pathlib import Path

import numpy as np

from intclip.data.check import Check
from intclip.extras import require
from intclip.files import atomic_path


def draw(check: Check, folder: Path) -> list[Path]:
    """Draw class counts, co-occurrence and shift between splits as PNGs into a folder.

    Raises:
        MissingExtraError: The extra `train` is not installed.
        StorageError: The folder cannot be written.
    """
    figure_of = require("matplotlib.figure", "train").Figure
    order = np.argsort(-np.sum([check.positives[split] for split in check.positives] or [[0]], axis=0), kind="stable")
    names = [check.labels[k][:40] for k in order]
    height = max(3.0, 0.28 * len(names))

    counts = figure_of(figsize=(8, height), layout="constrained")
    axes = counts.subplots()
    left = np.zeros(len(names))
    for split, positives in check.positives.items():
        values = np.array(positives)[order]
        axes.barh(names, values, left=left, label=split)
        left += values
    axes.invert_yaxis()
    axes.set(xlabel="positive samples", title=f"{check.dataset}: class counts")
    axes.legend()

    together = figure_of(figsize=(height + 3, height + 2), layout="constrained")
    axes = together.subplots()
    matrix = check.cooccurrence[np.ix_(order, order)].astype(float)
    conditional = matrix / np.maximum(matrix.diagonal()[:, None], 1)
    image = axes.imshow(conditional, vmin=0, vmax=1, cmap="viridis")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set_title(f"{check.dataset}: share of a row's positives that are also positive in the column")
    together.colorbar(image, shrink=0.7)
    figures = {"class_counts": counts, "cooccurrence": together}

    for pair, rows in check.shift.items():
        shift = figure_of(figsize=(8, height), layout="constrained")
        axes = shift.subplots()
        by_label = {row["label"]: row for row in rows}
        ordered = [by_label[check.labels[k]] for k in order]
        places = np.arange(len(ordered))
        first, _, second = pair.partition(" – ")
        axes.barh(places - 0.2, [row["first"] for row in ordered], height=0.4, label=first)
        axes.barh(places + 0.2, [row["second"] for row in ordered], height=0.4, label=second)
        axes.set_yticks(
            places, [f"{name}{' *' if abs(row['z']) > 3 else ''}" for name, row in zip(names, ordered, strict=True)]
        )
        axes.invert_yaxis()
        axes.set(xlabel="share of samples (* differs by over three standard errors)", title=f"{check.dataset}: {pair}")
        axes.legend()
        figures[f"shift_{first}_{second}"] = shift

    paths = []
    for name, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120)
        with atomic_path(folder / f"{name}.png") as partial:
            partial.write_bytes(buffer.getvalue())
        paths.append(folder / f"{name}.png")
    return paths
