"""A model of posts at work: photos, words, or both, by one bundle."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from intclip.data.images import ImageInput, describe, read_image
from intclip.data.loading import DRAFT_FACTOR
from intclip.errors import ImageError, IntclipError
from intclip.inference.card import ModelCard
from intclip.inference.pipeline import SINGLE_KINDS, expand
from intclip.inference.post_bundle import PostBundle
from intclip.inference.prediction import Prediction
from intclip.inference.predictor import Images, Predictor, Texts, Thresholds
from intclip.posts.encoders import Encode, Raw, encode_photos, encode_texts, text_encoder
from intclip.posts.model import Mode, mode_of

_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class WordEvidence:
    """How much each word speaks for a label.

    Attributes:
        label: The label.
        probability: Of the label, read from the words alone.
        words: The words in order, each with the fall of the label's log-odds when it is left out; above 0 it speaks
            for the label.
    """

    label: str
    probability: float
    words: list[tuple[str, float]]


@dataclass(frozen=True)
class Agreement:
    """How photo and words of a post go together.

    Attributes:
        score: Cosine of the two channels' evidence over the labels, in [-1, 1]: 1 says the same, below 0 contradict.
        conflicts: Labels on which the channels decide differently: name to (probability by photo, by words), the
            widest gap first.
    """

    score: float
    conflicts: dict[str, tuple[float, float]]


@dataclass(frozen=True, eq=False)
class _Post:
    source: str
    raw: dict[str, Raw]
    error: str | None = None


class PostPredictor(Predictor):
    """Labels of posts; made by `intclip.load` from what `intclip fit` wrote.

    Args:
        bundle: The fitted model.
        name: What the user asked for.

    Attributes:
        thresholds: (K,) float32, of the mode that reads all the bundle's channels.
    """

    def __init__(self, bundle: PostBundle, *, name: str = "posts") -> None:
        from intclip.backbones import load_backbone

        self.bundle, self.name = bundle, name
        self._backbone = load_backbone(bundle.backbone)
        model = bundle.model
        card = ModelCard(
            model=name,
            backbone=bundle.backbone,
            method="posts",
            task="singlelabel" if model.exclusive else "multilabel",
            labels=list(model.taxonomy.names),
            thresholds=model.decisions[mode_of(model.channels)].thresholds.tolist(),
            preprocessing=self._backbone.preprocess,
            maps=[],
            taxonomy=model.taxonomy.to_dict(),
        )
        super().__init__(card, engine="torch")

    def __repr__(self) -> str:
        channels = " and ".join(self.bundle.model.channels)
        return f"<PostPredictor {self.name}: {len(self.taxonomy)} labels of {self.taxonomy.name}, reads {channels}>"

    def predict(
        self,
        images: Images | None = None,
        *,
        texts: Texts | None = None,
        batch_size: int = 32,
        thresholds: Thresholds | None = None,
        errors: Literal["raise", "collect"] = "raise",
        workers: int | None = None,
    ) -> list[Prediction]:
        """Predictions of posts, in order.

        Args:
            images: Photos as `Predictor.predict` takes them; None in the list where a post has no photo.
            texts: One text a post; None or blank where a post has no words. At least one of the two is given.
            batch_size: Posts computed at once.
            thresholds: In place of the model's own: one for all labels, or some by name.
            errors: "raise" stops at the first post that cannot be read; "collect" gives it a `Prediction` with `error`.
            workers: Not used: posts are decoded one after another.

        Raises:
            ImageError: A photo cannot be read; the message names it.
            IntclipError: Photos and texts differ in number, or a post has no channel that this bundle reads.
        """
        return list(
            self.predict_iter(
                images, texts=texts, batch_size=batch_size, thresholds=thresholds, errors=errors, workers=workers
            )
        )

    def predict_iter(
        self,
        images: Images | None = None,
        *,
        texts: Texts | None = None,
        batch_size: int = 32,
        thresholds: Thresholds | None = None,
        errors: Literal["raise", "collect"] = "raise",
        workers: int | None = None,
    ) -> Iterator[Prediction]:
        """`predict` as a stream."""
        if errors not in ("raise", "collect"):
            raise ValueError(f"errors must be 'raise' or 'collect', not {errors!r}")
        pairs = _pairs(images, texts)
        start = 0
        while batch := list(islice(pairs, batch_size)):
            posts = self._encode(batch, start, errors)
            start += len(batch)
            for post in posts:
                if post.error is not None:
                    unknown = np.full(len(self.taxonomy), np.nan, dtype=np.float32)
                    yield Prediction(unknown, self.thresholds, self.taxonomy, post.source, post.error)
                    continue
                levels = self._levels(thresholds, mode_of(post.raw))
                found = self.bundle.model.probabilities(post.raw)[0].astype(np.float32)
                yield Prediction(found, levels, self.taxonomy, post.source)

    def explain_words(self, text: str, label: str) -> WordEvidence:
        """Which words of a text carry a label, by leaving out each in turn (occlusion).

        Raises:
            TaxonomyError: There is no such label.
            IntclipError: The bundle reads no words, or there are none.
        """
        channel = self._channel("text")
        index = self.taxonomy.index(label)
        spans = [match.span() for match in _WORD.finditer(text)]
        if not spans:
            raise IntclipError("there are no words to explain; give a text")
        without = [f"{text[:a]} {text[b:]}".strip() or " " for a, b in spans]
        raw = encode_texts([text, *without], self._encode_words, self.bundle.sentences)
        decision = self.bundle.model.decisions["text"]
        scores = channel.scores(raw)[None]
        odds = decision.logits(scores)[:, index]
        probability = float(decision(scores[:, :1])[0, index])
        words = [(text[a:b], float(odds[0] - odds[i])) for i, (a, b) in enumerate(spans, start=1)]
        return WordEvidence(self.taxonomy.names[index], probability, words)

    def agreement(self, images: Images, texts: Texts) -> list[Agreement | None]:
        """How photo and words of each post go together; None where a post lacks one of them.

        Raises:
            IntclipError: The bundle does not read both channels.
        """
        for name in ("image", "text"):
            self._channel(name)
        posts = self._encode(list(_pairs(images, texts)), 0, "raise")
        return [self._agreement(post.raw) if len(post.raw) == 2 else None for post in posts]

    def method(self) -> Any:
        """Refused: heads on embeddings are no torch method.

        Raises:
            IntclipError: Always.
        """
        raise IntclipError(f"{self.name} is a model of posts: it predicts and explains words, and does not export")

    @cached_property
    def _encode_words(self) -> Encode:
        return text_encoder(self.bundle.text_encoder, self._backbone)

    def _levels(self, thresholds: Thresholds | None, mode: Mode) -> npt.NDArray[np.float32]:
        """Thresholds (K,) of a mode, with the caller's in their place."""
        own = self.bundle.model.decisions[mode].thresholds.astype(np.float32)
        if thresholds is None:
            return own
        given = self.resolve_thresholds(thresholds)
        if isinstance(thresholds, Mapping):
            for name in thresholds:
                own[self.taxonomy.index(name)] = given[self.taxonomy.index(name)]
            return own
        return given

    def _channel(self, name: str) -> Any:
        channels = self.bundle.model.channels
        if name not in channels:
            kind = {"text": "words", "image": "photos"}
            raise IntclipError(
                f"{self.name} reads {kind[next(iter(channels))]} alone; it was fitted without {kind[name]}"
            )
        return channels[name]

    def _agreement(self, raw: Mapping[str, Raw]) -> Agreement:
        model = self.bundle.model
        scores = model.scores(raw)
        evidence = {name: (model.decisions[name].logits.weights * value)[0] for name, value in scores.items()}
        photo, words = evidence["image"], evidence["text"]
        size = float(np.linalg.norm(photo) * np.linalg.norm(words))
        found = {name: model.decisions[name](value[None])[0] for name, value in scores.items()}
        holds = {name: _holds(found[name], model.decisions[name].thresholds, model.exclusive) for name in found}
        gaps = np.abs(found["image"] - found["text"])
        conflicts = {
            self.taxonomy.names[k]: (float(found["image"][k]), float(found["text"][k]))
            for k in np.argsort(-gaps)
            if holds["image"][k] != holds["text"][k]
        }
        return Agreement(float(photo @ words) / size if size else 0.0, conflicts)

    def _encode(
        self, pairs: Sequence[tuple[ImageInput | None, str | None]], start: int, errors: Literal["raise", "collect"]
    ) -> list[_Post]:
        """A batch of posts, each channel encoded at once; the lock makes one batch at a time."""
        channels = self.bundle.model.channels
        sources, problems = [], dict[int, str]()
        photos, words = dict[int, Any](), dict[int, str]()
        for row, (image, text) in enumerate(pairs):
            sources.append(_source(image, start + row))
            try:
                if image is not None and "image" in channels:
                    photos[row] = read_image(image, min_side=DRAFT_FACTOR * self.card.preprocessing.size)
                if text and text.strip() and "text" in channels:
                    words[row] = text
                if row not in photos and row not in words:
                    raise IntclipError(f"{sources[row]} has neither a photo nor words that {self.name} reads")
            except (ImageError, IntclipError) as error:
                if errors == "raise":
                    raise
                problems[row] = str(error)
                words.pop(row, None)
        raw: list[dict[str, Raw]] = [{} for _ in pairs]
        with self._lock:
            if words:
                encoded = encode_texts(list(words.values()), self._encode_words, self.bundle.sentences)
                for place, row in enumerate(words):
                    raw[row]["text"] = encoded.take([place])
            if photos:
                encoded = encode_photos(photos.values(), self._backbone, self.bundle.sentences)
                for place, row in enumerate(photos):
                    raw[row]["image"] = encoded.take([place])
        return [_Post(source, raw[row], problems.get(row)) for row, source in enumerate(sources)]


