"""Effect of heads for few labels and of a second channel, on real posts.

    INTCLIP_DATA=… python -m benchmarks.posts descriptions   # Intentonomy's val descriptions, nested cross-validation
    INTCLIP_DATA=… python -m benchmarks.posts curve          # the same on 50, 100, 200 and all posts
    INTCLIP_DATA=… python -m benchmarks.posts channels       # mvsa and memes: image, text, both; three seeds
    INTCLIP_DATA=… python -m benchmarks.posts nested memes   # the same by nested cross-validation within train

Encoded posts are cached in `--cache`. Times are CPU time (all threads), after encoding.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from intclip.backbones import load_backbone
from intclip.cli.common import load_named_dataset
from intclip.data.check import check_dataset
from intclip.data.sample import Dataset
from intclip.data.splitting import stratified_folds
from intclip.evaluation.scoring import Scores, Task, headline, make_report
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.post_heads.fusion import probabilities
from intclip.methods.post_heads.heads import fit_heads
from intclip.methods.post_heads.inputs import Inputs, count_terms
from intclip.methods.post_heads.model import PostHeads, PostHeadsOptions
from intclip.metrics import mean_average_precision
from intclip.thresholds import tune_threshold
from intclip.training.crossval import fit_and_validate
from intclip.training.fitting import encode_samples, usable_samples

SEEDS = (0, 1, 2)
Array = npt.NDArray[np.float64]
Posts = tuple[dict[str, Inputs], Array, list[str]]


def dataset_of(name: str) -> Dataset:
    """Load the dataset, with an exclusive taxonomy if every post has exactly one label."""
    dataset = load_named_dataset(name, None, None)
    return replace(dataset, taxonomy=replace(dataset.taxonomy, exclusive=dataset.task == "singlelabel"))


def encoded(dataset: Dataset, split: str, cache: Path, tag: str = "") -> Posts:
    """Return inputs of both channels, targets (N, K) and ids of a split, from the cache if possible."""
    samples, used = usable_samples(dataset, [split], ("text", "image"))
    file = cache / f"{dataset.name}-{split}{tag}.npz"
    if not file.is_file():
        method = PostHeads(load_backbone("lite"), dataset.taxonomy, PostHeadsOptions.model_validate({"channels": used}))
        method.encode_labels()
        inputs, kept = encode_samples(method, samples)
        arrays = {f"{c}/{block}": array for c, r in inputs.items() for block, array in r.blocks.items()}
        arrays |= {f"{c}/anchors": r.anchors for c, r in inputs.items()} | {"kept": np.array(kept)}
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(file, allow_pickle=False, **arrays)
    stored = np.load(file)
    samples = [samples[row] for row in stored["kept"]]
    targets = (np.stack([s.targets for s in samples]) >= dataset.positive_share).astype(np.float64)
    texts = [sample.text or "" for sample in samples]
    inputs = {}
    for channel in used:
        blocks = {k.partition("/")[2]: stored[k] for k in stored.files if k.startswith(f"{channel}/")}
        terms = count_terms(texts) if channel == "text" else None
        inputs[channel] = Inputs(blocks, blocks.pop("anchors"), terms)
    return inputs, targets, [sample.id for sample in samples]


def row(found: Array, thresholds: float | Array, targets: Array, taxonomy: Taxonomy) -> str:
    """Return headline figures with 95 % intervals."""
    ids = [str(i) for i in range(len(targets))]
    scores = Scores(ids, found.astype(np.float32), targets.astype(np.float32), [])
    task: Task = "singlelabel" if taxonomy.exclusive else "multilabel"
    report = make_report(scores, task, taxonomy, thresholds, positive_share=0.5, draws=1000)
    bounds = {key: report["intervals"][key] for key in headline(report, task)}
    return " | ".join(f"{100 * report[k]:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for k, (low, high) in bounds.items())


def logistic(x: Array, targets: Array, seed: int, weight: str | None, thresholds: str) -> tuple[Array, Array]:
    """Fit logistic regression on MiniLM embeddings, in the folds of `fit_and_validate`; thresholds are tuned inside."""

    def fit(train: np.ndarray, test: np.ndarray) -> Array:
        scores = np.zeros((len(test), targets.shape[1]))
        for k in np.flatnonzero(targets[train].sum(axis=0)):
            model = LogisticRegression(class_weight=weight, max_iter=500).fit(x[train], targets[train, k])
            scores[:, k] = model.predict_proba(x[test])[:, 1]
        return scores

    found, levels = np.zeros(targets.shape), np.full(targets.shape, 0.5)
    for train, test in stratified_folds(targets, 5, seed):
        found[test] = fit(train, test)
        if thresholds != "0.5":
            inner = np.zeros((len(train), targets.shape[1]))
            for a, b in stratified_folds(targets[train], 5, seed + 1):
                inner[b] = fit(train[a], train[b])
            one = thresholds == "one"
            grid = np.arange(0.02, 0.98, 0.02)
            levels[test] = tune_threshold(inner, targets[train], grid=grid, per_class=not one, shrinkage=10.0)
    return found, levels


def descriptions(cache: Path) -> None:
    dataset = dataset_of("intentonomy")
    taxonomy = dataset.taxonomy
    kinds = {
        "": taxonomy,
        "-definitions": replace(taxonomy, written=()),
        "-names": replace(taxonomy, written=(), definitions={}),
    }
    print("| head | macro F1 | micro F1 | samples F1 | mAP |\n|---|---|---|---|---|")
    inputs, targets, _ = encoded(dataset, "val", cache)
    x = inputs["text"].blocks["text"].astype(np.float64)
    for weight in (None, "balanced"):
        for thresholds in ("0.5", "one", "per class"):
            found, levels = logistic(x, targets, 0, weight, thresholds)
            scores = row(found, levels, targets, taxonomy)
            print(f"| logistic regression, weights {weight}, thresholds {thresholds} | {scores} |", flush=True)
    for tag, labels in kinds.items():
        inputs, targets, _ = encoded(replace(dataset, taxonomy=labels), "val", cache, tag)
        start = time.process_time()
        held = fit_and_validate(inputs, targets, labels)[1]["text"]
        spent = time.process_time() - start
        scores = row(held.probabilities, held.thresholds, targets, labels)
        print(f"| fit{tag or ' (sentences and definitions)'}, {spent:.0f} s | {scores} |", flush=True)


def curve(cache: Path) -> None:
    dataset = dataset_of("intentonomy")
    dataset = replace(dataset, taxonomy=replace(dataset.taxonomy, written=()))
    inputs, targets, _ = encoded(dataset, "val", cache, "-definitions")
    print("| posts | seconds | rank | `fit` | best single head | logistic regression |\n|---|---|---|---|---|---|")
    for count in (50, 100, 200, len(targets) - 100):
        values: dict[str, list[float]] = {}
        ranks, seconds = [], []
        for seed in SEEDS:
            train, test = _draw(targets, count, seed)
            small = {name: channel.take(train) for name, channel in inputs.items()}
            big = {name: channel.take(test) for name, channel in inputs.items()}
            start = time.process_time()
            fitted = fit_heads(small, targets[train], dataset.taxonomy, seed=seed)
            seconds.append(time.process_time() - start)
            ranking = fitted.choices["text"].ranking
            by_head = {"default": _map(fitted.logits(big)["text"], targets[test])}
            for head in ranking:
                one = fit_heads(small, targets[train], dataset.taxonomy, seed=seed, head=head)
                by_head[head] = _map(one.logits(big)["text"], targets[test])
            x = inputs["text"].blocks["text"]
            scores = np.zeros((len(test), len(dataset.taxonomy)))
            for k in np.flatnonzero(targets[train].sum(axis=0)):
                lr = LogisticRegression(class_weight="balanced", max_iter=500).fit(x[train], targets[train, k])
                scores[:, k] = lr.predict_proba(x[test])[:, 1]
            by_head["logistic regression"] = _map(scores, targets[test])
            names = [h for h in by_head if h not in ("default", "logistic regression")]
            ranks.append(1 + sum(by_head[h] > by_head[next(iter(ranking))] for h in names))
            for name, value in by_head.items():
                values.setdefault(name, []).append(value)
        mean = {name: 100 * float(np.mean(v)) for name, v in values.items()}
        single = max((h for h in mean if h not in ("default", "ensemble", "logistic regression")), key=mean.__getitem__)
        print(
            f"| {count} | {np.mean(seconds):.1f} | {', '.join(map(str, ranks))} of {len(names)} "
            f"| {mean['ensemble']:.1f} | {single} {mean[single]:.1f} | {mean['logistic regression']:.1f} |",
            flush=True,
        )


def _draw(targets: Array, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(seed).permutation(len(targets))
    return np.sort(order[:count]), np.sort(order[-100:] if count > len(order) - 300 else order[count:])


def _map(scores: Array, targets: Array) -> float:
    return mean_average_precision(scores, targets)


def channels(cache: Path, names: list[str]) -> None:
    print("| dataset | seed | reads | posts | fit | figures |\n|---|---|---|---|---|---|")
    for name in names:
        dataset = dataset_of(name)
        alike = [group for group in check_dataset(dataset).leaks if {"train", "val"} <= {split for split, _ in group}]
        near = {sample for group in alike for split, sample in group if split == "val"}
        taxonomy = dataset.taxonomy
        train, y, _ = encoded(dataset, "train", cache)
        test, z, ids = encoded(dataset, "val", cache)
        for seed in SEEDS:
            start = time.process_time()
            fitted = fit_heads(train, y, taxonomy, seed=seed)
            spent = time.process_time() - start
            for mode, logits in fitted.logits(test).items():
                found = probabilities(logits, exclusive=taxonomy.exclusive)
                parts = {"": np.ones(len(ids), dtype=bool)}
                if near:
                    parts[" without near-duplicates"] = np.array([i not in near for i in ids])
                for what, kept in parts.items():
                    scores = row(found[kept], fitted.thresholds[mode], z[kept], taxonomy)
                    print(f"| {name}{what} | {seed} | {mode} | {kept.sum()} | {spent:.0f} s | {scores} |", flush=True)


def within_train(cache: Path, names: list[str], seeds: list[int]) -> None:
    print("| dataset | seed | reads | posts | figures |\n|---|---|---|---|---|")
    for name in names:
        dataset = dataset_of(name)
        inputs, targets, _ = encoded(dataset, "train", cache)
        for seed in seeds:
            for mode, held in fit_and_validate(inputs, targets, dataset.taxonomy, seed=seed)[1].items():
                scores = row(held.probabilities, held.thresholds, targets, dataset.taxonomy)
                if dataset.taxonomy.exclusive:
                    scores += f" | AUC {100 * roc_auc_score(targets, held.probabilities):.1f}"
                print(f"| {name} | {seed} | {mode} | {len(targets)} | {scores} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("descriptions", "curve", "channels", "nested"))
    parser.add_argument("names", nargs="*", default=["memes", "mvsa"], help="of channels and nested: the datasets")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS, help="of nested")
    parser.add_argument("--cache", type=Path, default=Path(".cache/posts"))
    given = parser.parse_args()
    if given.what == "nested":
        within_train(given.cache, given.names, given.seeds)
    elif given.what == "channels":
        channels(given.cache, given.names)
    else:
        {"descriptions": descriptions, "curve": curve}[given.what](given.cache)


if __name__ == "__main__":
    main()
