"""`intclip fit`: from a table of labelled posts to a model, with held-out figures."""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from intclip.backbones.registry import load_backbone
from intclip.data.loading import pixel_batches
from intclip.data.sample import Dataset, Sample
from intclip.data.text_store import use_store
from intclip.errors import DatasetError
from intclip.evaluation.report import write_predictions, write_report
from intclip.evaluation.scoring import Report, Scores, headline, make_report
from intclip.files import atomic_directory, write_text
from intclip.inference.bundle import save_bundle
from intclip.inference.text_engine import use_engine
from intclip.methods.post_heads.heads import BOTH, FittedHeads
from intclip.methods.post_heads.inputs import Inputs
from intclip.methods.post_heads.model import PostHeads, PostHeadsOptions, join_inputs
from intclip.training.crossval import HeldOut, fit_and_validate
from intclip.training.experiment import check_learnable
from intclip.training.frozen import FrozenFeatures
from intclip.training.recipe_file import dump_recipe
from intclip.training.run import BUNDLE, METRICS, RECIPE

FEWEST_POSTS = 20
METHOD = "post_heads"
SPLIT = "val"
"""Split name of the cross-validated figures; those of a single channel have its name as a suffix."""
_BATCH = 32
_NAMED = 3
_log = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]
"""Called with the stage, completed and total units."""


@dataclass(frozen=True)
class Fitted:
    """Result of `fit_dataset`.

    Attributes:
        method: The fitted model.
        heads: Chosen heads and thresholds.
        dataset: The dataset; its taxonomy is exclusive for single-label tasks.
        ids: Sample ids of the N posts used.
        targets: (N, K), 0 or 1.
        held_out: Mode to its cross-validated probabilities; empty without folds.
        reports: Mode to their metrics; see `make_report`.
        facts: Settings as plain data: splits, folds, seed.
        seconds: Stage ("encode"; "fit", with the cross-validation) to its duration.
    """

    method: PostHeads
    heads: FittedHeads
    dataset: Dataset
    ids: list[str]
    targets: npt.NDArray[np.float32]
    held_out: Mapping[str, HeldOut]
    reports: Mapping[str, Report]
    facts: Mapping[str, Any]
    seconds: dict[str, float]

    @property
    def mode(self) -> str:
        """Heads for posts with all channels."""
        return BOTH if len(self.method.channels) > 1 else self.method.channels[0]

    def metrics(self) -> dict[str, Any]:
        """Return splits as in the metrics of a training run, and each channel's heads."""
        splits = {}
        for mode in self.reports:
            figures = self.figures(mode)
            splits[self.split(mode)] = {
                "photos": len(self.ids),
                "headline": {key: found["value"] for key, found in figures.items()},
                "intervals": {key: [found["low"], found["high"]] for key, found in figures.items()},
            }
        choices = self.heads.choices.items()
        heads = {name: {"votes": choice.votes, "inner_mAP": choice.ranking} for name, choice in choices}
        return splits | {"heads": heads}

    def figures(self, mode: str) -> dict[str, dict[str, float]]:
        """Return metric to {"value", "low", "high"} on held-out posts, with 95 % intervals."""
        report, task = self.reports[mode], self.dataset.task
        bounds = {key: report["intervals"][key] for key in headline(report, task)}
        return {key: {"value": report[key], "low": low, "high": high} for key, (low, high) in bounds.items()}

    def split(self, mode: str) -> str:
        """Return the split name of a mode's cross-validated metrics."""
        return SPLIT if mode == self.mode else f"{SPLIT}-{mode}"


