import itertools
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import encode, photo, write_photo

from intclip.backbones.preprocess import Preprocess
from intclip.data.images import read_image
from intclip.data.loading import array_batches, normalize_into, pixel_batches
from intclip.data.sample import Sample, TarMember
from intclip.data.transforms import Augment, AugmentConfig
from intclip.errors import ImageError

PREPROCESS = Preprocess(size=32, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
NO_LABELS = np.zeros(1, dtype=np.float32)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [write_photo(tmp_path / f"{i}.png", i, (40 + i, 35)) for i in range(11)]


def reference(paths: list[Path]) -> torch.Tensor:
    return torch.stack([PREPROCESS(read_image(path)) for path in paths])


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 4, 11, 50])
def test_batches_equal_one_photo_at_a_time_bit_for_bit(
    paths: list[Path], workers: int, prefetch: int, batch_size: int
) -> None:
    batches = list(pixel_batches(paths, PREPROCESS, batch_size, workers=workers, prefetch=prefetch))
    assert torch.equal(torch.cat([batch.pixels for batch in batches]), reference(paths))
    assert np.concatenate([batch.indices for batch in batches]).tolist() == list(range(11))
    assert [len(batch.indices) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert batches[0].pixels.dtype == torch.float32
    assert batches[0].pixels.is_contiguous()


def test_normalisation_equals_preprocess_bit_for_bit() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    row = np.empty((3, 32, 32), dtype=np.float32)
    normalize_into(row, pixels, PREPROCESS)
    assert torch.equal(torch.from_numpy(row), PREPROCESS.normalize(torch.from_numpy(pixels).permute(2, 0, 1)))


def test_arrays_are_the_same_pixels(paths: list[Path]) -> None:
    for arrays, tensors in zip(array_batches(paths, PREPROCESS, 4), pixel_batches(paths, PREPROCESS, 4), strict=True):
        np.testing.assert_array_equal(arrays.pixels, tensors.pixels.numpy())


def test_no_photo_is_lost(paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    sources = [*paths[:3], tmp_path / "bad.jpg", *paths[3:6], tmp_path / "none.jpg", tmp_path / "bad.jpg", *paths[6:]]
    for batch_size in (1, 2, 3, 5, 20):
        good: list[int] = []
        bad: dict[int, ImageError] = {}
        for batch in pixel_batches(sources, PREPROCESS, batch_size):
            assert len(batch.indices) == len(batch.pixels)
            assert len(batch.indices) + len(batch.errors) <= batch_size
            good += batch.indices.tolist()
            bad |= dict(batch.errors)
        assert sorted([*good, *bad]) == list(range(len(sources)))
        assert sorted(bad) == [3, 7, 8]
        assert "none.jpg" in str(bad[7])
        pixels = torch.cat([batch.pixels for batch in pixel_batches(sources, PREPROCESS, batch_size)])
        assert torch.equal(pixels, reference(paths))


def test_a_batch_of_errors_alone_has_no_pixels(tmp_path: Path) -> None:
    (batch,) = pixel_batches([tmp_path / "a", tmp_path / "b"], PREPROCESS, 4)
    assert batch.pixels.shape == (0, 3, 32, 32)
    assert [index for index, _ in batch.errors] == [0, 1]


def test_nothing_gives_nothing() -> None:
    assert list(pixel_batches([], PREPROCESS, 4)) == []


def test_every_kind_of_source_and_sample(paths: list[Path], tmp_path: Path) -> None:
    content = paths[0].read_bytes()
    (tmp_path / "x.tar").write_bytes(b"#" * 64 + content)
    member = TarMember(tmp_path / "x.tar", "0.png", 64, len(content))
    sources = [paths[0], str(paths[0]), content, read_image(content), np.asarray(read_image(content)), member,
               Sample("a", NO_LABELS, paths[0]), Sample("b", NO_LABELS, member)]  # fmt: skip
    (batch,) = pixel_batches(sources, PREPROCESS, 20)
    assert not batch.errors
    assert all(torch.equal(row, batch.pixels[0]) for row in batch.pixels)
    (batch,) = pixel_batches([Sample("words", NO_LABELS, None, "only words")], PREPROCESS, 1)
    assert "words has no photo" in str(batch.errors[0][1])


def test_positions_in_any_order(paths: list[Path]) -> None:
    order = [5, 0, 10, 5]
    batches = list(pixel_batches(paths, PREPROCESS, 3, indices=order))
    assert np.concatenate([batch.indices for batch in batches]).tolist() == order
    assert torch.equal(torch.cat([batch.pixels for batch in batches]), reference([paths[i] for i in order]))
    with pytest.raises(TypeError):
        pixel_batches(iter(paths), PREPROCESS, 3, indices=order)


def test_views_follow_epoch_view_and_position_not_order_or_threads(paths: list[Path]) -> None:
    augment = Augment(AugmentConfig(), PREPROCESS, seed=1)

    def views(indices: list[int], workers: int, epoch: int = 4, view: int = 2) -> dict[int, torch.Tensor]:
        change = partial(augment, epoch=epoch, view=view)
        batches = pixel_batches(paths, PREPROCESS, 3, indices=indices, augment=change, workers=workers)
        return {i: row for batch in batches for i, row in zip(batch.indices.tolist(), batch.pixels, strict=True)}

    straight, mixed = views(list(range(11)), 1), views([7, 2, 10], 4)
    for index in (7, 2, 10):
        assert torch.equal(straight[index], mixed[index])
        expected = PREPROCESS(augment(read_image(paths[index]), epoch=4, index=index, view=2))
        assert torch.equal(straight[index], expected)
    assert not torch.equal(straight[0], views([0], 1, epoch=5)[0])
    assert not torch.equal(straight[0], views([0], 1, view=0)[0])


def test_sources_are_read_lazily_and_memory_is_bounded() -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        content = encode(photo())
        while True:
            taken += 1
            yield content

    batches = pixel_batches(endless(), PREPROCESS, 4, prefetch=2)
    for number in range(1, 6):
        next(batches)
        assert taken <= 4 * (number + 2)
    batches.close()


def test_leaving_early_ends_the_threads(paths: list[Path]) -> None:
    def running() -> int:
        return sum(thread.name.startswith("intclip-pixels") for thread in threading.enumerate())

    batches = pixel_batches(itertools.cycle(paths), PREPROCESS, 4, workers=3)
    next(batches)
    assert running() > 0
    del batches
    assert running() == 0


def test_a_broken_augmentation_is_not_taken_for_a_broken_photo(paths: list[Path]) -> None:
    class Broken(Augment):
        def __call__(self, *_: object, **__: object) -> object:
            raise RuntimeError("a fault in the program")

    with pytest.raises(RuntimeError, match="a fault"):
        list(pixel_batches(paths, PREPROCESS, 4, augment=Broken(AugmentConfig(), PREPROCESS)))


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"workers": 0}, {"prefetch": -1}])
def test_wrong_arguments_are_refused_at_once(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        pixel_batches([], PREPROCESS, **{"batch_size": 1, **wrong})


def test_large_jpegs_are_decoded_at_twice_the_size_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from intclip.data import loading

    asked: list[int | None] = []
    monkeypatch.setattr(
        loading,
        "read_image",
        lambda source, min_side=None: asked.append(min_side) or read_image(source, min_side=min_side),
    )
    list(pixel_batches([encode(photo(size=(640, 640)))], PREPROCESS, 1))
    assert asked == [64]
