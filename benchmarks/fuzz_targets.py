"""The parsers of external data: each must return a result or raise a one-line `IntclipError`.

`tests/fuzz` tries some hundred inputs per parser with hypothesis, `benchmarks/fuzz.py` as many as fit in a minute.
"""

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
import torch
from PIL import Image, ImageCms

from benchmarks.profiles import cmyk_profile, rgb_profile
from intclip.backbones.checkpoint_files import read_state_dict
from intclip.backbones.file_tokenizer import FileTokenizer
from intclip.backbones.model_config import read_config
from intclip.backbones.weight_files import HUGGING_FACE, OPEN_CLIP, PROCESSORS
from intclip.batch.job import MANIFEST, JobOptions, Manifest, ShardRange, read_job
from intclip.batch.references import references
from intclip.batch.shards import read_info, read_shard
from intclip.data.images import read_image
from intclip.data.layouts import index_tar
from intclip.data.tables import read_rows
from intclip.data.tabular import load_table
from intclip.data.unlabelled import read_posts
from intclip.errors import IntclipError
from intclip.inference.bundle import JSON_FILE, WEIGHTS_FILE, load_bundle
from intclip.inference.card import ModelCard
from intclip.inference.loading import BUNDLES
from intclip.inference.sidecars import merge_keywords
from intclip.labels import load_taxonomy
from intclip.training.checkpoint import read_tensors, write_tensors
from intclip.training.recipe import load_recipe

MOST_PIXELS = 2_000_000
"""Larger photos are rejected here, so that time is spent on parsing, not decoding."""
PROXY = BUNDLES / "proxy-lite"


@dataclass(frozen=True)
class Parser:
    """A parser of external data.

    Attributes:
        read: Parses bytes, with a folder for files; raises IntclipError if they are rejected.
        seeds: Valid inputs to mutate; they must be parsed without an error.
        words: Tokens of the format.
    """

    read: Callable[[bytes, Path], object]
    seeds: Callable[[], list[bytes]]
    words: tuple[bytes, ...] = ()


def attempt(parser: Parser, data: bytes, folder: Path) -> bool:
    """Return whether a parser accepts some bytes; anything but a result or a one-line error is a bug."""
    try:
        parser.read(data, folder)
    except IntclipError as error:
        message = str(error)
        assert message, "a refusal without a word"
        assert "\n" not in message, f"more than one line: {message!r}"
        assert len(message) < 2000, f"a message of {len(message)} characters"
        return False
    return True


def _file(name: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    def through_file(data: bytes, folder: Path) -> object:
        path = folder / name
        path.write_bytes(data)
        return read(path)

    return through_file


def _image(data: bytes, folder: Path) -> object:
    return read_image(data, min_side=64, max_pixels=MOST_PIXELS)


def _images() -> list[bytes]:
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    kinds = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for kind in kinds:
        stream = io.BytesIO()
        extra = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}
        photo.save(stream, kind, **extra)
        found.append(stream.getvalue())
    for mode in ("P", "LA", "CMYK", "I;16"):
        stream = io.BytesIO()
        photo.convert("L" if mode == "I;16" else "RGBA" if mode == "LA" else "RGB").convert(mode).save(stream, "TIFF")
        found.append(stream.getvalue())
    return found


def _photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))


