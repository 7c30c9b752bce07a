"""OpenVINO graphs of `lite` that come with the package, so that a first prediction needs no torch and no conversion.

The graphs (`prebuilt/*.xml`) contain no weights: each is an input. `weights.json` gives its place in the files that
torch reads too, those of the packages that `lite` needs anyway. `make_prebuilt.py` writes the folder.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intclip.backbones.lite_towers import TEXT_PACKAGE, package_folder
from intclip.backbones.sources import embedded_identity, source_files
from intclip.backbones.unknown_words import OTHER_LANGUAGE, check_known
from intclip.backbones.wordpieces import load_tokenizer, token_rows, unknown_share
from intclip.errors import CheckpointError
from intclip.extras import require
from intclip.files import sha256_file
from intclip.inference.card import ModelCard
from intclip.inference.exported import Graph, Tower
from intclip.labels.scenes import load_scenes
from intclip.labels.taxonomy import Taxonomy

BACKBONE = "lite"
FOLDER = Path(__file__).with_name("prebuilt")
WEIGHTS = "weights.json"
TOWER, HEAD, TEXT = "tower.xml", "head.xml", "text.xml"
SCENES = Path(__file__).parents[1] / "methods" / "zero_shot" / "scenes.safetensors"
TOKENS = "tokens"
_BATCH = 32
Values = Mapping[str, npt.NDArray[Any]]


def weight_files() -> list[Path]:
    """Return the files of the weights: those of the backbone, and the embedded scenes."""
    return [*source_files(BACKBONE, None), SCENES]


@dataclass(frozen=True)
class PrebuiltGraphs:
    """The graphs in `FOLDER`.

    Attributes:
        facts: Content of `WEIGHTS`: the parts of the tower's key ("weights", …), the hash of the "scenes", the "card"
            of the head, and "places": by graph and weight the number of the file, the first byte, the type, the shape
            in the file, and the order of axes that gives the weight.
    """

    facts: dict[str, Any]

    name = BACKBONE

    def tower(self) -> Tower:
        """Return the image tower, from pixels to the features that models over the backbone share."""
        return Tower("openvino", self._graph(TOWER))

    @property
    def tower_parts(self) -> dict[str, Any]:
        """Parts of the key of the cached tower, the same as for the backbone in torch."""
        return {key: self.facts[key] for key in ("weights", "split", "size", "features")}

    def head(
        self, model: str, taxonomy: Taxonomy, texts: Sequence[Sequence[str]], thresholds: float | Sequence[float]
    ) -> Graph:
        """Return the zero-shot head, from the tower's features to probabilities.

        Args:
            model: Name given by the user.
            taxonomy: K labels, not exclusive.
            texts: The texts of each label, first its words alone; see `class_texts`.
            thresholds: One, or K.

        Raises:
            IntclipError: A sentence is too long, or its words are unknown to the text tower.
        """
        check_known(self, [own[0] for own in texts], OTHER_LANGUAGE)
        plausible, judged = load_scenes().judged(taxonomy)
        features = self.embed([text for own in texts for text in own])
        ends = np.cumsum([len(own) for own in texts])[:-1]
        means = np.stack([part.mean(axis=0) for part in np.split(features, ends)])
        unit = means / np.linalg.norm(means, axis=1, keepdims=True)
        labels: Values = {"text": unit, "plausible": plausible.T, "judged": judged}
        card = ModelCard.model_validate(
            self.facts["card"]
            | {"model": model, "labels": taxonomy.names, "taxonomy": taxonomy.to_dict()}
            | {"thresholds": np.broadcast_to(np.asarray(thresholds, np.float32), len(taxonomy.names)).tolist()}
        )
        return Graph("openvino", self._graph(HEAD, labels), card)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return unit text embeddings (T, D)."""
        config = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        compiled = require("openvino").Core().compile_model(self._graph(TEXT), "CPU", config)
        rows = token_rows(self._tokenizer, texts)
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        parts = []
        for start in range(0, len(order), _BATCH):
            some = [rows[place] for place in order[start : start + _BATCH]]
            tokens = np.zeros((len(some), max(map(len, some))), dtype=np.int64)
            for place, row in enumerate(some):
                tokens[place, : len(row)] = row
            parts.append(compiled(tokens)[0].copy())
        features = np.concatenate(parts)[np.argsort(order)]
        unit: npt.NDArray[np.float32] = features / np.linalg.norm(features, axis=1, keepdims=True)
        return unit

    def unknown_share(self, texts: Sequence[str]) -> list[float]:
        """See `wordpieces.unknown_share`."""
        return unknown_share(self._tokenizer, texts)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(package_folder(TEXT_PACKAGE) / "model" / "tokenizer.json")

    def _graph(self, name: str, values: Values | None = None) -> Any:
        model = require("openvino").Core().read_model(FOLDER / name)
        files = [np.memmap(path, mode="r") for path in weight_files()]
        weights = {}
        for weight, (file, start, kind, shape, axes) in self.facts["places"][name].items():
            end = start + np.dtype(kind).itemsize * int(np.prod(shape))
            weights[weight] = files[file][start:end].view(kind).reshape(shape).transpose(axes)
        return fill(model, {**weights, **(values or {})})


def find_prebuilt(backbone: str) -> PrebuiltGraphs | None:
    """Return the packaged graphs of a backbone; None if there are none, or if other weights are installed."""
    if backbone != BACKBONE or not (FOLDER / WEIGHTS).is_file():
        return None
    facts = json.loads((FOLDER / WEIGHTS).read_text(encoding="utf-8"))
    try:
        same = facts["weights"] == embedded_identity(BACKBONE) and facts["scenes"] == sha256_file(SCENES)
    except (CheckpointError, OSError):  # torch reports what is missing
        return None
    return PrebuiltGraphs(facts) if same else None


def fill(model: Any, values: Values) -> Any:
    """Replace inputs of a model by constants, fold them, and return the model."""
    openvino = require("openvino")
    passes = require("openvino.passes", "openvino")
    for parameter in model.get_parameters():
        name = parameter.output(0).get_any_name()
        if name in values:
            constant = openvino.op.Constant(np.array(values[name]))
            for port in parameter.output(0).get_target_inputs():
                port.replace_source_output(constant.output(0))
            model.remove_parameter(parameter)
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(model)
    model.validate_nodes_and_infer_types()
    return model
