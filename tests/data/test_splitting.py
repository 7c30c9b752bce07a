import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intclip.data.sample import Sample
from intclip.data.splitting import fold_out, hold_out, strata
from intclip.errors import DatasetError


def samples(labels: list[int], classes: int = 4) -> list[Sample]:
    return [Sample(str(i), np.eye(classes, dtype=np.float32)[label]) for i, label in enumerate(labels)]


def test_shares_hold_for_every_class() -> None:
    labels = [0] * 100 + [1] * 60 + [2] * 20
    splits = hold_out(samples(labels), {"train": 0.7, "val": 0.1, "test": 0.2})
    for label, count in ((0, 100), (1, 60), (2, 20)):
        for split, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
            assert sum(s.targets[label] == 1 for s in splits[split]) == pytest.approx(count * share, abs=1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 3), min_size=10, max_size=80), st.integers(0, 5))
def test_splits_are_a_partition_in_order_and_repeatable(labels: list[int], seed: int) -> None:
    given_samples = samples(labels)
    splits = hold_out(given_samples, {"train": 0.6, "test": 0.4}, seed)
    ids = [int(s.id) for split in splits.values() for s in split]
    assert sorted(ids) == list(range(len(labels)))
    assert abs(len(splits["train"]) - 0.6 * len(labels)) <= 2
    for split in splits.values():
        order = [int(s.id) for s in split]
        assert order == sorted(order)
    again = hold_out(given_samples, {"train": 0.6, "test": 0.4}, seed)
    assert [[s.id for s in split] for split in again.values()] == [[s.id for s in split] for split in splits.values()]


def test_seeds_differ() -> None:
    given_samples = samples([0, 1] * 30)
    first, second = (hold_out(given_samples, {"a": 0.5, "b": 0.5}, seed) for seed in (0, 1))
    assert {s.id for s in first["a"]} != {s.id for s in second["a"]}


def test_folds_cover_every_sample_once() -> None:
    given_samples = samples([0] * 30 + [1] * 17)
    tested = [s.id for fold in range(5) for s in fold_out(given_samples, 5, fold)["test"]]
    assert sorted(tested) == sorted(s.id for s in given_samples)
    for fold in range(5):
        splits = fold_out(given_samples, 5, fold)
        assert not {s.id for s in splits["train"]} & {s.id for s in splits["test"]}
        assert sum(s.targets[1] for s in splits["test"]) in (3, 4)


def test_rarest_label_decides_with_several_soft_unknown_and_no_labels() -> None:
    rows = [[1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0], [np.nan] * 3, [0.2, 0.3, 0]]
    given_samples = [Sample(str(i), np.array(row, dtype=np.float32)) for i, row in enumerate(rows)]
    assert strata(given_samples).tolist() == [1, 0, 0, 3, 3, 1]


@pytest.mark.parametrize(
    "shares",
    [
        {},
        {"train": 0.5},
        {"train": 1.2, "test": -0.2},
        {"train": 0.999, "test": 0.001},
        {"train": float("nan"), "test": 0.5},
    ],
)
def test_wrong_shares(shares: dict[str, float]) -> None:
    with pytest.raises(DatasetError):
        hold_out(samples([0, 1, 2, 3]), shares)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(DatasetError, match="seed=-1"):
        hold_out(samples([0, 1, 2, 3]), {"train": 0.5, "test": 0.5}, -1)


@pytest.mark.parametrize(("folds", "fold"), [(1, 0), (5, 5), (5, -1), (9, 0)])
def test_wrong_folds(folds: int, fold: int) -> None:
    with pytest.raises(DatasetError):
        fold_out(samples([0, 1, 2, 3]), folds, fold)


def test_a_share_of_zero_gives_an_empty_split() -> None:
    assert hold_out(samples([0, 1]), {"train": 1.0, "test": 0.0})["test"] == []
