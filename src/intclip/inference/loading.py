"""`intclip.load`: from a name, a bundle, an exported file or a hub repository to a `Predictor`."""

import difflib
import filecmp
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, get_args

from intclip.backbones.lite_towers import LITE_BACKBONES
from intclip.errors import BundleError, CheckpointError, IntclipError
from intclip.files import atomic_directory, cache_home
from intclip.inference.bundle import JSON_FILE, WEIGHTS_FILE, Bundle, load_bundle
from intclip.inference.card import Channel, ModelCard
from intclip.inference.engines import Precision, choose_engine
from intclip.inference.exported import SUFFIXES, Graph, GraphFormat, Tower, open_graph
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
from intclip.labels.templates import class_texts

if TYPE_CHECKING:
    from intclip.methods.base import Method

ZERO_SHOT = "zero-shot"
ZERO_SHOT_THRESHOLD = 0.5
"""For sentences alone, p = 0.5 is where a label begins to stand out from ordinary photos."""
SCENES_THRESHOLD = 0.45
"""For labels with everyday scenes: people find labels slightly more plausible than the scenes suggest
(docs/results.md), so from
here on a label is more likely plausible than not."""
SENTENCES = "11-15"
"""Default form of class text; a trained model's form is in its bundle."""
BUNDLES = Path(__file__).parents[1] / "bundles"
SHORT_NAMES = {"proxy": "proxy-lite"}
"""Name to the folder of a packaged bundle."""
HUB = "hf://"
_ENGINES: dict[GraphFormat, str] = {"openvino": "OpenVINO", "onnx": "ONNX Runtime"}
_log = logging.getLogger(__name__)
P = ParamSpec("P")
Labels = str | os.PathLike[str] | Sequence[Any] | Mapping[str, Any] | Taxonomy
"""Labels of a zero-shot model; see `load_taxonomy`."""


@dataclass(frozen=True)
class _Model:
    """A model that is resolved but not built.

    Attributes:
        name: Name given by the user.
        thresholds: One, or K.
        identity: Everything that its outputs depend on, as plain data, for the key of its cached graph.
        build: Builds the torch method.
        labels: Labels of a zero-shot model that reads scenes.
        channels: Channels that it uses.
        channel_thresholds: See `ModelCard`.
        metrics: Metrics of the training by split.
    """

    name: str
    thresholds: Any
    identity: dict[str, Any]
    build: "Callable[[], Method]"
    labels: Taxonomy | None = None
    channels: tuple[Channel, ...] = ("image",)
    channel_thresholds: dict[Channel, list[float]] = field(default_factory=dict)
    metrics: dict[str, Any] | None = None


def _reloadable(load: Callable[P, Predictor]) -> Callable[P, Predictor]:
    @wraps(load)
    def loaded(*arguments: P.args, **options: P.kwargs) -> Predictor:
        predictor = load(*arguments, **options)
        predictor.reload = partial(loaded, *arguments, **options)
        return predictor

    return loaded


