"""`Predictor.explain`: evidence for a label in a photo, of any kind."""

from typing import TYPE_CHECKING

import numpy as np

from intclip.data.images import ImageInput, describe, whole_size
from intclip.data.loading import normalize_into, read_for_model
from intclip.evidence.evidence import Evidence, make_evidence
from intclip.evidence.views import join_views, photo_views
from intclip.inference.card import ATTENTION_OUTPUT, MAP_PREFIX

if TYPE_CHECKING:
    from intclip.inference.predictor import Predictor


def explain(
    predictor: "Predictor",
    image: ImageInput,
    label: str,
    *,
    kind: str = "regions",
) -> Evidence:
    """See `Predictor.explain`."""
    predictor.check_photos()
    index = predictor.taxonomy.index(label)
    preprocess = predictor.card.preprocessing
    photo = read_for_model(image, preprocess.size)
    pixels = np.empty((1, 3, preprocess.size, preprocess.size), dtype=np.float32)
    normalize_into(pixels[0], preprocess.resize(photo), preprocess)
    if kind in ("regions", "fine"):
        # The first view is the photo itself; probability and attention are taken from it.
        outputs = predictor.engine(maps=True)(pixels if kind == "regions" else photo_views(pixels[0]))
        regions = {
            name.removeprefix(MAP_PREFIX): values[0, index] if kind == "regions" else join_views(values[:, index])
            for name, values in outputs.items()
            if name.startswith(MAP_PREFIX)
        }
    else:
        from intclip.evidence.kinds import check_kind, maps_of_kind  # imports torch, which the other kinds do without

        chosen = check_kind(kind)
        with predictor.torch_lock:
            regions = maps_of_kind(predictor.method(), pixels, index, chosen)
        outputs = predictor.engine()(pixels)
    return make_evidence(
        predictor.taxonomy.names[index],
        float(outputs["probabilities"][0, index]),
        regions,
        size=preprocess.size,
        # The decoder may have halved the photo; the box is in pixels of the whole one.
        box=preprocess.source_box(whole_size(photo)),
        source=describe(image),
        kind=kind,
        attention=outputs[ATTENTION_OUTPUT][0] if ATTENTION_OUTPUT in outputs else None,
    )
