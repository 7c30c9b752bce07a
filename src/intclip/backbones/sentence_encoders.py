"""Sentence encoders by name: MiniLM, a backbone's own text tower, or a sentence-transformers model on disk."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from intclip.backbones.base import Backbone
from intclip.backbones.lite_towers import LITE_BACKBONES
from intclip.backbones.registry import load_backbone
from intclip.errors import IntclipError
from intclip.extras import require

Embed = Callable[[Sequence[str]], npt.NDArray[np.float32]]
"""Texts to unit embeddings (T, D)."""
MINILM, OWN_TOWER = "minilm", "backbone"


def text_backbone(name: str, backbone: Backbone) -> Backbone:
    """Return the backbone with the text tower of an encoder: `lite` for "minilm", else the given one."""
    return load_backbone("lite") if name == MINILM and backbone.name not in LITE_BACKBONES else backbone


def sentence_encoder(name: str, backbone: Backbone) -> Embed:
    """Return an encoder for texts of any length.

    Args:
        name: "minilm"; "backbone", the backbone's own text tower; or the folder of a sentence-transformers model, which
            is read from disk, without network access.
        backbone: See `text_backbone`.

    Raises:
        IntclipError: The encoder is unknown.
        MissingExtraError: A folder is given and sentence-transformers is not installed.
    """
    if name in (MINILM, OWN_TOWER):
        return lambda texts: backbone.embed_texts(texts, long="average").cpu().numpy()
    folder = Path(name)
    if not (folder / "modules.json").is_file():
        raise IntclipError(
            f"unknown text encoder {name!r}: choose minilm, backbone, or the folder of a sentence-transformers model"
        )
    model = require("sentence_transformers", "posts").SentenceTransformer(
        os.fspath(folder),
        device="cpu",
        local_files_only=True,
        trust_remote_code=False,
        model_kwargs={"use_safetensors": True},  # a pickled checkpoint could run code
    )

    def encode(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        found = model.encode(list(texts), show_progress_bar=False, normalize_embeddings=True)
        return np.asarray(found, dtype=np.float32)

    return encode
