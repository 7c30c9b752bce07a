"""`lite` as OpenVINO graphs without torch: a first prediction need not wait for its import and a conversion.

The package brings the graphs' shapes alone (`ready/*.xml`): every weight is an input of the graph. `weights.json` says
at which byte of which file each weight lies; the files are those that torch reads the weights from, and come with the
packages that `lite` needs anyway. `make_ready.py` writes the folder, from what torch would convert.
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
FOLDER = Path(__file__).with_name("ready")
WEIGHTS = "weights.json"
TOWER, HEAD, TEXT = "tower.xml", "head.xml", "text.xml"
SCENES = Path(__file__).parents[1] / "methods" / "zero_shot" / "scenes.safetensors"
TOKENS = "tokens"
_BATCH = 32
Values = Mapping[str, npt.NDArray[Any]]


def files_of_weights() -> list[Path]:
    """The files that weights lie in: those of the backbone, and the embedded scenes."""
    return [*source_files(BACKBONE, None), SCENES]


@dataclass(frozen=True)
class Ready:
    """What `FOLDER` holds.

    Attributes:
        facts: Content of `WEIGHTS`: what the tower is kept by ("weights", …), the hash of the "scenes", the "card" of
            the head, and of each graph's weights by name ("places") the number of the file, the first byte, the type,
            the shape as it lies there, and the order of axes that gives the weight.
    """

    facts: dict[str, Any]

    name = BACKBONE

    def tower(self) -> Tower:
        """From pixels to the features that models over the backbone share."""
        return Tower("openvino", self._graph(TOWER))

    @property
    def tower_parts(self) -> dict[str, Any]:
        """What the tower is kept by: that of a torch backbone of these weights is the same."""
        return {key: self.facts[key] for key in ("weights", "split", "size", "features")}

    def head(
        self, model: str, taxonomy: Taxonomy, sentences: Sequence[str], thresholds: float | Sequence[float]
    ) -> Graph:
        """What zero-shot makes of the features.

        Args:
            model: What the user asked for.
            taxonomy: K labels, of which several may hold.
            sentences: Theirs, K.
            thresholds: One, or K.

        Raises:
            IntclipError: A sentence is too long, or in words that the text tower does not know.
        """
        check_known(self, sentences, OTHER_LANGUAGE)
        plausible, judged = load_scenes().judged(taxonomy)
        labels = {"text": self.embed(sentences), "plausible": plausible.T, "judged": judged}
        card = ModelCard.model_validate(
            self.facts["card"]
            | {"model": model, "labels": taxonomy.names, "taxonomy": taxonomy.to_dict()}
            | {"thresholds": np.broadcast_to(np.float32(thresholds), len(taxonomy.names)).tolist()}
        )
        return Graph("openvino", self._graph(HEAD, labels), card)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit text embeddings (T, D)."""
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
        files = [np.memmap(path, mode="r") for path in files_of_weights()]
        weights = {}
        for weight, (file, start, kind, shape, axes) in self.facts["places"][name].items():
            end = start + np.dtype(kind).itemsize * int(np.prod(shape))
            weights[weight] = files[file][start:end].view(kind).reshape(shape).transpose(axes)
        return fill(model, {**weights, **(values or {})})


def find_ready(backbone: str) -> Ready | None:
    """The graphs of a backbone, where they came with the package and are of the weights that are installed."""
    if backbone != BACKBONE or not (FOLDER / WEIGHTS).is_file():
        return None
    facts = json.loads((FOLDER / WEIGHTS).read_text(encoding="utf-8"))
    try:
        same = facts["weights"] == embedded_identity(BACKBONE) and facts["scenes"] == sha256_file(SCENES)
    except (CheckpointError, OSError):  # loading in torch says what is missing
        return None
    return Ready(facts) if same else None


def fill(model: Any, values: Values) -> Any:
    """A model with constants for the inputs of these names; what follows from constants alone is computed."""
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