def fit_dataset(
    dataset: Dataset,
    options: PostHeadsOptions | None = None,
    *,
    splits: Sequence[str] = ("train",),
    backbone: str = "lite",
    folds: int = 5,
    progress: Progress | None = None,
) -> Fitted:
    """Fit a model on posts.

    Posts that lack a channel, have unknown labels or unreadable photos are
    skipped in fitting (not in prediction).

    Args:
        dataset: Photos, texts, or both, with labels.
        options: Channels (those that no post has are dropped), text encoder, head and seed.
        splits: Splits to fit on.
        backbone: Name of the frozen backbone.
        folds: Number of folds of the nested cross-validation; 0 skips it.
        progress: See `Progress`.

    Raises:
        DatasetError: A split is missing, there are too few posts, or no label can be learned.
    """
    options = options or PostHeadsOptions(channels=("image", "text"))
    samples, used = usable_samples(dataset, splits, options.channels)
    # A table of posts may be single-label with any taxonomy; the model knows it only from its taxonomy.
    taxonomy = replace(dataset.taxonomy, exclusive=dataset.task == "singlelabel")
    dataset = replace(dataset, taxonomy=taxonomy)
    clock = time.perf_counter()
    tower = load_backbone(backbone)
    method = PostHeads(tower, taxonomy, options.model_copy(update={"channels": tuple(used)}))
    for each in (tower, method.text_backbone) if "text" in used else (tower,):
        use_engine(each.text)
        use_store(each)
    method.encode_labels()
    inputs, kept = encode_samples(method, samples, progress)
    samples = [samples[row] for row in kept]
    targets = (np.stack([sample.targets for sample in samples]) >= dataset.positive_share).astype(np.float32)
    check_learnable(replace(dataset, splits={"train": samples}))
    seconds = {"encode": time.perf_counter() - clock}
    seed, head = options.seed, options.head
    ids = [sample.id for sample in samples]
    clock = time.perf_counter()
    tell = None if progress is None else lambda done, total: progress("fitting", done, total)
    heads, held_out = fit_and_validate(inputs, targets, taxonomy, folds=folds, seed=seed, head=head, report=tell)
    seconds["fit"] = time.perf_counter() - clock
    reports = {
        mode: make_report(
            Scores(ids, found.probabilities.astype(np.float32), targets, []),
            dataset.task,
            taxonomy,
            found.thresholds,
            positive_share=0.5,
            draws=1000,
        )
        for mode, found in held_out.items()
    }
    facts = {"backbone": backbone, "splits": list(splits), "folds": folds}
    facts |= method.options.model_dump(mode="json", exclude={"terms"})
    return Fitted(method.with_fitted(heads), heads, dataset, ids, targets, held_out, reports, facts, seconds)


def write_fitted(
    fitted: Fitted, out: str | os.PathLike[str], *, data: Mapping[str, Any] | None = None, overwrite: bool = False
) -> Path:
    """Write a run's folder: the bundle, and the cross-validated reports and predictions as split "val".

    Args:
        fitted: The model.
        out: The folder, written atomically.
        data: Name, root and options of the dataset, for commands that use its photos or its test split.
        overwrite: Replace an existing folder.

    Raises:
        StorageError: The folder exists, or cannot be written.
    """
    dataset, method = fitted.dataset, fitted.method
    section: dict[str, Any] = {
        "name": None,
        "root": None,
        "options": {},
        "test": "test",
        "positive_share": dataset.positive_share,
    }
    section |= dict(data or {})
    recipe = {"data": section, "fit": dict(fitted.facts)}
    thresholds = fitted.heads.thresholds
    with atomic_directory(out, overwrite=overwrite) as partial:
        for mode, report in fitted.reports.items():
            found = fitted.held_out[mode].probabilities.astype(np.float32)
            title = f"{Path(out).name}: {dataset.name}, {mode}, nested cross-validation"
            write_report(partial, f"report-{fitted.split(mode)}", report, dataset.task, title)
            scores = Scores(fitted.ids, found, fitted.targets, [])
            file = partial / f"predictions-{fitted.split(mode)}.parquet"
            levels = None if dataset.task == "singlelabel" else fitted.held_out[mode].thresholds
            write_predictions(file, scores, dataset.taxonomy.names, thresholds=levels)
        save_bundle(
            partial / BUNDLE,
            method,
            thresholds=thresholds[fitted.mode],
            channel_thresholds={name: thresholds[name] for name in method.channels if name != fitted.mode},
            recipe=recipe | {"data": section | {"root": None}},
            metrics=fitted.metrics(),
        )
        write_text(partial / RECIPE, dump_recipe(recipe))
        write_text(partial / METRICS, json.dumps(fitted.metrics() | {"seconds": fitted.seconds}, indent=1) + "\n")
    return Path(out)


