"""What heads for few labels and a second channel bring, on real posts.

    INTCLIP_DATA=… python -m benchmarks.posts descriptions   # Intentonomy's val descriptions, nested cross-validation
    INTCLIP_DATA=… python -m benchmarks.posts curve          # the same on 50, 100, 200 and all posts
    INTCLIP_DATA=… python -m benchmarks.posts channels       # mvsa and memes: image, text, both; three seeds
    INTCLIP_DATA=… python -m benchmarks.posts nested memes   # the same by nested cross-validation within train

Encoded posts are kept in `--cache`. Times are of the processor (all threads), after encoding.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from intclip.backbones import load_backbone
from intclip.data.check import check_dataset
from intclip.data.registry import load_dataset
from intclip.inference.fitting import encode_samples, usable_samples
from intclip.labels.taxonomy import Taxonomy
from intclip.posts.crossval import figures, nested
from intclip.posts.encoders import Raw, class_sentences
from intclip.posts.heads import Array
from intclip.posts.model import fit_posts
from intclip.posts.selection import deal
from intclip.thresholds import tune_threshold

SEEDS = (0, 1, 2)
Posts = tuple[dict[str, Raw], Array, list[str]]


def encoded(name: str, split: str, cache: Path, sentences: list[list[str]], tag: str = "") -> Posts:
    """Raw channels, targets (N, K) and ids of a split, from the cache where they are there."""
    dataset = load_dataset(name, missing="keep")
    samples, used = usable_samples(dataset, [split], ("text", "image"))
    targets = (np.stack([s.targets for s in samples]) >= dataset.positive_share).astype(np.float64)
    file = cache / f"{name}-{split}{tag}.npz"
    texts = [sample.text or "" for sample in samples]
    if not file.is_file():
        raw = encode_samples(samples, used, load_backbone("lite"), "minilm", sentences)
        arrays = {f"{c}/{block}": array for c, r in raw.items() for block, array in r.dense.items()}
        cache.mkdir(parents=True, exist_ok=True)
        arrays |= {f"{c}/anchors": r.anchors for c, r in raw.items()}
        np.savez(file, allow_pickle=False, **arrays)
    stored = np.load(file)
    raw = {}
    for channel in used:
        blocks = {k.partition("/")[2]: stored[k] for k in stored.files if k.startswith(f"{channel}/")}
        raw[channel] = Raw(blocks, blocks.pop("anchors"), texts if channel == "text" else None)
    return raw, targets, [sample.id for sample in samples]


def row(found: dict[str, dict[str, float]]) -> str:
    return " | ".join(f"{100 * v['value']:.1f} [{100 * v['low']:.1f}, {100 * v['high']:.1f}]" for v in found.values())


def logistic(x: Array, targets: Array, seed: int, weight: str | None, thresholds: str) -> tuple[Array, Array]:
    """Logistic regression on MiniLM embeddings under the folds of `nested`, thresholds tuned in an inner loop."""

    def fit(train: np.ndarray, test: np.ndarray) -> Array:
        scores = np.zeros((len(test), targets.shape[1]))
        for k in np.flatnonzero(targets[train].sum(axis=0)):
            model = LogisticRegression(class_weight=weight, max_iter=500).fit(x[train], targets[train, k])
            scores[:, k] = model.predict_proba(x[test])[:, 1]
        return scores

    found, chosen = np.zeros(targets.shape), np.zeros(targets.shape)
    for train, test in deal(targets, 5, seed):
        found[test] = fit(train, test)
        level: float | Array = 0.5
        if thresholds != "0.5":
            inner = np.zeros((len(train), targets.shape[1]))
            for a, b in deal(targets[train], 5, seed + 1):
                inner[b] = fit(train[a], train[b])
            one = thresholds == "one"
            grid = np.arange(0.02, 0.98, 0.02)
            level = tune_threshold(inner, targets[train], grid=grid, per_class=not one, shrinkage=10.0)
        chosen[test] = found[test] >= level
    return found, chosen


def descriptions(cache: Path) -> None:
    taxonomy = load_dataset("intentonomy", missing="keep").taxonomy
    sentences = class_sentences(taxonomy)
    kinds = {"": sentences, "-definitions": sentences[-1:], "-names": [list(taxonomy.names)]}
    print("| head | macro F1 | micro F1 | samples F1 | mAP |\n|---|---|---|---|---|")
    raw, targets, _ = encoded("intentonomy", "val", cache, sentences)
    x = raw["text"].dense["text"].astype(np.float64)
    for weight in (None, "balanced"):
        for thresholds in ("0.5", "one", "per class"):
            found, chosen = logistic(x, targets, 0, weight, thresholds)
            scores = figures(found, chosen, targets)
            print(f"| logistic regression, weights {weight}, thresholds {thresholds} | {row(scores)} |", flush=True)
    for tag, forms in kinds.items():
        raw, targets, _ = encoded("intentonomy", "val", cache, forms, tag)
        start = time.process_time()
        held = nested(raw, targets, taxonomy)
        spent = time.process_time() - start
        scores = figures(held.probabilities["text"], held.decisions["text"], targets)
        print(f"| fit{tag or ' (sentences and definitions)'}, {spent:.0f} s | {row(scores)} |", flush=True)


def curve(cache: Path) -> None:
    taxonomy = load_dataset("intentonomy", missing="keep").taxonomy
    raw, targets, _ = encoded("intentonomy", "val", cache, class_sentences(taxonomy)[-1:], "-definitions")
    print("| posts | seconds | rank | ensemble | best single head | logistic regression |\n|---|---|---|---|---|---|")
    for count in (50, 100, 200, len(targets) - 100):
        values: dict[str, list[float]] = {}
        ranks, seconds = [], []
        for seed in SEEDS:
            train, test = _draw(targets, count, seed)
            small = {name: channel.take(train) for name, channel in raw.items()}
            big = {name: channel.take(test) for name, channel in raw.items()}
            start = time.process_time()
            model = fit_posts(small, targets[train], taxonomy, seed=seed)
            seconds.append(time.process_time() - start)
            by_head = {"default": _map(model.probabilities(big), targets[test])}
            for head in model.channels["text"].ranking:
                one = fit_posts(small, targets[train], taxonomy, seed=seed, head=head)
                by_head[head] = _map(one.channels["text"].scores(big["text"]), targets[test])
            x = raw["text"].dense["text"]
            scores = np.zeros((len(test), len(taxonomy)))
            for k in np.flatnonzero(targets[train].sum(axis=0)):
                lr = LogisticRegression(class_weight="balanced", max_iter=500).fit(x[train], targets[train, k])
                scores[:, k] = lr.predict_proba(x[test])[:, 1]
            by_head["logistic regression"] = _map(scores, targets[test])
            names = [h for h in by_head if h not in ("default", "logistic regression")]
            ranks.append(1 + sum(by_head[h] > by_head[next(iter(model.channels["text"].ranking))] for h in names))
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
    from intclip.posts.selection import mean_ap

    return mean_ap(scores, targets)


def channels(cache: Path, names: list[str]) -> None:
    print("| dataset | seed | reads | posts | fit | figures |\n|---|---|---|---|---|---|")
    for name in names:
        dataset = load_dataset(name, missing="keep")
        alike = [group for group in check_dataset(dataset).leaks if {"train", "val"} <= {split for split, _ in group}]
        near = {sample for group in alike for split, sample in group if split == "val"}
        taxonomy: Taxonomy = dataset.taxonomy
        exclusive = dataset.task == "singlelabel"
        sentences = class_sentences(taxonomy)
        train, y, _ = encoded(name, "train", cache, sentences)
        test, z, ids = encoded(name, "val", cache, sentences)
        for seed in SEEDS:
            start = time.process_time()
            model = fit_posts(train, y, taxonomy, exclusive=exclusive, seed=seed)
            spent = time.process_time() - start
            for mode, decision in model.decisions.items():
                read = {c: r for c, r in test.items() if mode in (c, "both")}
                found = model.probabilities(read)
                parts = {"": np.ones(len(ids), dtype=bool)}
                if near:
                    parts[" without near-duplicates"] = np.array([i not in near for i in ids])
                for what, kept in parts.items():
                    chosen = (found[kept] >= decision.thresholds).astype(np.float64)
                    scores = figures(found[kept], chosen, z[kept], exclusive=exclusive)
                    print(
                        f"| {name}{what} | {seed} | {mode} | {kept.sum()} | {spent:.0f} s | {row(scores)} |", flush=True
                    )


def within_train(cache: Path, names: list[str]) -> None:
    print("| dataset | seed | reads | posts | figures |\n|---|---|---|---|---|")
    for name in names:
        dataset = load_dataset(name, missing="keep")
        exclusive = dataset.task == "singlelabel"
        raw, targets, _ = encoded(name, "train", cache, class_sentences(dataset.taxonomy))
        for seed in SEEDS:
            held = nested(raw, targets, dataset.taxonomy, exclusive=exclusive, seed=seed)
            for mode, found in held.probabilities.items():
                scores = figures(found, held.decisions[mode], targets, exclusive=exclusive)
                print(f"| {name} | {seed} | {mode} | {len(targets)} | {row(scores)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("descriptions", "curve", "channels", "nested"))
    parser.add_argument("names", nargs="*", default=["memes", "mvsa"], help="of channels and nested: the datasets")
    parser.add_argument("--cache", type=Path, default=Path(".cache/posts"))
    given = parser.parse_args()
    if given.what in ("channels", "nested"):
        {"channels": channels, "nested": within_train}[given.what](given.cache, given.names)
    else:
        {"descriptions": descriptions, "curve": curve}[given.what](given.cache)


if __name__ == "__main__":
    main()
