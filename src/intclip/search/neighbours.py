"""Nearest known photos, such as training photos: what the model considers similar."""

import os
from pathlib import Path

import numpy as np

from intclip.data.images import ImageInput, find_images
from intclip.errors import IntclipError
from intclip.evidence.evidence import Neighbour
from intclip.inference.card import EMBEDDING
from intclip.inference.pipeline import Scored
from intclip.inference.predictor import Predictor
from intclip.search.index import INDEX
from intclip.search.query import PhotoIndex


def nearest_photos(
    predictor: Predictor, image: ImageInput, place: str | os.PathLike[str], *, count: int = 5
) -> tuple[Neighbour, ...]:
    """Return the known photos with the nearest embeddings, nearest first, without the photo itself.

    Args:
        predictor: The model.
        image: The photo.
        place: A folder of photos, which are embedded on each call, or an index of `intclip index` made with this model.
        count: Number of photos.

    Raises:
        ImageError: The photo cannot be read, or the folder has none.
        IntclipError: The index belongs to another model, or the model is an exported graph, which has no embeddings.
    """
    own = str(Path(image).resolve()) if isinstance(image, str | Path) else None
    if Path(place, INDEX).is_file():
        found = _from_index(predictor, image, place, count + 1)
    else:
        found = _from_folder(predictor, image, place)
    others = (each for each in found if own is None or str(Path(each.path).resolve()) != own)
    return tuple(others)[:count]


def _from_index(predictor: Predictor, image: ImageInput, place: str | os.PathLike[str], count: int) -> list[Neighbour]:
    index = PhotoIndex(place)
    if index.taxonomy.names != predictor.taxonomy.names:
        raise IntclipError(f"{place} was indexed with another model ({index.info.model.spec}); index with this one")
    return [
        Neighbour(hit.path, hit.score, _labels(predictor, hit.probabilities))
        for hit in index.by_photo(image, top=count)
    ]


def _from_folder(predictor: Predictor, image: ImageInput, place: str | os.PathLike[str]) -> list[Neighbour]:
    photo = next(predictor.score([(image, None)], batch_size=1, embedding=True))
    if photo.error is not None:
        raise photo.error
    query = photo.outputs[EMBEDDING]
    found = [
        Neighbour(
            known.source, float(known.outputs[EMBEDDING] @ query), _labels(predictor, known.outputs["probabilities"])
        )
        for known in predictor.score(((path, None) for path in find_images(Path(place))), embedding=True)
        if known.error is None
    ]
    return sorted(found, key=lambda each: -each.cosine)


def _labels(predictor: Predictor, probabilities: np.ndarray) -> tuple[str, ...]:
    return tuple(predictor.prediction(Scored("", {"probabilities": probabilities})).labels)
