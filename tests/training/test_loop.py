import json
import time
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from toy import toy_dataset, toy_recipe
from toy_method import ToyMethod, ToyOptions

from fakes import TinyBackbone
from intclip.data import cache_shards
from intclip.data.sample import Sample
from intclip.errors import DatasetError, RecipeError, StorageError, TrainingError
from intclip.files import sha256_file
from intclip.inference.bundle import load_bundle
from intclip.training.distributed import Processes
from intclip.training.experiment import (
    adapt_preprocess,
    build_experiment,
    choose_splits,
    choose_taxonomy,
    deterministic,
    open_inputs,
    seed_everything,
)
from intclip.training.logbook import read_log
from intclip.training.recipe import load_recipe
from intclip.training.run import train

ALONE = Processes(0, 1, torch.device("cpu"))
LONG = ["schedule.epochs=25", "optim.lr=0.1"]


def fit(tmp_path, *overrides, single=False, dataset=None, name="run"):
    dataset = dataset or toy_dataset(tmp_path / "photos", single=single)
    return train(toy_recipe(*overrides), tmp_path / name, dataset=dataset, backbone=TinyBackbone())


def build(recipe, dataset):
    return build_experiment(recipe, ALONE, *open_inputs(recipe, dataset=dataset, backbone=TinyBackbone()))


def weights(result) -> dict[str, torch.Tensor]:
    return load_file(result.bundle / "weights.safetensors")


def test_loop_learns_a_separable_toy_and_leaves_every_file(tmp_path):
    result = fit(tmp_path, *LONG)
    assert {path.name for path in result.out.iterdir()} == {
        "bundle",
        "data.json",
        "log.jsonl",
        "metrics.json",
        "predictions-test.parquet",
        "predictions-val.parquet",
        "recipe.yaml",
        "report-test.json",
        "report-test.md",
        "report-val.json",
        "report-val.md",
    }
    lines = read_log(result.out / "log.jsonl")
    losses = [line["loss"]["classification"] for line in lines if line["kind"] == "epoch"]
    assert losses[-1] < 0.6 * losses[0]
    best = max((line for line in lines if line["kind"] == "epoch"), key=lambda line: line["metrics"]["selection"])
    assert result.metrics["best"]["value"] == best["metrics"]["selection"]
    assert result.metrics["thresholds"] == best["metrics"]["threshold"]
    report = json.loads((result.out / "report-test.json").read_text())
    # This backbone's frozen features linearly separate the first and the last class, but not the second.
    assert [report["per_class"]["AP"][k] for k in (0, 2)] == [1.0, 1.0]
    assert report["macro_f1"] > 0.85
    assert report["intervals"]["mAP"][0] <= report["mAP"] <= report["intervals"]["mAP"][1]
    assert "| class 2 |" in (result.out / "report-test.md").read_text()


def test_bundle_gives_the_probabilities_that_were_scored(tmp_path, monkeypatch):
    result = fit(tmp_path, *LONG)
    monkeypatch.setattr("intclip.backbones.registry.BUILDERS", {"tiny": lambda *_: TinyBackbone()})
    bundle = load_bundle(result.bundle)
    method = bundle.build_method()
    dataset = toy_dataset(tmp_path / "photos")
    experiment = build_experiment(
        toy_recipe(), ALONE, *open_inputs(toy_recipe(), dataset=dataset, backbone=method.backbone)
    )
    table = pq.read_table(result.out / "predictions-test.parquet")
    with torch.inference_mode():
        (batch,) = experiment.sources["test"].batches([np.arange(16)])
        probabilities = method(batch.views[0]).logits.sigmoid()
    for k, name in enumerate(bundle.taxonomy.names):
        np.testing.assert_allclose(table[name].to_numpy(), probabilities[:, k], atol=1e-6)
    assert bundle.info.recipe["data"]["root"] is None
    assert float(bundle.thresholds[0]) == pytest.approx(result.metrics["thresholds"])


def test_single_label_set_is_scored_by_accuracy(tmp_path):
    result = fit(tmp_path, *LONG, "method.options.loss={kind: softmax, reduction: mean}", single=True)
    assert result.metrics["task"] == "singlelabel"
    assert result.headline("test")["accuracy"] > 0.8
    assert load_bundle(result.bundle).info.task == "singlelabel"


