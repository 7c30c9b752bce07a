"""Texts in place of photos: moments in closed form, the features made from texts, and a whole run."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import intclip
from fakes import TinyBackbone, tiny_taxonomy
from intclip.backbones import registry
from intclip.data.sample import Dataset, Sample
from intclip.errors import DatasetError, RecipeError
from intclip.training import load_recipe, train
from intclip.training.text_source import gap_of_moments, modality_gap, text_reader

WORDS = ["dog", "sea", "party", "book", "snow"]


def unit(count: int, seed: int, *, shift: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.2, 1.0, 6) if seed else torch.ones(6)
    return F.normalize(shift + spread * torch.randn(count, 6, generator=generator), dim=1)


def test_moved_texts_have_the_mean_and_nearly_the_covariance_of_photos_before_they_are_scaled() -> None:
    texts, photos = unit(4000, 0, shift=0.2), unit(4000, 1, shift=-0.5)
    gap = modality_gap(texts, 3 * photos)
    moved = gap.photo_mean + (texts - gap.text_mean) @ gap.turn.T
    torch.testing.assert_close(moved.mean(dim=0), photos.mean(dim=0), rtol=0, atol=1e-4)
    # A share of its mean variance is added to each covariance before the map is computed.
    text, photo = (torch.cov(rows.T) + torch.cov(rows.T).diagonal().mean() * torch.eye(6) for rows in (texts, photos))
    torch.testing.assert_close(gap.turn @ text @ gap.turn.T, photo, rtol=0, atol=1e-4)
    torch.testing.assert_close(gap(texts), 3 * F.normalize(moved, dim=1))


def test_texts_that_lie_where_photos_do_stay() -> None:
    texts = unit(500, 0, shift=0.2)
    gap = gap_of_moments(texts, texts.mean(dim=0), torch.cov(texts.T), 1.0)
    torch.testing.assert_close(gap(texts), texts, rtol=0, atol=1e-4)


def samples(count: int = 12) -> list[Sample]:
    lines = [f"{WORDS[i % 5]} one\n{WORDS[i % 5]} two three\n\n{WORDS[(i + 1) % 5]}" for i in range(count)]
    return [Sample(str(i), np.eye(5, dtype=np.float32)[i % 5], text=text) for i, text in enumerate(lines)]


def photos(backbone: TinyBackbone) -> dict[str, torch.Tensor]:
    pixels = torch.randn(20, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    return backbone.features(pixels, ("pooled", "regions"))


def test_views_of_a_text_are_the_mean_of_its_lines_or_of_some(tiny_backbone: TinyBackbone) -> None:
    split = samples()
    seen = photos(tiny_backbone)
    read = text_reader(split, tiny_backbone, ("pooled", "regions"), seen)
    lines = [line for sample in split for line in sample.text.splitlines() if line]
    unique = list(dict.fromkeys(lines))
    gap = modality_gap(tiny_backbone.embed_texts(unique), seen["pooled"])
    rows = np.array([3, 0])
    ((indices, (plain, first, again)),) = read([rows], [None, (1, 0), (1, 0)], {})
    assert indices is rows
    for place, row in enumerate(rows):
        own = [line for line in split[row].text.splitlines() if line]
        mean = F.normalize(tiny_backbone.embed_texts(own).mean(dim=0), dim=0)
        torch.testing.assert_close(plain["pooled"][place], gap(mean))
    torch.testing.assert_close(first["pooled"], again["pooled"])
    assert plain["regions"].shape == (2, 8, 3, 3)
    words = split[3].text.split()
    flat = plain["regions"][0].flatten(1).T
    torch.testing.assert_close(flat[0], flat[words.index(words[0], 1)])  # the same word again
    assert not torch.allclose(flat[0], flat[1])
    torch.testing.assert_close(flat[6], flat[0])  # six words, begun again
    others = {tuple(view["pooled"][0].tolist()) for epoch in range(8) for _, (view,) in read([rows], [(epoch, 0)], {})}
    assert len(others) > 1


def test_what_no_text_stands_for_and_what_has_no_text_is_refused(tiny_backbone: TinyBackbone) -> None:
    with pytest.raises(RecipeError, match="trunk"):
        text_reader(samples(), tiny_backbone, ("trunk", "regions"), {})
    silent = [*samples(2), Sample("mute", np.zeros(5, dtype=np.float32), text=" ")]
    with pytest.raises(DatasetError, match="mute"):
        text_reader(silent, tiny_backbone, ("pooled",), photos(tiny_backbone))


@pytest.mark.parametrize("method", ["linear_probe", "dualcoop"])
def test_train_on_texts_and_predict_photos(method: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setitem(registry.BUILDERS, "tiny", lambda name, checkpoint, split: TinyBackbone())
    rng = np.random.default_rng(0)
    splits: dict[str, list[Sample]] = {}
    for split, count in (("train", 20), ("val", 10), ("test", 10)):
        splits[split] = []
        for i in range(count):
            path = tmp_path / f"{split}{i}.png"
            Image.fromarray(rng.integers(0, 255, (26, 26, 3)).astype(np.uint8)).save(path)
            labels = (rng.random(5) < 0.5).astype(np.float32)
            words = " ".join(word for word, y in zip(WORDS, labels, strict=True) if y) or "nothing"
            splits[split].append(Sample(path.stem, labels, path, text=words))
    options = "{}" if method == "linear_probe" else "{context_length: 2}"
    words = "backbone.name=tiny data.val=val data.test=test schedule.epochs=2 train.batch_size=8 train.device=cpu"
    more = ["data.limit=null", "train.workers=1", "evaluate.bootstrap=0", "cache.path=off", "data.texts_as_images=true"]
    recipe = load_recipe("tiny", [*words.split(), *more, f"method={{name: {method}, options: {options}}}"])
    dataset = Dataset("posts", tiny_taxonomy(5), "multilabel", splits)
    result = train(recipe, tmp_path / "run", dataset=dataset, progress=False)
    model = intclip.load(result.bundle, engine="torch")
    found = model.predict([sample.image for sample in splits["test"]])
    assert np.isfinite([prediction.probabilities for prediction in found]).all()
    # A training split without photos uses the validation photos for reference.
    alone = [Sample(s.id, s.targets, text=s.text) for s in splits["train"]]
    dataset = Dataset("posts", tiny_taxonomy(5), "multilabel", splits | {"train": alone})
    assert train(recipe, tmp_path / "alone", dataset=dataset, progress=False).bundle.exists()
    mute = [Sample(s.id, s.targets, s.image) for s in splits["train"]]
    dataset = Dataset("posts", tiny_taxonomy(5), "multilabel", splits | {"train": mute})
    with pytest.raises(DatasetError, match="texts_as_images"):
        train(recipe, tmp_path / "mute", dataset=dataset, progress=False)
