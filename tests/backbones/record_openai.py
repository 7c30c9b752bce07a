"""Record the output of OpenAI's own code in `recorded/`. Run manually; the tests only read the files.

    pip download --no-deps --dest /tmp/clip clip-anytorch==2.6.0   # OpenAI's `clip`, repackaged
    python -m zipfile -e /tmp/clip/clip_anytorch-2.6.0-py3-none-any.whl /tmp/clip
    PYTHONPATH=src python tests/backbones/record_openai.py /tmp/clip/clip
    PYTHONPATH=src python tests/backbones/record_openai.py /tmp/clip/clip --sweep   # compare every code point instead

Recorded with Python 3.11, torch 2.13.0 (CPU), regex 2026.11.15 and ftfy 6.3.1.
"""

import importlib.util
import json
import sys
import unicodedata
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import save_file
from seeded import SMALL, pixels, seeded_state, token_rows
from texts import TEXTS

from intclip.backbones.tokenizer import encode

HERE = Path(__file__).parent / "recorded"


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record_tokens(package: Path) -> None:
    tokenizer = load_module(package / "simple_tokenizer.py").SimpleTokenizer()
    start, end = tokenizer.encoder["<|startoftext|>"], tokenizer.encoder["<|endoftext|>"]
    rows = [[text, [start, *tokenizer.encode(text), end]] for text in TEXTS]
    lines = ",\n".join(json.dumps(row) for row in rows)
    (HERE / "tokens.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def keep(stages: dict[str, torch.Tensor], name: str, _module: object, _inputs: object, out: torch.Tensor) -> None:
    stages[name] = out.clone()


def record_towers(package: Path) -> None:
    clip = load_module(package / "model.py")
    recorded = {}
    for kind, architecture in SMALL.items():
        model = clip.CLIP(
            architecture.embed_dim,
            architecture.image_size,
            architecture.vision_layers,
            architecture.vision_width,
            architecture.patch_size,
            architecture.context_length,
            architecture.vocab_size,
            architecture.text_width,
            architecture.text_width // 64,
            architecture.text_layers,
        ).eval()
        shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        model.load_state_dict(seeded_state(shapes), strict=False)
        stages = {}
        if kind == "resnet":
            for name in ("layer2", "layer4"):
                layer = getattr(model.visual, name)
                layer.register_forward_hook(partial(keep, stages, name))
        with torch.no_grad():
            recorded[f"{kind}.image"] = model.encode_image(pixels(architecture))
            recorded[f"{kind}.text"] = model.encode_text(token_rows(architecture))
        recorded |= {f"{kind}.{name}": stage for name, stage in stages.items()}
        (HERE / f"{kind}_keys.json").write_text(json.dumps(shapes) + "\n")
    save_file({key: tensor.contiguous() for key, tensor in recorded.items()}, HERE / "openai_clip.safetensors")


def sweep(package: Path) -> None:
    """Print assigned code points, alone and within words, with ids different from OpenAI's."""
    tokenizer = load_module(package / "simple_tokenizer.py").SimpleTokenizer()
    assigned = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) not in ("Cn", "Cs")]
    texts = {character: f"a{character}b {character}{character}1 '{character}" for character in assigned}
    others = [c for c, text in texts.items() if tokenizer.encode(text) != encode(text, sys.maxsize)[1:-1]]
    print(f"{len(assigned)} code points, {len(others)} with other ids: {[f'U+{ord(c):04X}' for c in others]}")


if __name__ == "__main__":
    if "--sweep" in sys.argv:
        sweep(Path(sys.argv[1]))
    else:
        HERE.mkdir(exist_ok=True)
        record_tokens(Path(sys.argv[1]))
        record_towers(Path(sys.argv[1]))