def test_same_seed_same_weights_and_other_seed_others(tmp_path):
    options = ["method.name=toy_method", "augment={flip: 0.5}", "schedule.epochs=2"]
    first, second, other = (
        fit(tmp_path, *options, f"train.seed={seed}", name=name) for seed, name in ((1, "a"), (1, "b"), (2, "c"))
    )
    assert all(torch.equal(value, weights(second)[key]) for key, value in weights(first).items())
    assert not torch.equal(weights(first)["hidden.weight"], weights(other)["hidden.weight"])


@pytest.mark.parametrize("kind", ["sum", "mean"])
def test_accumulation_gives_the_same_step(tmp_path, kind):
    name = {"sum": ["method.name=toy_method", "method.options={dropout: 0.0, views: 1}"], "mean": []}[kind]
    whole = fit(tmp_path, *name, "schedule.epochs=2", name="whole")
    parts = fit(tmp_path, *name, "schedule.epochs=2", "train.accumulate=3", name="parts")
    for key, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[key], value, rtol=1e-4, atol=1e-6)


def test_parameter_groups_get_their_own_rates_and_unused_ones_stay(tmp_path):
    multipliers = "optim.multipliers={rest: 0.2}"
    result = fit(tmp_path, "method.name=toy_method", multipliers, "schedule.name=constant", "optim.weight_decay=0.1")
    assert read_log(result.out / "log.jsonl")[-1]["lr"] == {"hidden": 0.05 * 0.5, "rest": 0.05 * 0.2}
    seed_everything(0)
    untrained = ToyMethod(TinyBackbone(), toy_dataset(tmp_path / "photos").taxonomy, ToyOptions())
    assert torch.equal(weights(result)["unused.weight"], untrained.unused.weight)


def test_clipping_bounds_the_first_step(tmp_path):
    step = ["schedule.epochs=1", "schedule.name=constant", "optim.momentum=0", "optim.weight_decay=0", "data.limit=8"]
    result = fit(tmp_path, *step, "optim.lr=1", "optim.clip_norm=0.01", "evaluate.select=last")
    state = weights(result)
    norm = torch.stack([state["linear.weight"].norm(), state["linear.bias"].norm()]).norm()
    assert norm == pytest.approx(0.01, rel=1e-3)


def test_moving_average_is_scored_beside_the_raw_weights(tmp_path):
    result = fit(tmp_path, *LONG, "optim.ema=0.5")
    line = read_log(result.out / "log.jsonl")[-1]
    assert {"metrics", "metrics_ema"} <= line.keys()
    assert result.metrics["best"]["weights"] in ("raw", "ema")
    last = fit(tmp_path, "optim.ema=0.9", "evaluate.select=last", name="last")
    assert last.metrics["best"]["weights"] == "ema"
    assert last.metrics["best"]["epoch"] == 3


def test_selection_on_test_and_fixed_threshold_as_released(tmp_path):
    result = fit(tmp_path, "evaluate.select=test", "evaluate.thresholds=fixed", "evaluate.threshold=0.4")
    assert result.metrics["thresholds"] == 0.4
    assert result.metrics["selected_on"] == "test"
    line = read_log(result.out / "log.jsonl")[-1]
    assert line["metrics"]["split"] == "test"


def test_per_class_thresholds_reach_the_bundle(tmp_path):
    result = fit(tmp_path, *LONG, "evaluate.thresholds=per_class")
    assert len(result.metrics["thresholds"]) == 3
    np.testing.assert_allclose(load_bundle(result.bundle).thresholds, result.metrics["thresholds"], rtol=1e-6)


def test_bf16_trains_close_to_fp32(tmp_path):
    options = [
        "method.name=toy_method",
        "method.options={dropout: 0.0, views: 1}",
        "optim.lr=0.01",
        "evaluate.select=last",
    ]
    exact = fit(tmp_path, *options, name="fp32")
    rounded = fit(tmp_path, *options, "train.precision=bf16", name="bf16")
    for key, value in weights(exact).items():
        assert (weights(rounded)[key] - value).abs().max() <= 0.02
    assert any(not torch.equal(weights(rounded)[key], value) for key, value in weights(exact).items())
    assert all(value.dtype != torch.bfloat16 for value in weights(rounded).values())


