"""A teacher's probabilities as training targets.

Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015; here with independent labels, so
that the loss is the binary cross-entropy against the teacher's probabilities.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

from intclip.data.sample import Sample
from intclip.errors import DatasetError
from intclip.inference.loading import is_zero_shot, load
from intclip.inference.predictor import Predictor
from intclip.labels.taxonomy import Taxonomy

_log = logging.getLogger(__name__)


def load_teacher(spec: str, taxonomy: Taxonomy, *, device: str = "auto") -> Predictor:
    """Load a teacher for a dataset's labels.

    Args:
        spec: A model, as for `intclip.load`; a zero-shot model takes the dataset's labels.
        taxonomy: Taxonomy of the dataset.
        device: As for `intclip.load`.

    Raises:
        DatasetError: The teacher has other labels.
        IntclipError: The model is missing or invalid.
    """
    teacher = load(spec, taxonomy=taxonomy if is_zero_shot(spec) else None, device=device)
    if teacher.taxonomy.exclusive != taxonomy.exclusive:
        kinds = {True: "exactly one label", False: "any number of labels"}
        raise DatasetError(
            f"data.teacher {spec} gives a photo {kinds[teacher.taxonomy.exclusive]}, {taxonomy.name} "
            f"{kinds[taxonomy.exclusive]}; train a teacher on such data"
        )
    if teacher.taxonomy.names != taxonomy.names:
        missing = [name for name in taxonomy.names if name not in teacher.taxonomy.names]
        what = f"it lacks {missing[0]!r}" if missing else "it has more, or another order"
        raise DatasetError(
            f"data.teacher {spec} does not have the {len(taxonomy)} labels of {taxonomy.name} in their order ({what}); "
            "train a teacher on the same labels"
        )
    return teacher


def with_probabilities(samples: Sequence[Sample], teacher: Predictor) -> list[Sample]:
    """Return samples with a teacher's probabilities of their photos (K,) as targets, without unreadable photos.

    Raises:
        DatasetError: No photo can be read.
        IntclipError: The teacher does not read photos without text.
    """
    taught, unreadable = [], []
    photos = (sample.image for sample in samples)
    for sample, prediction in zip(samples, teacher.predict_iter(photos, errors="collect"), strict=True):
        if prediction.error is not None:
            unreadable.append(prediction.error)
        else:
            taught.append(replace(sample, targets=prediction.probabilities))
    if unreadable and not taught:
        raise DatasetError(f"none of the {len(samples)} photos could be read; the first: {unreadable[0]}")
    if unreadable:
        _log.warning("%d of %d photos could not be read; the first: %s", len(unreadable), len(samples), unreadable[0])
    return taught
