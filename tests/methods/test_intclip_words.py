"""IntCLIP with words: equal to IntCLIP without them, attention compared with a loop, words from samples to batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from colours import coloured_photos
from torch import Tensor

import intclip
from fakes import TinyBackbone, tiny_taxonomy
from intclip.backbones import registry
from intclip.backbones.base import Features
from intclip.data.sample import Dataset, Sample
from intclip.methods.aggregation import GatedAttention
from intclip.methods.intclip.model import IntCLIP
from intclip.methods.intclip_words.model import IntclipWords
from intclip.methods.post_text import MOST_WORDS, word_table
from intclip.methods.registry import build_method
from intclip.training import load_recipe, train

CLOSE = {"rtol": 0, "atol": 1e-4}
"""Sums in another order; logits are of order 1, and words change them by hundredths."""
WORDS = ["dog", "sea", "party", "book", "snow"]


def built(backbone: TinyBackbone, name: str = "intclip_words", **options: object) -> IntCLIP:
    torch.manual_seed(0)
    method = build_method(name, backbone, tiny_taxonomy(), {"context_length": 2, **options})
    assert isinstance(method, IntCLIP)
    return method


def batch(method: IntCLIP, posts: int = 4, words: int = 3) -> Features:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(posts, 3, 24, 24, generator=generator)
    found = method.backbone.features(pixels, method.needs)
    return found | {"words": torch.randn(posts, words, 8, generator=generator)}


def listening(backbone: TinyBackbone, **options: object) -> IntclipWords:
    """Return a model whose words matter: in the paper's aggregation they act only through its attention."""
    method = built(backbone, aggregation="cross_attention", **options)
    assert isinstance(method, IntclipWords)
    torch.nn.init.constant_(method.words.alpha, 0.7)
    return method.eval()


def test_attention_is_a_softmax_over_the_words_and_nothing() -> None:
    torch.manual_seed(0)
    attention = GatedAttention(16, scaled=True, optional=True).double()
    torch.nn.init.constant_(attention.alpha, 0.3)
    regions, words = torch.randn(2, 16, 6).double(), torch.randn(2, 16, 4).double()
    words[1, :, 2:] = 0  # the second post has two words
    found, shares = attention(regions, words, words)

    def read(layer: torch.nn.Conv1d, vector: Tensor) -> Tensor:
        return layer(vector[None, :, None])[0, :, 0]

    for b in range(2):
        there = [word for word in words[b].T if word.any()]
        for n in range(6):
            query = read(attention.query, regions[b, :, n])
            weights = [torch.ones(())] + [(query @ read(attention.key, w) * 2**-0.5).exp() for w in there]
            parts = [w / sum(weights) * read(attention.value, v) for w, v in zip(weights[1:], there, strict=True)]
            torch.testing.assert_close(found[b, :, n], 0.3 * sum(parts))
            torch.testing.assert_close(shares[b, n, : len(there)], torch.stack(weights[1:]) / sum(weights))
            assert not shares[b, n, len(there) :].any()


def test_a_region_may_listen_to_one_word_alone_or_to_none() -> None:
    attention = GatedAttention(8, scaled=True, optional=True)
    torch.nn.init.constant_(attention.alpha, 1.0)
    torch.nn.init.zeros_(attention.query.weight)
    torch.nn.init.ones_(attention.query.bias)
    torch.nn.init.zeros_(attention.key.bias)
    torch.nn.init.constant_(attention.key.weight, 50.0)
    loud, quiet = torch.ones(1, 8, 1), -torch.ones(1, 8, 1)
    regions = torch.randn(1, 8, 4)
    words = torch.cat([loud, quiet], dim=2)
    torch.testing.assert_close(attention(regions, words, words)[0], attention.value(loud).expand(1, 8, 4))
    assert not attention(regions, quiet, quiet)[0].any()
    nothing = torch.zeros(1, 8, 3)
    assert not attention(regions, nothing, nothing)[0].any()
    assert not attention(regions, words, torch.zeros(1, 8, 2))[0].any()  # a word without content adds nothing


def test_it_starts_as_intclip_whatever_the_words(tiny_backbone: TinyBackbone) -> None:
    method, plain = built(tiny_backbone).eval(), built(tiny_backbone, "intclip").eval()
    features = batch(method)
    torch.testing.assert_close(method(features).logits, plain(features).logits, rtol=0, atol=0)


def test_without_words_it_is_intclip_whatever_it_learned(tiny_backbone: TinyBackbone) -> None:
    method, plain = listening(tiny_backbone), built(tiny_backbone, "intclip", aggregation="cross_attention").eval()
    plain.load_own_state({key: v for key, v in method.own_state().items() if not key.startswith("words.")})
    features = batch(method)
    with_words = method(features).logits
    expected = plain(features).logits
    assert (with_words - expected).abs().max() > 1e-2
    photos = {name: value for name, value in features.items() if name != "words"}
    for none in (photos, features | {"words": torch.zeros_like(features["words"])}):
        torch.testing.assert_close(method(none).logits, expected, rtol=0, atol=0)
    # In a batch, a post without words is scored without, the others with.
    mixed = features["words"].clone()
    mixed[2] = 0
    logits = method(features | {"words": mixed}).logits
    torch.testing.assert_close(logits[2], expected[2], **CLOSE)
    torch.testing.assert_close(logits[[0, 1, 3]], with_words[[0, 1, 3]], **CLOSE)