def test_products_are_rounded_in_steps_and_not_in_scoring(tmp_path, monkeypatch):
    seen: set[tuple[bool, str]] = set()
    forward = ToyMethod.forward

    def watched(self, *arguments, **options):
        seen.add((self.training, torch.get_float32_matmul_precision()))
        return forward(self, *arguments, **options)

    monkeypatch.setattr(ToyMethod, "forward", watched)
    fit(tmp_path, "method.name=toy_method", "train.matmul=medium")
    assert seen == {(True, "medium"), (False, "highest")}
    assert torch.get_float32_matmul_precision() == "highest"


def test_infinite_loss_stops_the_run_with_a_remedy(tmp_path):
    with pytest.raises(TrainingError, match=r"epoch 1, .*step 2 of 5.*optim\.lr"):
        fit(tmp_path, "method.name=toy_method", "method.options.diverge=true")
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_run_that_fails_before_its_first_checkpoint_leaves_the_directory_to_the_mended_recipe(tmp_path):
    for fault in ("method.options.diverge=true", "optim.multipliers.nowhere=1"):
        with pytest.raises((TrainingError, RecipeError)):
            fit(tmp_path, "method.name=toy_method", fault)
        assert not (tmp_path / "run" / "recipe.yaml").exists()
    result = fit(tmp_path, "method.name=toy_method", "schedule.epochs=1")
    assert [line["epoch"] for line in read_log(result.out / "log.jsonl") if line["kind"] == "epoch"] == [1]


def test_method_without_parameters_is_scored_only(tmp_path):
    result = fit(tmp_path, "method.name=prior")
    assert result.metrics["learnable_parameters"] == 0
    assert result.metrics["best"] == {}
    assert result.headline("val")["macro_f1"] > 0


def test_unreadable_photos_are_left_out_and_counted(tmp_path):
    dataset = toy_dataset(tmp_path / "photos")
    (tmp_path / "photos" / "train-003.png").write_bytes(b"")
    (tmp_path / "photos" / "test-005.png").write_bytes(b"no photo")
    result = fit(tmp_path, dataset=dataset)
    epochs = [line for line in read_log(result.out / "log.jsonl") if line["kind"] == "epoch"]
    assert [line["unreadable"] for line in epochs] == [1, 1, 1]
    assert result.metrics["splits"]["test"] == result.metrics["splits"]["test"] | {"photos": 15, "unreadable": 1}
    assert "and 1 unreadable" in (result.out / "report-test.md").read_text()


def test_no_readable_photo_is_an_error(tmp_path):
    dataset = toy_dataset(tmp_path / "photos")
    for path in (tmp_path / "photos").glob("val-*"):
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match="16 photos"):
        fit(tmp_path, dataset=dataset)


def test_cached_features_train_to_the_same_weights(tmp_path):
    plain = fit(tmp_path, name="plain")
    cached = fit(tmp_path, f"cache.path={tmp_path / 'cache'}", name="cached")
    assert any((tmp_path / "cache").rglob("*.npy"))
    for key, value in weights(plain).items():
        torch.testing.assert_close(weights(cached)[key], value, rtol=0.02, atol=0.02)
    again = fit(tmp_path, f"cache.path={tmp_path / 'cache'}", name="again")
    assert all(torch.equal(value, weights(again)[key]) for key, value in weights(cached).items())


def test_every_photo_is_hashed_once_for_fingerprint_and_caches(tmp_path, monkeypatch):
    hashed = Mock(side_effect=sha256_file)
    monkeypatch.setattr(cache_shards, "sha256_file", hashed)
    fit(tmp_path, f"cache.path={tmp_path / 'cache'}", "schedule.epochs=1")
    photos = [call.args[0] for call in hashed.call_args_list if call.args[0].suffix == ".png"]
    assert len(photos) == len(set(photos)) == 40 + 16 + 16


def test_cached_views_take_turns(tmp_path):
    cache = f"cache={{path: {tmp_path / 'cache'}, views: 3}}"
    options = [cache, "augment={flip: 0.5}", "method.name=toy_method", "schedule.epochs=2"]
    fit(tmp_path, *options)
    recipe = toy_recipe(*options)
    experiment = build(recipe, toy_dataset(tmp_path / "photos"))
    source, plan = experiment.sources["train"], [np.array([4, 1])]
    views = [next(iter(source.batches(plan, epoch=epoch, views=2))).views for epoch in (1, 2, 3, 4)]
    pooled = [view["pooled"] for pair in views for view in pair]
    assert torch.equal(pooled[0], pooled[3])
    assert torch.equal(pooled[1], pooled[4])
    assert torch.equal(pooled[0], pooled[6])
    assert not torch.equal(pooled[0], pooled[1])
    (batch,) = source.batches(plan)
    assert not torch.equal(batch.views[0]["pooled"], pooled[0])


