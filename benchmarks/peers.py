"""Our towers compared with `transformers`' CLIP with the same random weights: equal outputs, and time.

    python -m benchmarks.peers --out docs/figures/peers.json

ViT-B/32, eager float32, image and text towers; texts are 56 rows of 40 tokens. transformers computes all positions;
ours computes the last block only at the end token.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from benchmarks.machine import write_report
from benchmarks.setup import parse, parser
from intclip.backbones.architecture import ARCHITECTURES
from intclip.backbones.checkpoints import build_clip
from intclip.backbones.layouts import to_openai_layout
from intclip.timing import paired


def main() -> None:
    arguments = parse(parser(__doc__))
    peer = CLIPModel(CLIPConfig()).eval()
    ours = build_clip(ARCHITECTURES["ViT-B/32"], to_openai_layout(peer.state_dict()), name="ViT-B/32")
    pixels = torch.randn(arguments.batch, 3, 224, 224)
    tokens = torch.randint(1, 40_000, (56, 40))
    tokens[:, 0], tokens[:, -1] = 49406, 49407
    calls: dict[str, Callable[[], Tensor]] = {
        "image, transformers": lambda: peer.visual_projection(peer.vision_model(pixels).pooler_output),
        "image, ours": lambda: ours.encode_image(pixels),
        "text, transformers": lambda: peer.text_projection(peer.text_model(tokens).pooler_output),
        "text, ours": lambda: ours.encode_text(tokens),
    }
    with torch.no_grad():
        results = {name: call() for name, call in calls.items()}
        report: dict[str, object] = {"batch": arguments.batch}
        for tower in ("image", "text"):
            theirs, mine = results[f"{tower}, transformers"], results[f"{tower}, ours"]
            pair = {name: call for name, call in calls.items() if name.startswith(tower)}
            report[tower] = {
                "largest difference over largest value": float((theirs - mine).abs().max() / theirs.abs().max()),
                **paired(pair, baseline=f"{tower}, transformers", repeats=arguments.repeats, clock=arguments.clock),
            }
    write_report(arguments.out, report)


if __name__ == "__main__":
    main()
