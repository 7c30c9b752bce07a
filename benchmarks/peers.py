"""Our towers and engines beside other libraries with the same weights: equal outputs, and time.

    python -m benchmarks.peers --clock cpu --out docs/figures/peers.json

A ViT-B/32 with random weights computes the images. transformers' model runs eagerly, as its pipeline from JPEG files,
and converted for OpenVINO and for ONNX Runtime (fastembed runs CLIP like that). Texts of CLIP are 56 rows of 40 tokens,
those of MiniLM have 60 to 140 words. OpenVINO without intclip gets a whole batch in one call.
"""

import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPVisionModel, pipeline

from benchmarks.loader import write_photos
from benchmarks.machine import write_report
from benchmarks.setup import parse, parser
from benchmarks.texts import made_texts
from intclip.backbones import load_backbone
from intclip.backbones.architecture import ARCHITECTURES
from intclip.backbones.checkpoints import build_clip
from intclip.backbones.clip import ClipBackbone
from intclip.backbones.layouts import to_openai_layout
from intclip.backbones.lite_towers import TEXT_PACKAGE, package_folder
from intclip.data.loading import array_batches
from intclip.inference.conversion import to_onnx
from intclip.inference.engines import OnnxEngine, compile_module
from intclip.inference.graph import FeatureGraph
from intclip.inference.text_engine import PAYS_FROM, use_engine
from intclip.timing import paired

PEER, OURS = "peer", "ours"
Call = Callable[[], npt.NDArray[np.float32]]
Pair = tuple[str, Call, Call]
"""The work, and how a peer and ours do it."""


class Images(nn.Module):
    """Image embeddings by transformers."""

    def __init__(self, peer: CLIPModel) -> None:
        super().__init__()
        self.vision, self.projection = peer.vision_model, peer.visual_projection

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (B, D)."""
        found: Tensor = self.projection(self.vision(pixels).pooler_output)
        return found


def clip_pairs(peer: CLIPModel, ours: ClipBackbone, batch: int, photos: list[Path]) -> Iterator[Pair]:
    """Return pairs over one ViT-B/32."""
    noise = torch.randn(batch, 3, 224, 224)
    pixels, tokens = noise.numpy(), torch.randint(1, 40_000, (56, 40))
    tokens[:, 0], tokens[:, -1] = 49406, 49407
    images, graph = Images(peer).eval(), FeatureGraph(ours, ["pooled"])
    yield "images, torch: transformers", lambda: images(noise).numpy(), lambda: ours.encode_image(noise).numpy()
    yield (
        "texts, torch: transformers",
        lambda: peer.text_projection(peer.text_model(tokens).pooler_output).numpy(),
        lambda: ours.encode_text(tokens).numpy(),
    )
    engine = compile_module(graph, pixels[:2], engine="openvino", device="cpu")
    raw = openvino.Core().compile_model(openvino.convert_model(images, example_input=noise[:2]), "CPU")
    yield "images, OpenVINO: converted transformers", lambda: raw(pixels)[0].copy(), lambda: engine(pixels)["pooled"]
    onnx = compile_module(graph, pixels[:2], engine="onnx", device="cpu")
    session = OnnxEngine(to_onnx(images, pixels[:2]).SerializeToString())
    yield (
        "images, ONNX Runtime: converted transformers",
        lambda: next(iter(session(pixels).values())),
        lambda: onnx(pixels)["pooled"],
    )
    vision = CLIPVisionModel(peer.config.vision_config).eval()
    vision.load_state_dict(peer.vision_model.state_dict())
    extract: Any = pipeline("image-feature-extraction", model=vision, image_processor=CLIPImageProcessor())
    paths = [str(photo) for photo in photos]

    def from_files() -> npt.NDArray[np.float32]:
        pooled = extract(paths, batch_size=batch, pool=True, return_tensors=True)
        found: Tensor = peer.visual_projection(torch.cat(pooled))
        return found.numpy()

    yield (
        "JPEG files: transformers pipeline",
        from_files,
        lambda: np.concatenate([engine(b.pixels)["pooled"] for b in array_batches(photos, ours.preprocess, batch)]),
    )


def text_pair() -> Pair:
    """Return MiniLM by sentence-transformers and by ours."""
    texts = made_texts(random.Random(0), 128)
    peer = SentenceTransformer(str(package_folder(TEXT_PACKAGE) / "model"), device="cpu")
    ours = load_backbone("lite").text
    use_engine(ours)
    ours.embed_texts(texts[:PAYS_FROM])
    return (
        "MiniLM: sentence-transformers",
        lambda: peer.encode(texts, show_progress_bar=False, normalize_embeddings=True),
        lambda: ours.embed_texts(texts).numpy(),
    )


def main() -> None:
    """Measure and report."""
    arguments = parse(parser(__doc__))
    peer = CLIPModel(CLIPConfig()).eval()
    ours = build_clip(ARCHITECTURES["ViT-B/32"], to_openai_layout(peer.state_dict()), name="ViT-B/32")
    report: dict[str, object] = {"batch": arguments.batch}
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        photos = write_photos(Path(folder), 2 * arguments.batch, 500)
        for what, theirs, mine in (*clip_pairs(peer, ours, arguments.batch, photos), text_pair()):
            expected, found = theirs(), mine()
            report[what] = {
                "largest difference over largest value": float(np.abs(expected - found).max() / np.abs(expected).max()),
                **paired({PEER: theirs, OURS: mine}, baseline=PEER, repeats=arguments.repeats, clock=arguments.clock),
            }
    write_report(arguments.out, report)


if __name__ == "__main__":
    main()