def test_pixels_are_never_cached(tmp_path):
    recipe = toy_recipe("method.name=intclip", "method.options.train=all", f"cache.path={tmp_path / 'cache'}")
    experiment = build(recipe, toy_dataset(tmp_path / "photos"))
    (batch,) = experiment.sources["train"].batches([np.arange(2)])
    assert batch.views[0]["pixels"].shape == (2, 3, 24, 24)
    assert not (tmp_path / "cache").exists()


def test_missing_validation_split_is_held_out_of_train(tmp_path):
    data = load_recipe("tiny", ["data.val=null", "data.test=test", "data.holdout=0.25", "data.limit=null"]).data
    dataset = toy_dataset(tmp_path / "photos")
    splits = choose_splits(dataset, data)
    assert (len(splits["train"]), len(splits["val"]), len(splits["test"])) == (30, 10, 16)
    ids = [sample.id for sample in splits["train"] + splits["val"]]
    assert sorted(ids) == sorted(sample.id for sample in dataset.splits["train"])
    assert choose_splits(dataset, data) == splits


def test_missing_splits_and_photos_are_named(tmp_path):
    dataset = toy_dataset(tmp_path / "photos")
    with pytest.raises(DatasetError, match=r"'dev'.*test, train, val"):
        choose_splits(dataset, load_recipe("tiny", ["data.test=dev"]).data)
    dataset.splits["test"] = [Sample("only-labels", dataset.splits["test"][0].targets)]
    with pytest.raises(DatasetError, match=r"1 samples of toy, test,.* photo"):
        choose_splits(dataset, load_recipe("tiny", ["data.test=test"]).data)


def test_a_split_that_is_not_there_is_told(tmp_path, caplog):
    caplog.set_level("INFO", logger="intclip")
    dataset = toy_dataset(tmp_path / "photos")
    dataset.splits["validation"] = dataset.splits.pop("val")
    held = choose_splits(dataset, toy_recipe("data.val=null").data)["val"]
    assert caplog.messages == []
    assert choose_splits(dataset, toy_recipe().data)["val"] == held
    (told,) = caplog.messages
    assert told.startswith("toy has no split 'val' (its splits: test, train, validation): ")
    assert f": {len(held)} samples of train are held out" in told


@pytest.mark.parametrize("override", ["data.train=val", "data.train=test", "data.test=val"])
def test_one_split_is_not_used_as_two(tmp_path, override):
    with pytest.raises(DatasetError, match=r"data\..*data\..*'(val|test)'"):
        choose_splits(toy_dataset(tmp_path / "photos"), toy_recipe(override).data)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_without_a_known_label_is_refused(tmp_path, split):
    dataset = toy_dataset(tmp_path / "photos")
    unknown = np.full(len(dataset.taxonomy), np.nan, dtype=np.float32)
    dataset.splits[split] = [replace(sample, targets=unknown) for sample in dataset.splits[split]]
    with pytest.raises(DatasetError, match=f"samples of toy, {split},.* label"):
        choose_splits(dataset, toy_recipe().data)


def test_a_recipe_that_cannot_be_built_leaves_nothing(tmp_path):
    recipe = load_recipe("tiny", ["data.name=nowhere"])
    with pytest.raises(DatasetError):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_processes_cannot_train_in_one_directory(tmp_path, monkeypatch):
    def train_again(self: ToyMethod) -> None:
        with pytest.raises(TrainingError, match=str(tmp_path / "run")):
            train(recipe, tmp_path / "run", resume=True, dataset=dataset, backbone=TinyBackbone())
        raise StorageError("tried")

    recipe, dataset = toy_recipe("method.name=toy_method"), toy_dataset(tmp_path / "photos")
    monkeypatch.setattr(ToyMethod, "after_step", train_again)
    with pytest.raises(StorageError, match="tried"):
        train(recipe, tmp_path / "run", dataset=dataset, backbone=TinyBackbone())


def test_preprocessing_changes_as_the_recipe_says():
    own = TinyBackbone.preprocess
    released = adapt_preprocess(own, load_recipe("released").backbone)
    assert (released.mean, released.std) == ((0, 0, 0), (1, 1, 1))
    assert (released.crop, released.interpolation, released.size) == ("squash", "bilinear", own.size)
    assert adapt_preprocess(own, load_recipe("paper").backbone) == own


