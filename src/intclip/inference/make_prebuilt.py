"""`python -m intclip.inference.make_prebuilt`: build the graphs of `prebuilt.py` anew for other towers or weights.

Torch modules are converted with all weights as inputs of the graph; a weight is located in a file by its bytes.
Batch norms are folded, and queries, keys and values joined, inside the graph.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intclip.backbones import load_backbone
from intclip.backbones.checkpoint_files import read_state_dict
from intclip.backbones.efficientnet_lite import FoldedConv, fold, named_convolutions
from intclip.backbones.lite import LiteBackbone
from intclip.backbones.minilm import own_tensors
from intclip.errors import CheckpointError
from intclip.extras import require
from intclip.files import sha256_file, write_text
from intclip.inference.conversion import INPUT, to_openvino
from intclip.inference.export import make_card, tower_features
from intclip.inference.graph import FeatureGraph, HeadGraph, example_pixels
from intclip.inference.prebuilt import BACKBONE, FOLDER, HEAD, SCENES, TEXT, TOKENS, TOWER, WEIGHTS, weight_files
from intclip.labels import load_taxonomy
from intclip.labels.scenes import load_scenes
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.registry import build_method
from intclip.methods.zero_shot.scene_embeddings import TENSOR
from intclip.methods.zero_shot.scene_scoring import label_values

Inputs = dict[str, Tensor]
_LABELS = ("text", "plausible", "judged")
_SENTENCES = (("a photo", "why people share photos of the sea"), ("sea", "a", "friends at a table in the evening"))
_OF_LABELS = {"model", "labels", "thresholds", "taxonomy", "intclip", "card_version"}
_CONV = ("weight", "scale", "shift", "mean", "var")
_NORM = ("weight", "bias", "running_mean", "running_var")


class TowerShape(nn.Module):
    """The image tower; weights by their names in the checkpoints, those of the head behind "head."."""

    def __init__(self, graph: FeatureGraph, backbone: LiteBackbone) -> None:
        super().__init__()
        self.graph = graph
        names = {id(module): name for name, module in graph.named_modules()}
        ((trunk, deep),) = backbone.parts()
        self.layers = [
            (conv, norm, names[id(layer)], isinstance(layer, FoldedConv))
            for conv, norm, layer in named_convolutions([*trunk, *deep])
        ]

    def forward(self, inputs: Inputs) -> dict[str, Tensor]:
        """Features of "pixels"."""
        values: dict[str, Tensor] = {}
        for conv, norm, name, folded in self.layers:
            own = [inputs[f"{conv}.weight"], *(inputs[f"{norm}.{part}"] for part in _NORM)]
            parts = zip(("weight", "bias"), fold(*own), strict=True) if folded else zip(_CONV, own, strict=True)
            values |= {f"{name}.{part}": value for part, value in parts}
        head = {
            "projection.weight": inputs["head.projection.weight"].float(),
            "projection.bias": inputs["head.projection.bias"].float(),
            "class_share": inputs["head.class_share"].float(),
            "class_weight": inputs["_fc.weight"],
            "class_bias": inputs["_fc.bias"],
            "names": F.normalize(inputs["head.names"].float(), dim=1),
        }
        values |= {f"backbone.head.{name}": value for name, value in head.items()}
        found: dict[str, Tensor] = _with(self.graph, values)(inputs[INPUT])
        return found


class TextShape(nn.Module):
    """The text tower; weights by their names in a `BertModel`."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.text = text

    def forward(self, inputs: Inputs) -> Tensor:
        """Unnormalised features of "tokens"."""
        weights = {name: value for name, value in inputs.items() if name != TOKENS}
        features: Tensor = _with(self.text, own_tensors(weights))(inputs[TOKENS])
        return features


class HeadShape(nn.Module):
    """Zero-shot through scenes, of labels that are inputs too."""

    def __init__(self, head: HeadGraph) -> None:
        super().__init__()
        self.head = head

    def forward(self, inputs: Inputs) -> dict[str, Tensor]:
        """Outputs of `HeadGraph`, of its features and of "text", "plausible" (K, S) and "judged"."""
        scenes = F.normalize(inputs["scenes"].float(), dim=1)
        text, plausible, judged = (inputs[name] for name in _LABELS)
        values = label_values(scenes, inputs["mean"], inputs["covariance"], text, plausible.T, judged)
        replaced = {f"method.scenes.{name}": value for name, value in values.items()}
        features = {name: inputs[name] for name in self.head.needs}
        found: dict[str, Tensor] = _with(self.head, replaced)(features)
        return found