def _pairs(images: Images | None, texts: Texts | None) -> Iterator[tuple[ImageInput | None, str | None]]:
    """Posts one by one; folders and patterns stand for photos where there are no texts."""
    words = iter([texts] if isinstance(texts, str) else [] if texts is None else texts)
    if images is None:
        if texts is None:
            raise IntclipError("give images, texts, or both")
        for text in words:
            yield None, text
        return
    single = isinstance(images, SINGLE_KINDS)
    if texts is None:
        several = cast("ImageInput | list[ImageInput]", images) if single else _present(images)
        for image in expand(several):
            yield image, None
        return
    end = object()
    photos = cast("list[ImageInput | None]", [images] if single else images)
    for photo in photos:
        text_or_end = next(words, end)
        if text_or_end is end:
            raise IntclipError("there are more photos than texts; give one text a photo, None where it has no words")
        yield photo, cast("str | None", text_or_end)
    if next(words, end) is not end:
        raise IntclipError("there are more texts than photos; give None in the photos where a post has none")


def _present(images: Images) -> Iterator[ImageInput]:
    for image in cast("list[ImageInput | None]", images):
        if image is None:
            raise IntclipError("a post has neither a photo nor words")
        yield image


def _source(image: ImageInput | None, position: int) -> str:
    if image is None:
        return f"text {position + 1}"
    return describe(image) if isinstance(image, SINGLE_KINDS[:2]) else f"image {position + 1}"


def _holds(found: npt.NDArray[Any], thresholds: npt.NDArray[Any], exclusive: bool) -> npt.NDArray[np.bool_]:
    return np.arange(len(found)) == found.argmax() if exclusive else found >= thresholds