def test_order_and_padding_of_words_change_nothing(tiny_backbone: TinyBackbone) -> None:
    method = listening(tiny_backbone)
    features = batch(method)
    words = features["words"]
    changed = torch.cat([torch.zeros(4, 2, 8), words.flip(1)], dim=1)
    torch.testing.assert_close(method(features | {"words": changed}).logits, method(features).logits, **CLOSE)


def test_words_are_left_out_in_training_as_often_as_asked(tiny_backbone: TinyBackbone) -> None:
    method = listening(tiny_backbone, word_dropout=0.5)
    features = {name: value[:1].expand(400, *value.shape[1:]) for name, value in batch(method).items()}
    photos = {name: value for name, value in features.items() if name != "words"}
    torch.manual_seed(0)
    gap = (method.train()(features).logits - method(photos).logits).abs().amax(dim=1)
    left_out = (gap < 1e-4).float().mean()
    assert 0.4 < float(left_out) < 0.6
    with_words = method.eval()(features).logits
    torch.testing.assert_close(listening(tiny_backbone, word_dropout=0.0).train()(features).logits, with_words, **CLOSE)


def test_gradient_reaches_every_part_once_alpha_has_moved(tiny_backbone: TinyBackbone) -> None:
    method = listening(tiny_backbone, word_dropout=0.0).train()
    grouped = [p for group in method.parameter_groups() for p in group.parameters]
    assert sorted(map(id, grouped)) == sorted(map(id, method.learnable_parameters()))
    targets = (torch.rand(4, 5, generator=torch.Generator().manual_seed(2)) < 0.5).float()
    torch.stack(list(method.training_loss([batch(method)], targets).values())).sum().backward()
    for key, parameter in method.words.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key
    fresh = built(tiny_backbone, word_dropout=0.0, aggregation="cross_attention").train()
    torch.stack(list(fresh.training_loss([batch(fresh)], targets).values())).sum().backward()
    assert isinstance(fresh, IntclipWords)
    assert fresh.words.alpha.grad is not None
    assert fresh.words.alpha.grad != 0


def test_it_learns_from_words_what_photos_do_not_tell(tiny_backbone: TinyBackbone) -> None:
    """Noise for photos; the label is the word."""
    method = built(tiny_backbone, aggregation="cross_attention", word_dropout=0.2, lr={"aggregation": 1.0})
    samples = [Sample(str(i), np.eye(5, dtype=np.float32)[i % 5], text=WORDS[i % 5]) for i in range(40)]
    table = word_table([sample.text for sample in samples], tiny_backbone)
    assert table is not None
    pixels = torch.randn(40, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    features = tiny_backbone.features(pixels, method.needs) | {"words": table(np.arange(40))}
    targets = torch.from_numpy(np.stack([sample.targets for sample in samples]))
    optimizer = torch.optim.Adam(method.learnable_parameters(), lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        torch.stack(list(method.train().training_loss([features], targets).values())).sum().backward()
        optimizer.step()
    with torch.no_grad():
        other = tiny_backbone.features(torch.randn(40, 3, 24, 24), method.needs) | {"words": features["words"]}
        right = (method.eval()(other).logits.argmax(dim=1) == targets.argmax(dim=1)).float().mean()
    assert right > 0.8


def test_the_table_holds_each_text_and_its_words_once(tiny_backbone: TinyBackbone) -> None:
    texts = ["blue  sea", "sea", None, "  ", " ".join(f"w{i}" for i in range(20))]
    table = word_table(texts, tiny_backbone)
    assert table is not None
    found = table(np.array([0, 1, 2, 3]))

    def tower(text: str) -> Tensor:
        with torch.no_grad():
            vector = tiny_backbone.encode_text(tiny_backbone.tokenize([text]))[0]
        return vector / vector.norm() * 8**0.5

    torch.testing.assert_close(found[0, :3], torch.stack([tower("blue sea"), tower("blue"), tower("sea")]))
    torch.testing.assert_close(found[1, :2], torch.stack([tower("sea"), tower("sea")]))
    assert not found[0, 3:].any()
    assert not found[2:].any()
    assert len(table.vectors) == 1 + 3 + 21  # "blue sea", "blue", "sea"; a text of 20 words and each of them
    long = word_table([" ".join(f"w{i}" for i in range(22)) + " sea" * 30], tiny_backbone)
    assert long is not None
    assert long.rows.shape == (1, MOST_WORDS)
    assert word_table([None, " "], tiny_backbone) is None


def test_train_with_words_and_predict_from_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILDERS, "tiny", lambda name, checkpoint, split: TinyBackbone())
    monkeypatch.setenv("INTCLIP_CACHE", str(tmp_path / "cache"))
    photos = coloured_photos(tmp_path)
    splits = {
        split: [
            Sample(s.id, s.targets, s.image, text=" ".join(w for w, y in zip(WORDS, s.targets, strict=False) if y))
            for s in samples
        ]
        for split, samples in photos.splits.items()
    }
    words = "backbone.name=tiny data.val=val data.test=test schedule.epochs=2 train.batch_size=8 train.device=cpu"
    more = ["data.limit=null", "optim.name=adamw", "train.workers=1", "evaluate.bootstrap=0"]
    recipe = load_recipe("tiny", [*words.split(), *more, "method={name: intclip_words, options: {context_length: 2}}"])
    dataset = Dataset("posts", photos.taxonomy, "multilabel", splits)
    result = train(recipe, tmp_path / "run", dataset=dataset, progress=False)
    model = intclip.load(result.bundle, engine="torch")
    found = model.predict([sample.image for sample in splits["test"]])
    assert np.isfinite([prediction.probabilities for prediction in found]).all()
    assert set(model.explain(splits["test"][0].image, label="class 1").branches) == {"fused", "sight", "semantic"}