def main() -> None:
    """Write the graphs, and where their weights lie."""
    backbone = load_backbone(BACKBONE)
    assert isinstance(backbone, LiteBackbone)
    image, text, _, projection, names, scenes = weight_files()
    method = build_method("zero_shot", backbone, load_taxonomy("intentonomy"), {"scenes": True})
    joint = _tensors(projection)
    tower = _tensors(image)
    tower = {name: tower[name] for name in tower if not name.endswith("num_batches_tracked")}
    tower |= {f"head.{name}": value for name, value in joint.items() if not name.startswith("moments.")}
    tower["head.names"] = _tensors(names)["names"]
    head = {"scenes": _tensors(scenes)[TENSOR]}
    head |= {name: joint[f"moments.{name}"] for name in ("mean", "covariance")}
    bert = {name: value for name, value in _tensors(text).items() if not name.startswith("pooler.")}
    bert.pop("embeddings.position_ids", None)
    pixels = [torch.from_numpy(example_pixels(backbone, batch)) for batch in (2, 3)]
    graph = HeadGraph(method, exclusive=False, maps=True, embedding=True)
    labels = [load_taxonomy(name) for name in ("intentonomy", "sentiment3")]
    made = {
        TOWER: (
            TowerShape(FeatureGraph(backbone, tower_features(method)), backbone),
            tower,
            [{INPUT: each} for each in pixels],
        ),
        HEAD: (HeadShape(graph), head, [_head_inputs(graph, *each) for each in zip(pixels, labels, strict=True)]),
        TEXT: (TextShape(backbone.text), bert, [{TOKENS: backbone.text.tokenize(texts)} for texts in _SENTENCES]),
    }
    contents = [path.read_bytes() for path in weight_files()]
    card = make_card(method, model=BACKBONE, thresholds=0)
    facts: dict[str, Any] = {
        "weights": backbone.identity(),
        "split": backbone.split,
        "size": backbone.image_size,
        "features": tower_features(method),
        "scenes": sha256_file(SCENES),
        "card": card.model_dump(mode="json", exclude=_OF_LABELS),
        "places": {},
    }
    FOLDER.mkdir(exist_ok=True)
    for name, (module, weights, batches) in made.items():
        example, *others = ({key: value.numpy() for key, value in (batch | weights).items()} for batch in batches)
        model = to_openvino(module, example, others=others, fixed=weights)
        require("openvino").save_model(model, FOLDER / name, compress_to_fp16=False)
        facts["places"][name] = {key: _place(key, value.numpy(), contents) for key, value in weights.items()}
    write_text(FOLDER / WEIGHTS, json.dumps(facts) + "\n")


def _with(module: nn.Module, values: Inputs) -> nn.Module:
    """The module, which computes with these tensors from now on; `torch.func.functional_call` cannot be traced."""
    for name, value in values.items():
        parent, _, leaf = name.rpartition(".")
        part = module.get_submodule(parent)
        if part._parameters.pop(leaf, None) is None and part._buffers.pop(leaf, None) is None:
            assert leaf in part.__dict__, name
        part.__dict__[leaf] = value
    return module


def _head_inputs(graph: HeadGraph, pixels: Tensor, taxonomy: Taxonomy) -> Inputs:
    backbone = graph.method.backbone
    plausible, judged = load_scenes().judged(taxonomy)
    labels = (
        backbone.embed_texts(taxonomy.sentences("fine")),
        torch.from_numpy(plausible.T.copy()),
        torch.from_numpy(judged),
    )
    return backbone.features(pixels, graph.needs) | dict(zip(_LABELS, labels, strict=True))


def _tensors(path: Path) -> Inputs:
    return {name: value for name, value in read_state_dict(path).items() if isinstance(value, Tensor)}


def _place(name: str, array: npt.NDArray[Any], contents: list[bytes]) -> list[Any]:
    """Number of the file, first byte, type, shape as it lies there, and the order of axes that gives the weight.

    Raises:
        CheckpointError: No file holds it.
    """
    inner = np.argsort([-stride for stride in array.strides], kind="stable")
    stored = array.transpose(inner)  # a checkpoint may hold its weights channels last
    wanted = stored.tobytes()
    for number, content in enumerate(contents):
        if (start := content.find(wanted)) >= 0:
            return [number, start, array.dtype.name, list(stored.shape), np.argsort(inner).tolist()]
    raise CheckpointError(f"no file holds the bytes of {name}; use the checkpoints that `lite` reads")


if __name__ == "__main__":
    main()