@_reloadable
def load(
    spec: str | os.PathLike[str] = "lite",
    *,
    taxonomy: Labels | None = None,
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
            RN101; "proxy" (the packaged trained bundle); the folder of a bundle, or of the run that made it
            (`intclip train`, `intclip fit`); an exported file (`*.onnx`, `*.xml`); "hf://owner/name", a bundle on the
            Hugging Face hub, optionally with "@revision".
        taxonomy: For zero-shot models: a list of labels, a built-in name, a YAML file or its content, or a `Taxonomy`;
            default: Intentonomy. Trained models have their own.
        engine: "auto" (torch on a GPU; on a CPU OpenVINO if installed, else torch), "torch", "openvino", "onnx".
        device: "auto", "cpu", "cuda", "mps"; only torch supports others than the CPU.
        precision: "f32" is exact; "bf16" and "f16" if the machine supports them.
        sentences: For zero-shot models: form of class text; see `Taxonomy.sentences`. Trained models have their own.
        checkpoint: The backbone's weights file, if not the registry's.
        threads: Compute threads; default: all cores.

    Raises:
        IntclipError: The model is missing or invalid, or options do not fit it.

    Example:
        >>> intclip.load("lite").predict("photo.jpg")[0].labels  # doctest: +SKIP
    """
    if precision not in get_args(Precision):
        raise IntclipError(f"unknown precision {precision!r}; choose {', '.join(get_args(Precision))}")
    if threads is not None and threads < 1:
        raise IntclipError(f"threads={threads}: choose at least 1, or None for all cores")
    text = os.fspath(spec)
    if not text:
        raise IntclipError("the model's name is empty; give lite, proxy, zero-shot:NAME, or a bundle's folder")
    path = Path(text)
    exported = path.suffix in SUFFIXES
    if checkpoint is not None and (exported or text in LITE_BACKBONES):
        raise IntclipError(f"{text} has its own weights; omit checkpoint")
    if exported:
        if path.exists():  # otherwise opening it reports the missing file
            _refuse_labels(text, taxonomy, sentences)
        return _load_exported(path, engine, device, precision, threads)
    if is_zero_shot(text):
        model = _zero_shot(text, taxonomy, sentences, checkpoint)
    else:
        bundle = None if text.startswith(HUB) else bundle_path(text)  # check first that the model exists
        _refuse_labels(text, taxonomy, sentences)
        model = _bundle_model(text, load_bundle(bundle or bundle_path(text)), checkpoint)
    if "image" not in model.channels:
        if engine not in ("auto", "torch"):
            raise IntclipError(f"{text} uses only text, which only torch supports; use engine auto")
        engine = "torch"
    name = choose_engine(engine, device)
    if name == "torch":
        method = model.build()
        card = _card(model, method)
        how: dict[str, Any] = {"precision": precision, "device": device, "threads": threads}
        return Predictor(card, engine=name, build=lambda: method, metrics=model.metrics, **how)
    return _load_graph(model, name, precision, threads)


def is_zero_shot(spec: str) -> bool:
    """Return whether a model is a zero-shot backbone, which accepts any taxonomy, not a bundle."""
    return spec in LITE_BACKBONES or spec.startswith(ZERO_SHOT)


def _load_exported(path: Path, engine: str, device: str, precision: Precision, threads: int | None) -> Predictor:
    graph = open_graph(path)
    if engine not in ("auto", graph.format) or device not in ("auto", "cpu"):
        raise IntclipError(f"{path} needs engine {graph.format!r} on the CPU; use engine and device auto")
    return Predictor(graph.card, engine=graph.format, graph=graph, precision=precision, threads=threads)


def _load_graph(model: _Model, format: GraphFormat, precision: Precision, threads: int | None) -> Predictor:
    """Return the model's graph from the cache, or make and cache it; only conversion needs torch."""
    key = graph_key(model=model.name, **model.identity)
    graph = cached_graph(key, format)
    if graph is None:
        tower_key, tower, head = _prebuilt(model, format) or _converted(model, format)
        keep_graph(key, head, tower_key)
        # From the file, like every later load: the in-memory graph may differ in the last bits.
        graph = cached_graph(key, format) or (head if tower is None else tower.join(head))
    how: dict[str, Any] = {"precision": precision, "threads": threads, "metrics": model.metrics}
    return Predictor(graph.card, engine=format, graph=graph, build=model.build, **how)


def _prebuilt(model: _Model, format: GraphFormat) -> tuple[str, Tower, Graph] | None:
    """Return the same as `_converted` without torch, if the package has the model's graphs."""
    if format != "openvino" or model.labels is None:
        return None
    from intclip.inference.prebuilt import find_prebuilt

    prebuilt = find_prebuilt(model.identity["backbone"])
    if prebuilt is None or model.labels.exclusive:
        return None
    head = prebuilt.head(model.name, model.labels, model.identity["texts"], model.thresholds)
    return (*_tower(prebuilt.name, prebuilt.tower_parts, prebuilt.tower, format), head)


def _converted(model: _Model, format: GraphFormat) -> tuple[str, Tower | None, Graph]:
    """Return key and graph of the tower, if the model shares one, and the head's graph, converted by torch."""
    from intclip.inference.export import convert_head, convert_tower, tower_features, trains_trunk

    method = model.build()
    card = _card(model, method)
    tower_key, tower = "", None
    if not trains_trunk(method):
        backbone = method.backbone
        parts = {
            # By content: bundles with the same backbone name may use other weights or another activation.
            "weights": backbone.identity(),
            "split": backbone.split,
            "size": backbone.image_size,
            "features": tower_features(method),
        }
        tower_key, tower = _tower(backbone.name, parts, partial(convert_tower, method, format), format)
    return tower_key, tower, convert_head(method, card, format, maps=bool(card.maps))


def _tower(
    backbone: str, parts: dict[str, Any], convert: Callable[[], Tower], format: GraphFormat
) -> tuple[str, Tower]:
    """Return key and graph of an image tower, converted once per backbone for all methods and labels."""
    key = graph_key(**parts)
    tower = cached_tower(key, format)
    if tower is None:
        home = cache_home()
        kept = "; INTCLIP_CACHE is off, so this repeats at every start" if home is None else f", once; cached in {home}"
        _log.info("converting %s for %s%s", backbone, _ENGINES[format], kept)
        tower = convert()
        keep_tower(key, tower)
    return key, tower


def _zero_shot(
    spec: str,
    taxonomy: Labels | None,
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
        "texts": class_texts(labels, sentences),
        "backbone": backbone,
        "weights": weights_identity(backbone, checkpoint),
        "taxonomy": labels.to_dict(),
    }
    return _Model(spec, zero_shot_threshold(backbone), identity, build, labels if options["scenes"] else None)


def zero_shot_threshold(backbone: str) -> float:
    """Return the threshold of the method "zero_shot" on a backbone, by name."""
    return SCENES_THRESHOLD if backbone in LITE_BACKBONES else ZERO_SHOT_THRESHOLD


def zero_shot_options(backbone: str, sentences: str = SENTENCES) -> dict[str, Any]:
    """Return options of the method "zero_shot" on a backbone, by name."""
    return {"sentence_form": sentences, "scenes": backbone in LITE_BACKBONES}


def _bundle_model(spec: str, bundle: Bundle, checkpoint: str | os.PathLike[str] | None) -> _Model:
    info = bundle.info
    identity = {
        "bundle": hashlib.sha256((bundle.path / JSON_FILE).read_bytes()).hexdigest(),
        "weights": weights_identity(info.backbone.name, checkpoint),
    }
    return _Model(
        spec,
        info.thresholds,
        identity,
        lambda: bundle.build_method(checkpoint),
        channels=tuple(info.channels),
        channel_thresholds=info.channel_thresholds,
        metrics=info.metrics,
    )


def bundle_path(spec: str) -> Path:
    """Return the folder of a bundle; hub repositories are downloaded.

    Raises:
        IntclipError: It is not a known name, folder or repository.
    """
    if spec.startswith(HUB):
        return _fetch_bundle(spec)
    name = SHORT_NAMES.get(spec, spec)
    if (inside := BUNDLES / name).is_dir() and os.sep not in name and name not in ("", ".", ".."):
        return inside
    path = Path(spec)
    if path.exists():
        # Name of the bundle in the folder of a training run.
        return path / "bundle" if (path / "bundle" / JSON_FILE).is_file() else path
    known = [*LITE_BACKBONES, f"{ZERO_SHOT}:RN101", *sorted(SHORT_NAMES)]
    near = difflib.get_close_matches(spec, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"give a bundle's folder, or one of: {', '.join(known)}"
    raise IntclipError(f"no model {spec!r}: {hint}")


def _fetch_bundle(spec: str) -> Path:
    """Download a bundle from the hub to plain files in the cache folder.

    The hub's cache consists of links, which bundles must not contain, so the two files are copied.
    """
    from intclip.backbones import hub

    try:
        repo, revision = hub.parse(hub.HUB_PREFIX + spec.removeprefix(HUB))
    except CheckpointError as error:
        raise BundleError(
            f"{spec!r} is not a hub repository; write {HUB}owner/name or {HUB}owner/name@revision"
        ) from error
    try:
        found = [hub.fetch(hub.HubFile(repo, name, revision)) for name in (JSON_FILE, WEIGHTS_FILE)]
    except CheckpointError as error:
        raise BundleError(
            f"cannot fetch the bundle {spec}: {str(error).partition(';')[0]}; "
            "or download its folder on another machine and load that"
        ) from error
    home = cache_home() or Path(found[0]).parent
    folder = home / "bundles" / f"{repo.replace('/', '--')}-{found[0].parent.name[:12]}"
    names = (JSON_FILE, WEIGHTS_FILE)
    # Compared by content, so that a damaged copy is replaced.
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
        thresholds=model.thresholds,
        channel_thresholds=model.channel_thresholds,
    )


def _refuse_labels(spec: str, taxonomy: object, sentences: str) -> None:
    if taxonomy is not None or sentences != SENTENCES:
        what = "sentences are" if taxonomy is None else "a taxonomy is"
        raise IntclipError(f"{spec} has its own labels; {what} for zero-shot models: lite, zero-shot:NAME")


def _read_taxonomy(taxonomy: Labels) -> Taxonomy:
    if isinstance(taxonomy, Taxonomy):
        return taxonomy
    from intclip.labels import load_taxonomy

    return load_taxonomy(taxonomy)
