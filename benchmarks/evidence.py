"""Faithfulness of heat maps: deletion and insertion on the proxy intents (val), compared with random and centre maps.

    INTCLIP_DATA=/data python -m benchmarks.evidence --photos 100 --out docs/figures/evidence.json

`$INTCLIP_DATA/flickr8k` is the proxy dataset. Of each photo, drawn with a fixed seed, the most probable label is
explained. Deletion: lower is better. Insertion: higher is better. "beats random" is the share of photos for which the
map's area is better than that of a random map of the same resolution. "own map better by" is the mean lead of the
model's own map of kind "fine" over this map, with a 95 % bootstrap interval. "gradcam of the same views" is Grad-CAM on
the ten views of a photo that "fine" uses. "agreement with shuffled weights" is the rank correlation of the map with
that of the same method with shuffled weights: near 0 if the map depends on the model. `--from` skips the first photos
of the draw.
"""

import argparse
import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap

import intclip
from benchmarks.machine import write_report
from intclip.data.images import read_image
from intclip.data.loading import DRAFT_FACTOR
from intclip.data.registry import load_dataset
from intclip.errors import IntclipError
from intclip.evidence.faithfulness import center_map, deletion, insertion, random_map, rank_agreement, shuffle_weights
from intclip.evidence.heat import Heat, unit_range, upsample
from intclip.evidence.kinds import KINDS, maps_of_kind
from intclip.evidence.views import join_views, photo_views
from intclip.inference.predictor import Predictor
from intclip.methods.base import Method

OWN = "fine, fused"
SHUFFLED = 10
"""Number of photos for shuffled weights."""


def maps_of(method: Method, pixels: np.ndarray, label: int) -> dict[str, Heat]:
    """Return the method's maps of a label by kind: one per branch; of alternatives, the decisive one."""
    found: dict[str, Heat] = {}
    for kind in KINDS:
        try:
            regions = maps_of_kind(method, pixels[None], label, kind)
        except IntclipError:
            continue  # not available for this model
        deciding = "fused" if "fused" in regions else next(iter(regions))
        for branch, values in regions.items():
            if kind == "regions" or branch == deciding:
                found[f"{kind}, {branch}"] = unit_range(upsample(values, pixels.shape[-1]))
        if kind == "gradcam":
            views = [maps_of_kind(method, view[None], label, kind)[deciding] for view in photo_views(pixels)]
            found[f"gradcam of the same views, {deciding}"] = unit_range(
                upsample(join_views(np.stack(views)), pixels.shape[-1])
            )
    return found


def scorer(model: Predictor, label: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that computes probabilities of one label."""
    return lambda batch: model.predict_pixels(batch)[:, label]


def interval(values: npt.NDArray[np.float64]) -> list[float]:
    """Return the mean and its 95 % interval."""
    ends = bootstrap((values,), np.mean, method="percentile", rng=0).confidence_interval
    return [round(float(value), 4) for value in (values.mean(), ends.low, ends.high)]


def table(rows: dict[str, list[tuple[float, float]]], agreement: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return means by map, the share of photos that beat the random map, and the lead of the model's own map."""
    random, own = np.array(rows["random"]), np.array(rows[OWN])
    out = []
    for name, values in rows.items():
        areas = np.array(values)
        better = np.stack([areas[:, 0] < random[:, 0], areas[:, 1] > random[:, 1]])
        out.append(
            {
                "map": name,
                "deletion": round(float(areas[:, 0].mean()), 4),
                "insertion": round(float(areas[:, 1].mean()), 4),
                "beats random": None if name == "random" else [round(float(share), 2) for share in better.mean(axis=1)],
                "own map better by": None
                if name == OWN
                else {
                    "deletion": interval(areas[:, 0] - own[:, 0]),
                    "insertion": interval(own[:, 1] - areas[:, 1]),
                },
                "agreement with shuffled weights": (
                    round(float(np.mean(agreement[name])), 2) if name in agreement else None
                ),
            }
        )
    return out


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, help="write the report here as JSON, besides printing it")
    options.add_argument("--model", default="proxy", help="as for intclip.load; its labels must be the dataset's")
    options.add_argument("--photos", type=int, default=100, help="photos of the split")
    options.add_argument(
        "--from", dest="start", type=int, default=0, help="leave out so many of the draw's first photos"
    )
    options.add_argument("--steps", type=int, default=10, help="steps of a curve")
    options.add_argument("--seed", type=int, default=0, help="of the choice of photos and of the random maps")
    arguments = options.parse_args()
    dataset = load_dataset("proxy-intents", Path(os.environ.get("INTCLIP_DATA", "."), "flickr8k"))
    samples = dataset.splits["val"]
    chosen = np.random.default_rng(arguments.seed).permutation(len(samples))
    chosen = chosen[arguments.start : arguments.start + arguments.photos]
    model = intclip.load(arguments.model)
    method = model.method()
    shuffled = copy.deepcopy(method)
    shuffle_weights(shuffled, arguments.seed)
    preprocess = model.card.preprocessing
    rows: dict[str, list[tuple[float, float]]] = {}
    agreement: dict[str, list[float]] = {}
    for place, number in enumerate(chosen):
        photo = read_image(samples[number].image, min_side=DRAFT_FACTOR * preprocess.size)
        pixels = preprocess(photo).numpy()
        label = int(model.predict_pixels(pixels[None])[0].argmax())
        maps = {"random": random_map(preprocess.size, int(number)), "centre": center_map(preprocess.size)}
        own = maps_of(method, pixels, label)
        if place < SHUFFLED:
            for name, heat in maps_of(shuffled, pixels, label).items():
                agreement.setdefault(name, []).append(rank_agreement(heat, own[name]))
        score = scorer(model, label)
        for name, heat in (maps | own).items():
            areas = [curve(score, pixels, heat, steps=arguments.steps).area for curve in (deletion, insertion)]
            rows.setdefault(name, []).append((areas[0], areas[1]))
    write_report(
        arguments.out,
        {
            "what": f"evidence of {arguments.model} on proxy-intents, val; area under the label's probability",
            "photos": len(chosen),
            "from": arguments.start,
            "steps": arguments.steps,
            "maps": table(rows, agreement),
        },
    )


if __name__ == "__main__":
    main()
