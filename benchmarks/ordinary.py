"""Plausibility of a model's predictions: everyday photos, each with all labels that a person finds plausible.

    python -m benchmarks.ordinary $INTCLIP_DATA/ordinary/plausible.json --model lite

The file maps a photo's path, relative to the file, to its plausible labels. Labels at or above their threshold are
predicted ("said"). The last table compares probabilities with the share of plausible labels (reliability).
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import TypedDict
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from intclip.inference.loading import load
from intclip.labels.scenes import Scenes
from intclip.labels.taxonomy import Taxonomy

CONFIDENT = 0.8
BINS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)


class Plausibility(TypedDict):
    """Results of `measure`; shares in percent, None if undefined.

    Attributes:
        photos: Number of photos.
        plausible: Mean number of plausible labels per photo.
        top1: Share of photos whose most probable label is plausible.
        top3: Share of plausible labels among the three most probable ones.
        said: Mean number of predicted labels per photo.
        said_plausible: Share of these that are plausible.
        clear: Share of photos with a predicted label.
        confident: Share of photos whose most probable label has `CONFIDENT` or more.
        confident_plausible: Share of these whose label is plausible.
        reliability: Lower edge, upper edge, number, mean probability and plausible share of each bin.
    """

    photos: int
    plausible: float
    top1: float
    top3: float
    said: float
    said_plausible: float | None
    clear: float
    confident: int
    confident_plausible: float | None
    reliability: list[tuple[float, float, int, float, float]]


def measure(
    probabilities: npt.NDArray[np.floating], thresholds: npt.NDArray[np.floating], plausible: npt.NDArray[np.bool_]
) -> Plausibility:
    """Compare probabilities (N, K) with plausible labels (N, K); thresholds (K,)."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    best = np.take_along_axis(plausible, order, axis=1)
    said = probabilities >= thresholds
    sure = probabilities.max(axis=1) >= CONFIDENT
    bins = []
    for low, high in pairwise(BINS):
        inside = (probabilities >= low) & ((probabilities < high) | (high == 1))
        if inside.any():
            share = 100 * float(plausible[inside].mean())
            bins.append((low, high, int(inside.sum()), 100 * float(probabilities[inside].mean()), share))
    return Plausibility(
        photos=len(plausible),
        plausible=float(plausible.sum(axis=1).mean()),
        top1=100 * float(best[:, 0].mean()),
        top3=100 * float(best[:, :3].mean()),
        said=float(said.sum(axis=1).mean()),
        said_plausible=100 * float(plausible[said].mean()) if said.any() else None,
        clear=100 * float(said.any(axis=1).mean()),
        confident=int(sure.sum()),
        confident_plausible=100 * float(best[sure, 0].mean()) if sure.any() else None,
        reliability=bins,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default="lite")
    parser.add_argument("--sentences", default="11-15")
    parser.add_argument("--unrated", action="store_true", help="without the scenes' ratings, as for labels of your own")
    parser.add_argument("--json", action="store_true", help="print JSON instead")
    asked = parser.parse_args()
    rows = json.loads(asked.file.read_text(encoding="utf-8"))
    if asked.unrated:
        with patch.object(Scenes, "judged", _unrated):
            predictor = load(asked.model, sentences=asked.sentences, engine="torch")  # graphs are cached
    else:
        predictor = load(asked.model, sentences=asked.sentences)
    plausible = np.zeros((len(rows), len(predictor.taxonomy)), dtype=np.bool_)
    for place, labels in enumerate(rows.values()):
        plausible[place, [predictor.taxonomy.index(label) for label in labels]] = True
    found = predictor.predict([asked.file.parent / name for name in rows])
    result = measure(np.stack([one.probabilities for one in found]), predictor.thresholds, plausible)
    if asked.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{result['photos']} photos, {result['plausible']:.1f} plausible labels a photo, model {asked.model}")
    print(f"most probable label plausible      {_percent(result['top1'])}")
    print(f"three most probable plausible      {_percent(result['top3'])}")
    print(f"said labels plausible              {_percent(result['said_plausible'])} of {result['said']:.2f} a photo")
    print(f"photos with a label said           {_percent(result['clear'])}")
    confident = f"{_percent(result['confident_plausible'])} of {result['confident']} photos"
    print(f"plausible where p >= {CONFIDENT}          {confident}")
    print("probability      pairs   mean p   plausible")
    for low, high, count, mean, share in result["reliability"]:
        print(f"{low:4.2f} to {high:4.2f}   {count:7,}   {mean:5.1f} %    {share:5.1f} %")


def _unrated(scenes: Scenes, taxonomy: Taxonomy) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    return np.zeros((len(scenes.texts), len(taxonomy)), dtype=np.float32), np.zeros(len(taxonomy), dtype=np.bool_)


def _percent(value: float | None) -> str:
    return "    –" if value is None else f"{value:5.1f} %"


if __name__ == "__main__":
    main()
