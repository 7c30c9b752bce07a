"""Inference of IntCLIP on RN101, compared with the reference's model call and plain CLIP, also in bf16 and int8.

    python -m benchmarks.inference --out docs/figures/inference.json
    python -m benchmarks.inference --batch 1 --out docs/figures/inference_one.json

The reference encodes its 56 prompts at every call, as released; ours are constants. `encode_image` is plain CLIP's
pooled embedding, with one branch, on the same engine. `predict_speed.py` measures lite and whole commands.
"""

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import intclip
from benchmarks.loader import write_photos
from benchmarks.machine import openvino_has_bf16, write_report
from benchmarks.reference import ReferenceIntCLIP
from benchmarks.setup import our_method, parse, parser, resnets
from benchmarks.weights import RN101, random_state_dict
from intclip.backbones.base import Backbone
from intclip.inference.bundle import save_bundle
from intclip.inference.engines import compile_module
from intclip.inference.predictor import Predictor
from intclip.inference.speed import installed_engines, noise_pixels
from intclip.timing import paired


class EncodeImage(nn.Module):
    """Plain CLIP: the pooled image embedding."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (B, D) of (B, 3, S, S)."""
        return self.backbone.encode_image(pixels)


def write_model(folder: Path, backbone: Backbone) -> Callable[..., Predictor]:
    """Write IntCLIP on RN101 as a bundle and a weights file; return its `intclip.load`."""
    weights = folder / "RN101.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in random_state_dict(RN101).items()}, weights)
    backbone.given_checkpoint = str(weights)
    save_bundle(folder / "bundle", our_method(backbone).eval(), thresholds=0.5)
    return partial(intclip.load, folder / "bundle", checkpoint=weights)


def call_reference(reference: ReferenceIntCLIP, pixels: Tensor) -> None:
    """Call the released model."""
    with torch.no_grad():
        reference(pixels).softmax(dim=1)


def main() -> None:
    arguments = parse(parser(__doc__))
    engines = installed_engines()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["INTCLIP_CACHE"] = str(folder / "cache")
        reference, backbone = resnets()
        open_model = write_model(folder, backbone)
        pixels = noise_pixels(arguments.batch, RN101.image_size)
        candidates: dict[str, Callable[[], object]] = {
            "reference": partial(call_reference, reference, torch.from_numpy(pixels))
        }
        for engine in engines:
            model = open_model(engine=engine, threads=arguments.threads)
            candidates[f"ours, {engine}"] = partial(model.predict_pixels, pixels)
            plain = compile_module(EncodeImage(backbone), pixels, engine=engine, threads=arguments.threads)
            candidates[f"encode_image, {engine}"] = partial(plain, pixels)
        if "openvino" in engines:
            if openvino_has_bf16():
                halved = open_model(engine="openvino", precision="bf16", threads=arguments.threads)
                candidates["ours, openvino bf16"] = partial(halved.predict_pixels, pixels)
            quantized = open_model(engine="openvino").quantize(write_photos(folder, 64, 500))
            candidates["ours, openvino int8"] = partial(quantized.predict_pixels, pixels)
        result = paired(candidates, baseline="reference", repeats=arguments.repeats, clock=arguments.clock)
    seconds = result["seconds"]
    report = {
        "what": "inference, IntCLIP on RN101, 28 classes, float32 unless said",
        "batch": arguments.batch,
        **result,
        "photos_per_s": {name: round(arguments.batch / value, 2) for name, value in seconds.items()},
        "two branches over encode_image": {
            engine: round(seconds[f"ours, {engine}"] / seconds[f"encode_image, {engine}"], 3) for engine in engines
        },
    }
    if "openvino" in engines:
        report["int8 over float32"] = round(seconds["ours, openvino"] / seconds["ours, openvino int8"], 3)
    write_report(arguments.out, report)


if __name__ == "__main__":
    main()
