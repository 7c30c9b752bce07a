"""`python -m intclip.methods.zero_shot.scene_embeddings`: recompute the scenes' embeddings after a change."""

import hashlib
from pathlib import Path

from safetensors.torch import save

from intclip.files import atomic_path
from intclip.labels.scenes import Scenes, load_scenes

FILE = "scenes.safetensors"
TENSOR = "embeddings"


def fingerprint(bank: Scenes) -> str:
    """Return the SHA-256 of the scenes' texts, which is stored with their embeddings."""
    return hashlib.sha256("\n".join(bank.texts).encode()).hexdigest()


def main() -> None:
    """Write the embeddings, in half precision, to this module's folder."""
    from intclip.backbones.lite import build_towers

    bank = load_scenes()
    embeddings = build_towers().embed_texts(bank.texts).half()
    path = Path(__file__).with_name(FILE)
    with atomic_path(path) as partial:
        partial.write_bytes(save({TENSOR: embeddings}, metadata={"scenes": fingerprint(bank)}))
    print(f"{path}: {len(bank.texts)} scenes")


if __name__ == "__main__":
    main()