def _saved(format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    _photo().save(stream, format, **options)
    return stream.getvalue()


def _heic() -> list[bytes]:
    import pillow_heif

    stream = io.BytesIO()
    pillow_heif.from_pillow(_photo()).save(stream)
    return [stream.getvalue()]


def _jxl() -> list[bytes]:
    import pillow_jxl  # noqa: F401 (adds the format to Pillow)

    return [_saved("JXL"), _saved("JXL", use_container=True, lossless=True)]


def _tiff(values: npt.NDArray[Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


def _deep_tiffs() -> list[bytes]:
    pixels = np.asarray(_photo())
    deep = pixels.astype(np.uint16) * 257
    return [
        _tiff(np.moveaxis(deep, 2, 0), photometric="rgb", planarconfig="separate"),
        _tiff(pixels.astype(np.float32) / 255, photometric="rgb", compression="zlib"),
        _tiff(deep[:, :, 0], photometric="miniswhite", rowsperstrip=5),
        _tiff(deep[:, :, 0].astype(np.uint32), photometric="minisblack", tile=(16, 16)),
    ]


def _raws() -> list[bytes]:
    sensor = np.random.default_rng(0).integers(0, 4096, (64, 64), dtype=np.uint16)
    pattern = [(33421, "H", 2, (2, 2), True), (33422, "B", 4, (0, 1, 1, 2), True)]
    version = [(50706, "B", 4, (1, 4, 0, 0), True)]
    tags = [*pattern, *version]
    return [_tiff(sensor, photometric="cfa", extratags=tags, **layout) for layout in ({}, {"tile": (32, 32)})]


def _sidecar(path: Path) -> object:
    return merge_keywords(path.read_bytes(), path.name, ["joy"], ["good|joy"])


def _sidecars() -> list[bytes]:
    made = merge_keywords(None, "", ["joy", "fear"], ["good|joy"])
    assert made is not None
    lines = (
        '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf='
        '"http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" xmlns:dc='
        '"http://purl.org/dc/elements/1.1/" dc:subject="sea"><!-- x --></rdf:Description></rdf:RDF></x:xmpmeta>'
    )
    return [made, lines.encode()]


def _raw(path: Path) -> object:
    return read_image(path, max_pixels=MOST_PIXELS)


def _profile(data: bytes, folder: Path) -> object:
    return read_image(_saved("PNG", icc_profile=data, compress_level=0))


def _profiles() -> list[bytes]:
    return [ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), rgb_profile(), cmyk_profile()]


def _embedded(path: Path) -> object:
    for image in read_posts([str(path)])[0]:
        if image is not None:
            read_image(image, max_pixels=MOST_PIXELS)
    return load_table(path, missing="keep")


def _embedded_parquet() -> list[bytes]:
    found = []
    photos = [_saved("PNG"), _saved("JPEG")]
    cells = [{"bytes": photo, "path": path} for photo, path in zip(photos, ("a.png", None), strict=True)]
    for column in (cells, photos):
        stream = io.BytesIO()
        pq.write_table(pa.table({"image": column, "labels": [["joy"], []]}), stream)
        found.append(stream.getvalue())
    return found


def _bundle_json(data: bytes, folder: Path) -> object:
    (folder / JSON_FILE).write_bytes(data)
    (folder / WEIGHTS_FILE).write_bytes(_small_bundle()[1])
    return load_bundle(folder)


def _bundle_weights(data: bytes, folder: Path) -> object:
    (folder / JSON_FILE).write_bytes(_small_bundle()[0])
    (folder / WEIGHTS_FILE).write_bytes(data)
    return load_bundle(folder)


@cache
def _small_bundle() -> tuple[bytes, bytes]:
    """Return the package's own bundle with two tiny tensors instead of its weights."""
    import hashlib

    from safetensors.numpy import save

    content = json.loads((PROXY / JSON_FILE).read_text(encoding="utf-8"))
    arrays: dict[str, np.ndarray] = {"a": np.ones((2, 3), dtype=np.float32), "b": np.arange(4, dtype=np.int64)}
    weights = save(arrays, metadata={"format": "intclip-bundle"})
    content["weights"] = {
        "sha256": hashlib.sha256(weights).hexdigest(),
        "tensors": {"a": {"dtype": "F32", "shape": [2, 3]}, "b": {"dtype": "I64", "shape": [4]}},
    }
    return json.dumps(content).encode(), weights


def _card(data: bytes, folder: Path) -> object:
    return ModelCard.from_json(data.decode("utf-8", "replace"), "model.onnx")


def _cards() -> list[bytes]:
    taxonomy = load_taxonomy("sentiment3")
    from intclip.backbones.preprocess import Preprocess

    preprocess = Preprocess(size=24, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    names = list(taxonomy.names)
    card = ModelCard(
        model="lite",
        backbone="lite",
        method="zero_shot",
        task="singlelabel",
        labels=names,
        thresholds=[0.5] * len(names),
        preprocessing=preprocess,
        maps=[],
        taxonomy=taxonomy.to_dict(),
    )
    return [card.to_json().encode()]


def _tables(path: Path) -> object:
    read_rows(path)
    return load_table(path, missing="keep")


def _csv() -> list[bytes]:
    return [b"image,labels,split\na.jpg,joy;fear,train\nb.jpg,[],val\n", b'path,joy,fear\n"a, b.jpg",1,0.5\nb.jpg,0,\n']


def _jsonl() -> list[bytes]:
    rows = [{"image": "a.jpg", "labels": ["joy"], "text": "x"}, {"image": "b.jpg", "labels": []}]
    votes = [{"path": "a.jpg", "votes": {"joy": 0.5, "fear": 1}}]
    return ["\n".join(json.dumps(row) for row in part).encode() for part in (rows, votes)]


def _parquet() -> list[bytes]:
    stream = io.BytesIO()
    pq.write_table(pa.table({"image": ["a.jpg", "b.jpg"], "labels": [["joy"], []]}), stream)
    return [stream.getvalue()]


def _tar(path: Path) -> object:
    list(references([str(path)]))
    return index_tar(path)


def _tars() -> list[bytes]:
    found = []
    for kind in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=kind) as archive:
            for name in ("a.jpg", "a.json", f"{'deep/' * 30}b.png"):
                info = tarfile.TarInfo(name)
                info.size = 5
                archive.addfile(info, io.BytesIO(b"12345"))
        found.append(stream.getvalue())
    return found


def _config(data: bytes, folder: Path) -> object:
    """Parse the bytes as the configuration file to which their keys belong."""
    name = OPEN_CLIP if b"model_cfg" in data else HUGGING_FACE if b"model_type" in data else PROCESSORS[0]
    for other in (OPEN_CLIP, HUGGING_FACE, PROCESSORS[0]):
        (folder / other).unlink(missing_ok=True)
    (folder / name).write_bytes(data)
    return read_config(folder / "model.safetensors", "open_clip")


def _configs() -> list[bytes]:
    timm = {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map", "image_size": 224}
    siglip_text = {"context_length": 64, "vocab_size": 32000, "hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}
    siglip_text |= {
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "no_causal_mask": True,
        "pool_type": "last",
        "proj_bias": True,
    }
    open_clip = {
        "model_cfg": {
            "embed_dim": 32,
            "quick_gelu": True,
            "vision_cfg": {"image_size": 48, "layers": 4, "width": 128, "patch_size": 16, "head_width": 64},
            "text_cfg": {"context_length": 16, "vocab_size": 64, "width": 64, "heads": 1, "layers": 3},
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": 0.5, "interpolation": "bicubic", "resize_mode": "squash"},
    }
    towers = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": "quick_gelu"}
    hugging_face = {
        "model_type": "clip",
        "projection_dim": 32,
        "vision_config": towers | {"image_size": 48, "patch_size": 16, "layer_norm_eps": 1e-5},
        "text_config": towers | {"vocab_size": 99, "max_position_embeddings": 20, "eos_token_id": 2},
    }
    siglip = {"model_cfg": {"embed_dim": 768, "vision_cfg": timm, "text_cfg": siglip_text}}
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 48}, "resample": 3}
    processor |= {"crop_size": {"height": 48, "width": 48}, "do_rescale": True, "rescale_factor": 1 / 255}
    processor |= {"do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    return [json.dumps(content).encode() for content in (open_clip, siglip, hugging_face, processor)]


def _weights(path: Path) -> object:
    return read_state_dict(path)


def _pickled() -> list[bytes]:
    stream, old, script = io.BytesIO(), io.BytesIO(), io.BytesIO()
    state = {"w": torch.ones(2, 2), "n": torch.arange(3)}
    torch.save(state, stream)
    torch.save(state, old, _use_new_zipfile_serialization=False)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 1)), script)
    return [stream.getvalue(), old.getvalue(), script.getvalue()]


def _tokenizer(path: Path) -> object:
    return FileTokenizer(path, 64, ends=True).tokenize(["a photo", "photo, x"], 77)


def _tokenizers() -> list[bytes]:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate(("<pad>", "</s>", "<unk>", "a", "photo"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return [tokenizer.to_str().encode()]


def _checkpoints() -> list[bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        write_tensors(path, {"w": torch.ones(2, 2), "n": torch.arange(3)}, {"step": 1})
        return [path.read_bytes()]


def _manifest(path: Path) -> object:
    return read_job(path.parent)


def _manifests() -> list[bytes]:
    shards = [ShardRange(file="part-0000000.parquet", start=0, stop=2)]
    manifest = Manifest(
        source=["x"], fingerprint="0", photos=2, options=JobOptions(), model="0", labels=["a"], thresholds=[0.5],
        shards=shards,
    )  # fmt: skip
    return [manifest.model_dump_json().encode()]


def _shard(path: Path) -> object:
    read_info(path)
    return read_shard(path)


XML = (b"<", b"/>", b"<!DOCTYPE x [", b"<!ENTITY a 'b'>", b"&a;", b"<![CDATA[", b"]]>", b"<?xml ", b"xmlns:x=", b"--")
YAML = (b"- ", b": ", b"&a ", b"*a", b"<<: ", b"!!python/object:os.system ", b"{", b"}", b"[", b"]", b"|\n", b"? ")
CONFIG = (b"quick_gelu", b"act_kwargs", b"norm_kwargs", b"hf_tokenizer_name", b"model_type", b"siglip", b"size")
JSON = (b"{", b"}", b"[", b"]", b'"', b"null", b"NaN", b"1e999", b"-1", b"\\ud800", b"../", b"/etc/passwd", b"true")

PARSERS: dict[str, Parser] = {
    "image": Parser(_image, _images),
    "image: HEIC": Parser(_image, _heic, (b"ftypheic", b"meta", b"iprp", b"ispe", b"hvc1", b"irot", b"colr")),
    "image: JPEG XL": Parser(_image, _jxl, (b"jxlc", b"jxlp", b"jbrd", b"Exif")),
    "image: deep TIFF": Parser(_image, _deep_tiffs),
    "image: raw": Parser(_file("photo.dng", _raw), _raws),
    "colour profile": Parser(_profile, _profiles, (b"A2B0", b"mft2", b"mAB ", b"para", b"curv", b"mpet", b"CMYK")),
    "sidecar": Parser(_file("photo.jpg.xmp", _sidecar), _sidecars, (*XML, b"dc:subject", b"rdf:li", b"rdf:Bag")),
    "embedded photos": Parser(_file("t.parquet", _embedded), _embedded_parquet, (b"PAR1",)),
    "bundle: JSON": Parser(_bundle_json, lambda: [_small_bundle()[0]], JSON),
    "bundle: weights": Parser(_bundle_weights, lambda: [_small_bundle()[1]], (*JSON, b'"F32"', b'"BF16"', b"shape")),
    "card of an exported model": Parser(_card, _cards, JSON),
    "taxonomy": Parser(
        _file("labels.yaml", load_taxonomy),
        lambda: [
            b"- joy\n- fear\n",
            b"name: x\nclasses:\n- {name: joy, parent: good, aliases: [fun]}\n- name: b\n  parent: bad\n",
        ],
        (*YAML, b"classes", b"parents", b"sentences", b"aliases", b"subsets"),
    ),
    "recipe": Parser(
        _file("recipe.yaml", load_recipe),
        lambda: [b"base: tiny\noptim: {lr: 0.1}\n", b"name: x\ndata: {name: proxy-intents}\nmethod: {name: intclip}\n"],
        (*YAML, b"base", b"method", b"options", b".inf", b".nan"),
    ),
    "CSV": Parser(_file("t.csv", _tables), _csv, (b",", b'"', b"\r\n", b"image", b"labels", b";", b"\xef\xbb\xbf")),
    "JSON lines": Parser(_file("t.jsonl", _tables), _jsonl, (*JSON, b"image", b"labels", b"votes")),
    "Parquet": Parser(_file("t.parquet", _tables), _parquet, (b"PAR1",)),
    "tar": Parser(_file("t.tar", _tar), _tars, (b"ustar", b"../", b"\x000000644")),
    "checkpoint": Parser(_file("c.safetensors", read_tensors), _checkpoints, (*JSON, b'"F32"', b"data_offsets")),
    "checkpoint config": Parser(_config, _configs, (*JSON, *CONFIG)),
    "backbone weights": Parser(_file("w.pt", _weights), _pickled, (b"cbuiltins\neval\n", b"data.pkl", b"PK", b"R.")),
    "tokenizer": Parser(_file("tokenizer.json", _tokenizer), _tokenizers, JSON),
    "batch: manifest": Parser(_file(MANIFEST, _manifest), _manifests, JSON),
    "batch: shard": Parser(_file("part.parquet", _shard), _parquet, (b"PAR1",)),
}