def test_training_leaves_the_callers_random_state_alone():
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    with deterministic(torch.device("cpu")):
        seed_everything(1, 2, 3)
        torch.rand(7)
        np.random.rand(7)
    assert torch.equal(torch.rand(3), expected[0])
    np.testing.assert_array_equal(np.random.rand(3), expected[1])
    assert torch.get_deterministic_debug_mode() == 0


def test_unknown_device_leaves_nothing(tmp_path):
    with pytest.raises(RecipeError, match="cuda:99"):
        fit(tmp_path, "train.device=cuda:99")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["linear_probe", "intclip"])
def test_training_from_the_cache_equals_training_without_it(tmp_path, method):
    kept = [f"method.name={method}", "augment={flip: 0.5}", "cache.views=2", "cache.dtype=float32", "optim.lr=0.01"]
    with_cache = fit(tmp_path, *kept, f"cache.path={tmp_path / 'cache'}", name="with")
    without = fit(tmp_path, *kept, name="without")
    for line, other in zip(read_log(with_cache.out / "log.jsonl"), read_log(without.out / "log.jsonl"), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)
    for key, value in weights(without).items():
        torch.testing.assert_close(weights(with_cache)[key], value, rtol=1e-4, atol=1e-5)


def test_another_taxonomy_of_the_same_classes_may_give_the_sentences(tmp_path):
    dataset = toy_dataset(tmp_path / "photos")
    assert choose_taxonomy(dataset, None) is dataset.taxonomy
    path = tmp_path / "words.yaml"
    path.write_text("classes:\n" + "".join(f"  - {{name: {n}, sentence: words {n}}}\n" for n in dataset.taxonomy.names))
    assert choose_taxonomy(dataset, str(path)).sentences("11-15")[0] == "words class 0"
    with pytest.raises(DatasetError, match=r"3 classes.*toy"):
        choose_taxonomy(dataset, "intentonomy")


def test_labels_that_cannot_be_learned_are_named(tmp_path, caplog):
    dataset = toy_dataset(tmp_path / "photos")
    for sample in dataset.splits["train"]:
        sample.targets[1], sample.targets[2] = 0, 1
    fit(tmp_path, "schedule.epochs=1", dataset=dataset)
    assert any("no positive" in text.lower() and "'class 1'" in text for text in caplog.messages)
    assert any("no negative" in text.lower() and "'class 2'" in text for text in caplog.messages)


@pytest.mark.parametrize("everywhere", [0, 1])
def test_nothing_to_learn_is_refused(tmp_path, everywhere):
    dataset = toy_dataset(tmp_path / "photos")
    for sample in dataset.splits["train"]:
        sample.targets[:] = everywhere
    with pytest.raises(DatasetError, match="'class 0'"):
        fit(tmp_path, dataset=dataset)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("cache", ["off", "here"])
def test_unreadable_training_photos_are_named(tmp_path, caplog, cache):
    dataset = toy_dataset(tmp_path / "photos")
    sample = dataset.splits["train"][4]
    sample.image.write_bytes(b"not a photo")
    place = "off" if cache == "off" else tmp_path / "cache"
    result = fit(tmp_path, "schedule.epochs=2", "augment=null", f"cache.path={place}", dataset=dataset)
    assert list(result.metrics["unreadable"]) == [sample.id]
    named = [text for text in caplog.messages if sample.id in text]
    assert len(named) == 1
    assert "1 of 40" in named[0]


def test_the_time_of_a_run_counts_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr("intclip.training.run.open_inputs", slowly(open_inputs))
    result = fit(tmp_path, "schedule.epochs=1")
    assert result.metrics["seconds"] >= 0.7 + result.metrics["cost"]["training_seconds"]


def slowly(function):
    def wrapped(*arguments, **options):
        time.sleep(0.8)
        return function(*arguments, **options)

    return wrapped


def test_a_schedule_may_be_left_early(tmp_path):
    result = fit(tmp_path, "schedule={epochs: 8, stop_after: 3, warmup_epochs: 0}")
    lines = [line for line in read_log(result.out / "log.jsonl") if line["kind"] == "epoch"]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[-1]["lr"]["all"] > 0.5 * lines[0]["lr"]["all"]  # the cosine is far from its end
    assert result.metrics["epochs"] == 3
