"""Small generated files in every layout."""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

INTENTS = [
    "Attractive", "BeatCompete", "Communicate", "CreativeUnique", "CuriousAdventurousExcitingLife", "EasyLife",
    "EnjoyLife", "FineDesignLearnArt-Arch", "FineDesignLearnArt-Art", "FineDesignLearnArt-Culture",
    "GoodParentEmoCloseChild", "Happy", "HardWorking", "Harmony", "Health", "InLove", "InLoveAnimal", "InspirOthrs",
    "ManagableMakePlan", "NatBeauty", "PassionAbSmthing", "Playful", "ShareFeelings", "SocialLifeFriendship",
    "SuccInOccupHavGdJob", "TchOthrs", "ThngsInOrdr", "WorkILike",
]  # fmt: skip
"""The short names of the published annotation files, in order of their ids."""


def photo(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A smooth picture, different for each seed, that survives JPEG."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_photo(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    photo(seed, size).save(path)
    return path


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that declares a size but has almost no content."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def jpeg_of_claimed_size(width: int, height: int) -> bytes:
    """A small JPEG whose header claims another size."""
    content = bytearray(encode(photo()))
    start = content.index(b"\xff\xc0")
    content[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def intentonomy_file(
    path: Path,
    photos: Sequence[tuple[str, Sequence[float]]],
    names: list[str],
    *,
    soft: bool = False,
    url: str = "",
) -> Path:
    """An annotation file in Intentonomy's format."""
    key = "category_ids_softprob" if soft else "category_ids"
    return write_json(
        path,
        {
            "info": {"year": 2020},
            "categories": [{"id": index, "name": name} for index, name in enumerate(names)],
            "images": [
                {"id": name, "filename": f"low/{name}.jpg", "original_id": name, "unsplash_url": f"{url}/{name}?q=30"}
                for name, _ in photos
            ],
            "annotations": [{"id": i, "image_id": name, key: labels} for i, (name, labels) in enumerate(photos)],
        },
    )


def tar(path: Path, files: dict[str, bytes | str]) -> Path:
    """An uncompressed tar of these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
