"""A model of posts at work: photos, words, or both, by one bundle."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from intclip.data.images import ImageInput, describe, read_image
from intclip.data.loading import read_for_model
from intclip.errors import ImageError, IntclipError
from intclip.inference.card import ModelCard
from intclip.inference.pipeline import Images, Texts, name_source, pair_posts
from intclip.inference.post_bundle import PostBundle
from intclip.inference.prediction import Conflict, Prediction
from intclip.inference.predictor import Predictor, Thresholds
from intclip.posts.conflict import conflict
from intclip.posts.encoders import (
    Encode,
    Floats,
    Raw,
    encode_classes,
    encode_photos,
    encode_texts,
    has_regions,
    text_encoder,
    tower_encoder,
    without_regions,
)
from intclip.posts.fusion import log_odds
from intclip.posts.model import Mode, mode_of

if TYPE_CHECKING:
    from PIL import Image

    from intclip.evidence.evidence import Evidence
    from intclip.evidence.words import Unit


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
        """Predictions of posts, in order, as they are computed; `predict` gives them as a list.

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
        if errors not in ("raise", "collect"):
            raise ValueError(f"errors must be 'raise' or 'collect', not {errors!r}")
        pairs = pair_posts(images, texts)
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
                yield Prediction(found, levels, self.taxonomy, post.source, conflict=self._conflict(post.raw))

    @property
    def channels(self) -> tuple[str, ...]:
        """What the bundle was fitted on: "image", "text", or both."""
        return tuple(self.bundle.model.channels)

    @property
    def alone(self) -> tuple[str, ...]:
        """Each of them suffices."""
        return self.channels

    @property
    def maps(self) -> tuple[str, ...]:
        """What `explain` tells by leaving out regions, where photos are read by a backbone with a feature map."""
        return ("fused",) if "image" in self.channels and self._has_regions else ()

    @property
    def word_unit(self) -> "Unit":
        """Log-odds of the labels, calibrated."""
        return "log-odds"

    def word_scores(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """Log-odds (T, K) of every label, read from words alone.

        Raises:
            IntclipError: The bundle reads no words.
        """
        self._need("text")
        with self._lock:
            raw = encode_texts(texts, self._encode_words, self._word_classes)
        return log_odds(self.bundle.model.probabilities({"text": raw}))

    def explain(
        self,
        image: ImageInput,
        label: str,
        *,
        kind: str = "regions",
    ) -> "Evidence":
        """Where in a photo a label's evidence lies, by leaving out each region of the last feature map (occlusion).

        A region's value is by how much the label's log-odds, read from the photo alone, fall without it.

        Args:
            image: As `predict` takes it.
            label: Name or alias of a label.
            kind: "regions"; a model of posts has no other.

        Raises:
            ImageError: The photo cannot be read.
            TaxonomyError: There is no such label.
            IntclipError: The bundle reads no photos, or its backbone has no feature map.
        """
        from intclip.evidence.evidence import make_evidence

        if kind != "regions":
            raise IntclipError(f"{self.name} is a model of posts: its only kind of evidence is regions")
        index = self.taxonomy.index(label)
        preprocess = self.card.preprocessing
        odds, regions = self.region_falls(read_for_model(image, preprocess.size))
        return make_evidence(
            self.taxonomy.names[index],
            float(expit(odds[index])),
            {"fused": regions[index]},
            size=preprocess.size,
            box=preprocess.source_box(read_image(image).size),
            source=describe(image),
        )

    def region_falls(self, photo: "Image.Image") -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]:
        """Log-odds (K,) read from a photo alone, and by how much they fall (K, h, w) without each region."""
        self._need("image")
        with self._lock:
            raw, grid = without_regions(photo, self._backbone, self._photo_classes)
        odds = log_odds(self.bundle.model.probabilities({"image": raw}))
        return odds[0], (odds[0] - odds[1:]).T.reshape(-1, *grid).astype(np.float32)

    def method(self) -> Any:
        """Refused: heads on embeddings are no torch method.

        Raises:
            IntclipError: Always.
        """
        raise IntclipError(
            f"{self.name} is a model of posts: it predicts and explains, does not export, and is scored by what it "
            "predicts (docs/posts.md), not by `intclip evaluate`"
        )

    @cached_property
    def _has_regions(self) -> bool:
        return has_regions(self._backbone)

    @cached_property
    def _encode_words(self) -> Encode:
        return text_encoder(self.bundle.text_encoder, self._backbone)

    @cached_property
    def _word_classes(self) -> list[Floats]:
        return encode_classes(self.bundle.sentences, self._encode_words)

    @cached_property
    def _photo_classes(self) -> list[Floats]:
        return encode_classes(self.bundle.sentences, tower_encoder(self._backbone))

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

    def _need(self, name: str) -> None:
        if name not in self.channels:
            kind = {"text": "words", "image": "photos"}
            raise IntclipError(f"{self.name} reads {kind[self.channels[0]]} alone; it was fitted without {kind[name]}")

    def _conflict(self, raw: Mapping[str, Raw]) -> Conflict | None:
        model = self.bundle.model
        if len(raw) < 2:
            return None
        found = {name: model.probabilities({name: channel}) for name, channel in raw.items()}
        score = conflict(found["image"], found["text"], exclusive=model.exclusive)[0]
        photo, words = found["image"][0], found["text"][0]
        holds = {name: _holds(p[0], model.decisions[name].thresholds, model.exclusive) for name, p in found.items()}
        disputed = {
            self.taxonomy.names[k]: (float(photo[k]), float(words[k]))
            for k in np.argsort(-np.abs(photo - words), kind="stable")
            if holds["image"][k] != holds["text"][k]
        }
        return Conflict(float(score), disputed)

    def _encode(
        self, pairs: Sequence[tuple[ImageInput | None, str | None]], start: int, errors: Literal["raise", "collect"]
    ) -> list[_Post]:
        """A batch of posts, each channel encoded at once; the lock makes one batch at a time."""
        channels = self.bundle.model.channels
        sources, problems = [], dict[int, str]()
        photos, words = dict[int, Any](), dict[int, str]()
        for row, (image, text) in enumerate(pairs):
            sources.append(name_source(image, start + row))
            try:
                if image is not None and "image" in channels:
                    photos[row] = read_for_model(image, self.card.preprocessing.size)
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
                encoded = encode_texts(list(words.values()), self._encode_words, self._word_classes)
                for place, row in enumerate(words):
                    raw[row]["text"] = encoded.take([place])
            if photos:
                encoded = encode_photos(photos.values(), self._backbone, self._photo_classes)
                for place, row in enumerate(photos):
                    raw[row]["image"] = encoded.take([place])
        return [_Post(source, raw[row], problems.get(row)) for row, source in enumerate(sources)]


def _holds(found: npt.NDArray[Any], thresholds: npt.NDArray[Any], exclusive: bool) -> npt.NDArray[np.bool_]:
    return np.arange(len(found)) == found.argmax() if exclusive else found >= thresholds
