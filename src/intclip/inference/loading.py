"""`intclip.load`: from a name, a bundle, an exported file or a hub repository to a `Predictor`."""

import difflib
import filecmp
import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from intclip.backbones.lite_towers import LITE_BACKBONES
from intclip.errors import BundleError, CheckpointError, IntclipError
from intclip.files import atomic_directory, cache_home
from intclip.inference.bundle import JSON_FILE, WEIGHTS_FILE, Bundle, load_bundle
from intclip.inference.card import Channel, ModelCard
from intclip.inference.engines import Precision, choose_engine
from intclip.inference.exported import SUFFIXES, GraphFormat, Tower, open_graph
from intclip.inference.graph_cache import (
    cached_graph,
    cached_tower,
    graph_key,
    keep_graph,
    keep_tower,
    weights_identity,
)
from intclip.inference.predictor import Predictor
from intclip.labels.taxonomy import Taxonomy

if TYPE_CHECKING:
    from intclip.methods.base import Method

ZERO_SHOT = "zero-shot"
ZERO_SHOT_THRESHOLD = 0.5
"""From sentences alone p = 0.5 is where a label begins to stand out from ordinary photos."""
SCENES_THRESHOLD = 0.45
"""Of labels read through scenes: people find somewhat more plausible than the scenes say (docs/results.md), so this is
where a label is rather plausible than not."""
SENTENCES = "11-15"
"""Words of a label by default; what a trained model was asked with stands in its bundle."""
BUNDLES = Path(__file__).parents[1] / "bundles"
SHORT_NAMES = {"proxy": "proxy-lite"}
"""Spec to the folder of a bundle inside the package."""
HUB = "hf://"
_ENGINES: dict[GraphFormat, str] = {"openvino": "OpenVINO", "onnx": "ONNX Runtime"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Model:
    """A model that was resolved and not yet built.

    Attributes:
        name: What the user asked for.
        method_name: The method's name.
        thresholds: One, or K.
        identity: What its numbers depend on, as plain data: the key of its cached graph.
        build: Makes the torch method.
        channels: What it reads of a post.
        channel_thresholds: See `ModelCard`.
    """

    name: str
    method_name: str
    thresholds: Any
    identity: dict[str, Any]
    build: "Callable[[], Method]"
    channels: tuple[Channel, ...] = ("image",)
    channel_thresholds: dict[Channel, list[float]] = field(default_factory=dict)


def load(
    spec: str | os.PathLike[str] = "lite",
    *,
    taxonomy: str | os.PathLike[str] | Taxonomy | None = None,
    engine: str = "auto",
    device: str = "auto",
    precision: Precision = "f32",
    sentences: str = SENTENCES,
    checkpoint: str | os.PathLike[str] | None = None,
    threads: int | None = None,
) -> Predictor:
    """Load a model.

    Args:
        spec: "lite", "lite2" or "lite+lite2" (embedded, offline, zero-shot); "zero-shot:NAME" with a backbone such as
            RN101; "proxy" (the trained bundle inside the package); the folder of a bundle, or of the run that made it
            (`intclip train`, `intclip fit`); an exported file (`*.onnx`, `*.xml`); "hf://owner/name", a bundle on the
            Hugging Face hub, "@revision" appended or not.
        taxonomy: For zero-shot models: a built-in name, a YAML file, or a `Taxonomy`; Intentonomy by default. A trained
            model brings its own.
        engine: "auto" (a GPU by torch; on a CPU OpenVINO where it is installed, else torch), "torch", "openvino",
            "onnx".
        device: "auto", "cpu", "cuda", "mps"; other than the CPU only by torch.
        precision: "f32" is exact; "bf16" and "f16" where the machine has them.
        sentences: For zero-shot models: which words of a label; see `Taxonomy.sentences`. A trained model has its own.
        checkpoint: The backbone's weights file, where it is not the registry's own.
        threads: Threads to compute with; all cores by default.

    Raises:
        IntclipError: One line says what is missing or wrong, and how to mend it.

    Example:
        >>> intclip.load("lite").predict("photo.jpg")[0].labels  # doctest: +SKIP
    """
    if precision not in get_args(Precision):
        raise IntclipError(f"unknown precision {precision!r}; choose {', '.join(get_args(Precision))}")
    if threads is not None and threads < 1:
        raise IntclipError(f"{threads} threads cannot compute; give at least 1, or none for all cores")
    text = os.fspath(spec)
    if not text:
        raise IntclipError("the model's name is empty; give lite, proxy, zero-shot:NAME, or a bundle's folder")
    path = Path(text)
    exported = path.suffix in SUFFIXES
    if checkpoint is not None and (exported or text in LITE_BACKBONES):
        raise IntclipError(f"{text} brings its own weights; it takes no checkpoint")
    if exported:
        if path.exists():  # else opening it says that there is no such model
            _refuse_labels(text, taxonomy, sentences)
        return _load_exported(path, engine, device, precision, threads)
    if is_zero_shot(text):
        model = _zero_shot(text, taxonomy, sentences, checkpoint)
    else:
        bundle = None if text.startswith(HUB) else bundle_path(text)  # is there such a model? Before what it takes
        _refuse_labels(text, taxonomy, sentences)
        model = _bundle_model(text, load_bundle(bundle or bundle_path(text)), checkpoint)
    if "image" not in model.channels:
        if engine not in ("auto", "torch"):
            raise IntclipError(f"{text} reads words alone, which torch computes; leave engine at auto")
        engine = "torch"
    name = choose_engine(engine, device)
    if name == "torch":
        method = model.build()
        card = _card(model, method)
        return Predictor(card, engine=name, build=lambda: method, precision=precision, device=device, threads=threads)
    return _load_graph(model, name, precision, threads)


def is_zero_shot(spec: str) -> bool:
    """Whether a model is a backbone alone, which takes any taxonomy, and no bundle."""
    return spec in LITE_BACKBONES or spec.startswith(ZERO_SHOT)


def _load_exported(path: Path, engine: str, device: str, precision: Precision, threads: int | None) -> Predictor:
    graph = open_graph(path)
    if engine not in ("auto", graph.format) or device not in ("auto", "cpu"):
        raise IntclipError(f"{path} runs in engine {graph.format!r} on the CPU; leave engine and device at auto")
    return Predictor(graph.card, engine=graph.format, graph=graph, precision=precision, threads=threads)


def _load_graph(model: _Model, format: GraphFormat, precision: Precision, threads: int | None) -> Predictor:
    """The model's graph from the cache, else converted now and kept there. Only the second needs torch."""
    key = graph_key(model=model.name, **model.identity)
    graph = cached_graph(key, format)
    if graph is None:
        from intclip.inference.export import convert_head, trains_trunk

        method = model.build()
        card = _card(model, method)
        tower_key, tower = ("", None) if trains_trunk(method) else _tower(method, format)
        head = convert_head(method, card, format, maps=bool(card.maps))
        keep_graph(key, head, tower_key)
        # From the file, as every later load: the same graph from memory may compute with other last bits.
        graph = cached_graph(key, format) or (head if tower is None else tower.join(head))
    return Predictor(graph.card, engine=format, graph=graph, build=model.build, precision=precision, threads=threads)


def _tower(method: "Method", format: GraphFormat) -> tuple[str, Tower]:
    """The key and the graph of a method's image tower: converted once a backbone, for all methods and labels."""
    from intclip.inference.export import convert_tower, tower_features

    backbone = method.backbone
    key = graph_key(
        # By content: bundles of one backbone's name may have been trained over other weights, or another activation.
        weights=backbone.identity(),
        split=backbone.split,
        size=backbone.image_size,
        features=tower_features(method),
    )
    tower = cached_tower(key, format)
    if tower is None:
        home = cache_home()
        kept = "; INTCLIP_CACHE is off, so every start does it" if home is None else f", once; kept in {home}"
        _log.info("making %s ready for %s%s", backbone.name, _ENGINES[format], kept)
        tower = convert_tower(method, format)
        keep_tower(key, tower)
    return key, tower


def _zero_shot(
    spec: str,
    taxonomy: str | os.PathLike[str] | Taxonomy | None,
    sentences: str,
    checkpoint: str | os.PathLike[str] | None,
) -> _Model:
    backbone = "lite" if spec == ZERO_SHOT else spec.removeprefix(f"{ZERO_SHOT}:")
    labels = _read_taxonomy("intentonomy" if taxonomy is None else taxonomy)
    options = zero_shot_options(backbone, sentences)

    def build() -> "Method":
        from intclip.backbones import load_backbone
        from intclip.methods.registry import build_method

        return build_method(
            "zero_shot",
            load_backbone(backbone, checkpoint=checkpoint),
            labels,
            options,
        )

    identity = {
        "method": "zero_shot",
        "options": options,
        "sentences": labels.sentences(sentences),
        "backbone": backbone,
        "weights": weights_identity(backbone, checkpoint),
        "taxonomy": labels.to_dict(),
    }
    threshold = SCENES_THRESHOLD if options["scenes"] else ZERO_SHOT_THRESHOLD
    return _Model(spec, "zero_shot", threshold, identity, build)


def zero_shot_options(backbone: str, sentences: str = SENTENCES) -> dict[str, Any]:
    """Options of the method "zero_shot" over a backbone, by name."""
    return {"sentence_form": sentences, "scenes": backbone in LITE_BACKBONES}


def _bundle_model(spec: str, bundle: Bundle, checkpoint: str | os.PathLike[str] | None) -> _Model:
    info = bundle.info
    identity = {
        "bundle": hashlib.sha256((bundle.path / JSON_FILE).read_bytes()).hexdigest(),
        "weights": weights_identity(info.backbone.name, checkpoint),
    }
    return _Model(
        spec,
        info.method.name,
        info.thresholds,
        identity,
        lambda: bundle.build_method(checkpoint),
        tuple(info.channels),
        info.channel_thresholds,
    )


def bundle_path(spec: str) -> Path:
    """Where the bundle of a spec lies; hub repositories are downloaded.

    Raises:
        IntclipError: It is no name, no folder and no repository.
    """
    if spec.startswith(HUB):
        return _fetch_bundle(spec)
    name = SHORT_NAMES.get(spec, spec)
    if (inside := BUNDLES / name).is_dir() and os.sep not in name and name not in ("", ".", ".."):
        return inside
    path = Path(spec)
    if path.exists():
        # The directory of a training run holds its bundle under this name.
        return path / "bundle" if (path / "bundle" / JSON_FILE).is_file() else path
    known = [*LITE_BACKBONES, f"{ZERO_SHOT}:RN101", *sorted(SHORT_NAMES)]
    near = difflib.get_close_matches(spec, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"give a bundle's folder, or one of: {', '.join(known)}"
    raise IntclipError(f"no model {spec!r}: {hint}")


def _fetch_bundle(spec: str) -> Path:
    """A bundle of the hub as plain files in the cache folder.

    The hub's own cache is made of links, which a bundle must not be; so the two files are copied out of it.
    """
    from intclip.backbones import hub

    try:
        repo, revision = hub.parse(hub.HUB_PREFIX + spec.removeprefix(HUB))
    except CheckpointError as error:
        raise BundleError(
            f"{spec!r} is no bundle on the hub; write {HUB}owner/name or {HUB}owner/name@revision"
        ) from error
    try:
        found = [hub.fetch(hub.HubFile(repo, name, revision)) for name in (JSON_FILE, WEIGHTS_FILE)]
    except CheckpointError as error:
        raise BundleError(
            f"cannot fetch the bundle {spec}: {str(error).partition(';')[0]}; "
            "or fetch its folder on a machine with a network and load that"
        ) from error
    home = cache_home() or Path(found[0]).parent
    folder = home / "bundles" / f"{repo.replace('/', '--')}-{found[0].parent.name[:12]}"
    names = (JSON_FILE, WEIGHTS_FILE)
    # Compared, not only looked for: a copy that was damaged is made anew, since nobody else would ever do it.
    if not all((folder / name).is_file() for name in names) or not all(
        filecmp.cmp(file, folder / name, shallow=False) for file, name in zip(found, names, strict=True)
    ):
        with atomic_directory(folder, overwrite=True) as partial:
            for file, name in zip(found, names, strict=True):
                (partial / name).write_bytes(file.read_bytes())
    return folder


def _card(model: _Model, method: "Method") -> ModelCard:
    from intclip.inference.export import make_card

    return make_card(
        method,
        model=model.name,
        method_name=model.method_name,
        thresholds=model.thresholds,
        channel_thresholds=model.channel_thresholds,
    )


def _refuse_labels(spec: str, taxonomy: object, sentences: str) -> None:
    if taxonomy is not None or sentences != SENTENCES:
        what = "sentences are" if taxonomy is None else "a taxonomy is"
        raise IntclipError(f"{spec} brings its own labels; {what} for zero-shot models: lite, zero-shot:NAME")


def _read_taxonomy(taxonomy: str | os.PathLike[str] | Taxonomy) -> Taxonomy:
    if isinstance(taxonomy, Taxonomy):
        return taxonomy
    from intclip.labels import load_taxonomy

    return load_taxonomy(taxonomy)
