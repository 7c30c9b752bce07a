"""What the page asks of the models: predictions, evidence, words; computed once and kept."""

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from intclip.data.images import data_url, read_image
from intclip.errors import ImageError, IntclipError
from intclip.evidence.evidence import Evidence
from intclip.inference.prediction import Prediction
from intclip.labels.taxonomy import Taxonomy
from intclip.serving.app.kept import Kept
from intclip.serving.app.own_intents import OwnIntents, read_intents
from intclip.serving.app.session import Photo, Session
from intclip.serving.batcher import Batcher, ModelFailure

if TYPE_CHECKING:
    from intclip.evidence.words import WordEvidence

OWN = "own intents"
_log = logging.getLogger(__name__)
THUMBNAIL = 192
"""Longer side of a thumbnail, in pixels: twice what a page shows, for fine screens."""
_ANSWERS_KEPT = 8192
_MAPS_KEPT = 64
"""Pieces of evidence kept; one takes about 0.6 MB."""
_CHUNK = 64
"""Photos submitted to the queue at once, so that a folder leaves room for other visitors."""


@dataclass(frozen=True)
class Reader:
    """Who reads the photos of a session: the chosen model, or the visitor's own intents.

    Attributes:
        name: Of the label set, for thresholds and corrections.
        key: Tells its answers from others'.
        taxonomy: Its labels.
        maps: The maps of evidence that it has.
        fine: Whether it has finer ones too.
        reads: "image", "text" or both.
        alone: Which of them suffice without the other.
    """

    name: str
    key: Hashable
    taxonomy: Taxonomy
    maps: tuple[str, ...]
    fine: bool
    reads: tuple[str, ...]
    alone: tuple[str, ...]

    @property
    def own(self) -> bool:
        """Whether the labels are the visitor's."""
        return self.name == OWN


class Studio:
    """Answers for pages; shared by all visitors.

    Args:
        batcher: The queue before the models.
        examples: Photos that a new page shows; those that cannot be read are told in the log and left out.

    Raises:
        ImageError: None of the examples can be read.
    """

    def __init__(self, batcher: Batcher, examples: Sequence[Path] = ()) -> None:
        self.batcher = batcher
        self.own_intents = OwnIntents()
        self.examples = _readable(examples)
        self._predictions: Kept[Prediction] = Kept(_ANSWERS_KEPT)
        self._evidence: Kept[Evidence] = Kept(_MAPS_KEPT)
        self._words: Kept[WordEvidence] = Kept(_ANSWERS_KEPT)

    def new_session(self) -> Session:
        """A page as it opens: the examples and the first model."""
        return Session(photos=list(self.examples), model=self.batcher.default)

    def reader(self, session: Session) -> Reader:
        """Who reads the photos.

        Raises:
            TaxonomyError: The visitor's own intents are no labels.
        """
        labels = read_intents(session.own)
        if labels is not None:
            return Reader(OWN, (OWN, labels.names), labels, ("sight",), True, ("image",), ("image",))
        name, model = self.batcher.find(session.model)
        return Reader(name, name, model.taxonomy, model.maps, model.fine, model.channels, model.alone)

    def predict(self, session: Session) -> list[Prediction]:
        """Predictions of all photos, with the thresholds of the session.

        A photo that the reader has nothing to say of (no words for a model of words) has an `error`.
        """
        reader = self.reader(session)
        words = session.captions if "text" in reader.reads else {}
        captions = [words.get(place, "").strip() for place in range(len(session.photos))]
        keys = [(reader.key, photo.path, text) for photo, text in zip(session.photos, captions, strict=True)]
        answers = {place: self._predictions.find(key) for place, key in enumerate(keys)}
        missing = [place for place, found in answers.items() if found is None]
        for start in range(0, len(missing), _CHUNK):
            places = missing[start : start + _CHUNK]
            found = self._compute(reader, [(session.photos[place], captions[place]) for place in places])
            for place, prediction in zip(places, found, strict=True):
                answers[place] = self._predictions.keep(keys[place], prediction)
        moved = session.thresholds.get(reader.name, {})
        return [_with_thresholds(found, moved) for found in answers.values() if found is not None]

    def explain(self, session: Session, label: str) -> Evidence | None:
        """Evidence of a label in the photo that is looked at; None where the reader has no maps."""
        reader, photo = self.reader(session), session.photo
        if photo is None or not reader.maps:
            return None
        path, fine = photo.path, session.fine and reader.fine

        def compute() -> Evidence:
            if reader.own:
                own = partial(self.own_intents.explain, path, reader.taxonomy, label, fine=fine)
                return self.batcher.run(own).result()
            return self.batcher.explain(path, label, model=session.model, fine=fine).result()

        return self._evidence.once((reader.key, path, label, fine), compute)

    def explain_words(self, session: Session, label: str) -> "WordEvidence | None":
        """Which words of the caption speak for a label; None where there are none, or no words alone are read."""
        reader, text = self.reader(session), session.captions.get(session.place, "").strip()
        if "text" not in reader.alone or not text:
            return None
        model = self.batcher.find(session.model)[1]
        return self._words.once(
            (reader.key, text, label), lambda: self.batcher.run(lambda: model.explain_words(text, label)).result()
        )

    def _compute(self, reader: Reader, posts: Sequence[tuple[Photo, str]]) -> list[Prediction]:
        if reader.own:
            waiting = [
                self.batcher.run(partial(self.own_intents.predict, photo.path, reader.taxonomy)) for photo, _ in posts
            ]
        else:
            image = "image" in reader.reads
            asked = [(photo.path if image else None, text or None) for photo, text in posts if image or text]
            waiting = self.batcher.submit_all(asked, model=cast("str", reader.key))
        answers = iter(waiting)
        found = []
        for photo, text in posts:
            if "image" not in reader.reads and not text:
                found.append(_unknown(reader.taxonomy, photo, "this model reads words: write the caption of the post"))
                continue
            try:
                found.append(next(answers).result())
            except (IntclipError, ModelFailure) as error:
                found.append(_unknown(reader.taxonomy, photo, str(error)))
        return found


def _readable(paths: Sequence[Path]) -> list[Photo]:
    found: list[Photo] = []
    for path in paths:
        try:
            found.append(read_photo(path, path.name))
        except ImageError as error:
            if len(paths) == 1:
                raise
            _log.warning("left out: %s", error)
    if paths and not found:
        raise ImageError(f"none of the {len(paths)} photos could be read; look at the first, as named above")
    return found


def read_photo(path: Path, name: str) -> Photo:
    """A photo with its thumbnail.

    Raises:
        ImageError: It cannot be read; the message names it as the visitor does.
    """
    try:
        image = read_image(path, min_side=THUMBNAIL)
    except ImageError as error:
        raise ImageError(str(error).replace(str(path), name)) from error
    return Photo(path, name, data_url(image, THUMBNAIL, quality=78))


def _with_thresholds(prediction: Prediction, moved: dict[str, float]) -> Prediction:
    if not moved:
        return prediction
    thresholds = prediction.thresholds.copy()
    for place, name in enumerate(prediction.taxonomy.names):
        thresholds[place] = moved.get(name, thresholds[place])
    return replace(prediction, thresholds=thresholds)


def _unknown(taxonomy: Taxonomy, photo: Photo, error: str) -> Prediction:
    nothing = np.full(len(taxonomy), np.nan, dtype=np.float32)
    return Prediction(nothing, np.full(len(taxonomy), 0.5, dtype=np.float32), taxonomy, photo.name, error)
