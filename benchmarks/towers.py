"""Image towers of size B with random weights, one photo at a time on one thread: this package compared with others.

    PYTHONPATH=src python -m benchmarks.towers --clock cpu --out docs/figures/towers.json

"raw OpenVINO" is the same tower, converted by OpenVINO's `convert_model` and compiled for latency; "transformers" is
its own model in eager mode. The candidates take turns. Region features are measured for each kind of a CLIP ViT.
"""

import functools
from collections.abc import Callable
from typing import get_args

import numpy as np
import openvino as ov
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, SiglipVisionConfig, SiglipVisionModel

from benchmarks.inference import EncodeImage
from benchmarks.machine import write_report
from benchmarks.setup import parse, parser
from intclip.backbones.architecture import Regions
from intclip.backbones.registry import random_backbone
from intclip.inference.conversion import to_openvino
from intclip.inference.engines import OpenvinoEngine
from intclip.timing import paired

NAMES = ("ViT-B/16", "SigLIP-B/16", "EVA02-B/16", "PE-B/16", "MobileCLIP2-B", "MobileCLIP2-S0", "MobileCLIP2-S2")


def candidates(name: str) -> dict[str, Callable[[], object]]:
    """Return functions that run one photo through each candidate."""
    backbone = random_backbone(name)
    tower = EncodeImage(backbone)
    side = backbone.image_size
    photos = np.random.default_rng(0).standard_normal((2, 3, side, side), dtype=np.float32)
    one, tensor = photos[:1], torch.from_numpy(photos[:1])
    ours = OpenvinoEngine(to_openvino(tower, photos), threads=1)
    with torch.no_grad():
        model = ov.convert_model(tower, example_input=torch.from_numpy(photos))
    raw = ov.Core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"})
    calls: dict[str, Callable[[], object]] = {
        "raw OpenVINO": lambda: raw(one),
        "OpenVINO": lambda: ours(one),
        "torch": lambda: tower(tensor),
    }
    if name == "ViT-B/16":
        clip = CLIPVisionModelWithProjection(CLIPVisionConfig(patch_size=16, attn_implementation="eager")).eval()
        calls["transformers"] = lambda: clip(tensor)
    elif name == "SigLIP-B/16":
        siglip = SiglipVisionModel(SiglipVisionConfig(attn_implementation="eager")).eval()
        calls["transformers"] = lambda: siglip(tensor)
    return calls


def regions() -> dict[str, Callable[[], object]]:
    """Return functions for region features of one photo, by kind."""
    towers = {kind: random_backbone("ViT-B/16", regions=kind) for kind in get_args(Regions)}
    photo = torch.randn(1, 3, 224, 224)
    return {kind: functools.partial(tower.feature_map, photo) for kind, tower in towers.items()}


def main() -> None:
    options = parser(__doc__)
    options.set_defaults(threads=1)
    options.add_argument("--names", nargs="+", default=NAMES, help="towers")
    arguments = parse(options)
    timing = {"repeats": arguments.repeats, "clock": arguments.clock}
    report: dict[str, object] = {}
    with torch.inference_mode():
        for name in arguments.names:
            report[name] = paired(candidates(name), baseline="raw OpenVINO", **timing)
        report["regions of ViT-B/16"] = paired(regions(), baseline="tokens", **timing)
    write_report(arguments.out, report)


if __name__ == "__main__":
    main()