def usable_samples(dataset: Dataset, splits: Sequence[str], channels: Sequence[str]) -> tuple[list[Sample], list[str]]:
    """Return samples with all labels known and all channels that any sample has, and these channels.

    Logs the number of other samples: both channels are fitted on the same posts.

    Raises:
        DatasetError: A split is missing, or too few samples are left.
    """
    if missing := [split for split in splits if split not in dataset.splits]:
        raise DatasetError(f"{dataset.name} has no split {missing[0]!r}; its splits: {', '.join(dataset.splits)}")
    everything = [sample for split in splits for sample in dataset.splits[split]]
    labelled = [sample for sample in everything if not np.isnan(sample.targets).any()]
    gone = [sample for sample in everything if isinstance(sample.image, Path) and not sample.image.exists()]

    def has(sample: Sample, channel: str) -> bool:
        if channel == "text":
            return bool(sample.text and sample.text.strip())
        return sample.image is not None and not (isinstance(sample.image, Path) and not sample.image.exists())

    used = [name for name in channels if any(has(sample, name) for sample in labelled)]
    samples = [sample for sample in labelled if used and all(has(sample, name) for name in used)]
    if "image" in channels and gone:
        _log.warning("%s: %s", dataset.name, _missing(gone))
    if len(samples) < FEWEST_POSTS:
        lost = f"; {_missing(gone)}" if "image" in channels and gone else ""
        raise DatasetError(
            f"{dataset.name} has {len(samples)} posts with all labels known and {' and '.join(channels)}; "
            f"fit needs at least {FEWEST_POSTS}: label more, or fit one channel (--channel){lost}"
        )
    if len(samples) < len(everything):
        lacking, left = " or ".join([*used, "labels"]), len(everything) - len(samples)
        _log.info("%s: %d of %d posts lack %s and are skipped", dataset.name, left, len(everything), lacking)
    return samples, used


def encode_samples(
    method: PostHeads, samples: Sequence[Sample], progress: Progress | None = None
) -> tuple[dict[str, Inputs], list[int]]:
    """Encode samples that have all of the method's channels; return inputs and indices of readable samples.

    Raises:
        DatasetError: No photo could be read.
    """
    kept, inputs = list(range(len(samples))), dict[str, Inputs]()
    if "image" in method.channels:
        inputs["image"], kept = _photos(method, samples, progress)
    if "text" in method.channels:
        if progress is not None:
            progress("reading text", 0, len(kept))
        inputs["text"] = method.text_inputs([samples[row].text or "" for row in kept])
    return inputs, kept


def _photos(method: PostHeads, samples: Sequence[Sample], progress: Progress | None) -> tuple[Inputs, list[int]]:
    backbone = method.backbone
    frozen = FrozenFeatures(backbone, method.needs, device=torch.device("cpu"))
    parts: list[Inputs] = []
    kept: list[int] = []
    failed: list[str] = []
    for batch in pixel_batches(samples, backbone.preprocess, _BATCH):
        failed += [str(error) for _, error in batch.errors]
        if len(batch.indices):
            parts.append(method.photo_inputs(frozen(batch.pixels)["deep"]))
            kept += batch.indices.tolist()
        if progress is not None:
            progress("reading photos", len(kept) + len(failed), len(samples))
    if not parts:
        raise DatasetError(f"none of the {len(samples)} photos could be read; the first: {failed[0]}")
    if failed:
        more = f"; and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        _log.warning(
            "%d of %d photos could not be read; their posts are skipped: %s%s",
            len(failed), len(samples), "; ".join(failed[:_NAMED]), more,
        )  # fmt: skip
    return join_inputs(parts), kept


def _missing(samples: Sequence[Sample]) -> str:
    """Format the missing photos."""
    named = ", ".join(str(sample.image) for sample in samples[:_NAMED])
    more = f" and {len(samples) - _NAMED} more" if len(samples) > _NAMED else ""
    return f"photos not found: {named}{more}"
