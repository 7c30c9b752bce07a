"""A trained model as a directory: `bundle.json` (description) and `weights.safetensors` (learned weights).

The weights contain only the method's state; the frozen backbone is referenced, not stored. Everything
else that a prediction depends on is in the JSON: taxonomy, sentences, preprocessing, thresholds, scales. Reading a
bundle imports no torch and runs no code, and every mismatch is an error.
"""

import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from intclip.backbones.preprocess import Preprocess
from intclip.errors import BundleError, IntclipError, reason
from intclip.files import atomic_directory, sha256_file, write_text
from intclip.inference.card import Channel
from intclip.inference.weights import DAMAGED, TensorInfo, read_weights, write_weights
from intclip.labels.taxonomy import Taxonomy
from intclip.version import __version__

if TYPE_CHECKING:
    from intclip.methods.base import Method

FORMAT_VERSION = 1
JSON_FILE = "bundle.json"
WEIGHTS_FILE = "weights.safetensors"
MAX_JSON_BYTES = 16 * 2**20
_WANTED = "give the folder of a bundle, as `intclip train` writes it, or download it again"
_PASS = "pass the original weights as `checkpoint` or --checkpoint"

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# A backbone is a name, never a path: no "..", no absolute path, nothing that a loader could treat as a file.
_WORD = r"[A-Za-z0-9_+@-]+"
BackboneName = Annotated[str, Field(pattern=rf"^(hf:)?{_WORD}([./]{_WORD})*$", max_length=100)]
MethodName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_+-]*$", max_length=100)]


class _Part(BaseModel):
    """Strict base model of a bundle's JSON: unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CheckpointIdentity(_Part):
    """Source of a backbone's weights, if not the registry's.

    Attributes:
        name: "hf:owner/name[@revision]", or the name of the file or folder.
        sha256: Hash of the file; None for a folder and for the hub.
    """

    name: str
    sha256: Sha256 | None = None


class BackboneIdentity(_Part):
    """The frozen backbone of a bundle.

    Attributes:
        name: Name in the registry.
        split: Split between trunk and deep layers.
        checkpoint: Source of its weights, if not the registry's.
        activation: Activation set explicitly; None if it comes from the weights' configuration or the family.
        regions: What the patches of a ViT give; see `load_backbone`.
        weights: Content hash, see `Backbone.identity`; None in a bundle that was not trained here.
    """

    name: BackboneName
    split: Literal["paper", "released"] = "paper"
    checkpoint: CheckpointIdentity | None = None
    activation: Literal["quick_gelu", "gelu", "gelu_tanh", "relu"] | None = None
    regions: Literal["tokens", "values", "clear"] = "tokens"
    weights: Sha256 | None = None


class MethodIdentity(_Part):
    """The method and its options."""

    name: MethodName
    options: dict[str, Any]


class WeightsInfo(_Part):
    """Hash and content of the weights file."""

    sha256: Sha256
    tensors: dict[str, TensorInfo]


class BundleInfo(_Part):
    """The content of `bundle.json`.

    Attributes:
        format: File type marker.
        format_version: Version of this layout; newer ones are rejected.
        intclip: Version of the package that wrote it.
        backbone: The frozen backbone.
        method: The method and its options.
        task: "multilabel" (sigmoid) or "singlelabel" (softmax).
        taxonomy: `Taxonomy.to_dict`.
        sentences: The K sentences of the prompts.
        preprocessing: From photo to pixels.
        thresholds: One for all labels, or K.
        channels: Channels that the method uses.
        channel_thresholds: See `ModelCard`.
        temperature: Logits are divided by it before they become probabilities.
        scales: Fixed scales of the method's logits, by option name.
        recipe: The training recipe; None for a model that was not trained here.
        metrics: Metrics by split or name.
        weights: Hash and tensors of the weights file.
    """

    format: Literal["intclip-bundle"] = "intclip-bundle"
    format_version: int = FORMAT_VERSION
    intclip: str
    backbone: BackboneIdentity
    method: MethodIdentity
    task: Literal["multilabel", "singlelabel"] = "multilabel"
    taxonomy: dict[str, Any]
    sentences: list[str]
    preprocessing: Preprocess
    thresholds: Probability | list[Probability]
    channels: list[Channel] = ["image"]
    channel_thresholds: dict[Channel, list[Probability]] = {}
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    scales: dict[str, float] = {}
    recipe: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None
    weights: WeightsInfo


@dataclass(frozen=True)
class Bundle:
    """A validated bundle.

    Attributes:
        path: Its directory.
        info: Content of `bundle.json`.
        taxonomy: The K labels.
        state: The method's own tensors by name; floats as float32.
    """

    path: Path
    info: BundleInfo
    taxonomy: Taxonomy = field(repr=False)
    state: dict[str, npt.NDArray[Any]] = field(repr=False)

    @property
    def thresholds(self) -> npt.NDArray[np.float32]:
        """Return thresholds (K,), one per label."""
        return np.broadcast_to(np.asarray(self.info.thresholds, np.float32), (len(self.taxonomy.names),)).copy()

    def build_method(self, checkpoint: str | os.PathLike[str] | None = None) -> "Method":
        """Build the trained method on its backbone, in evaluation mode.

        Args:
            checkpoint: The backbone's weights: a file, a folder or "hf:owner/name"; default: those of the training if
                on the hub, else the registry's.

        Raises:
            BundleError: The weights do not fit the method, or the backbone differs from the training's.
        """
        import torch

        from intclip.backbones import load_backbone
        from intclip.methods.registry import build_method

        identity = self.info.backbone
        source = self._source(checkpoint)
        backbone = load_backbone(
            identity.name,
            checkpoint=source,
            split=identity.split,
            activation=identity.activation,
            regions=identity.regions,
        )
        if identity.weights not in (None, backbone.identity()):
            raise BundleError(
                f"{self.path} was trained on other {identity.name} weights than "
                f"{source or 'those found here'} (different content, activation or number of heads); "
                f"{_PASS}{self._trained_over()}"
            )
        backbone.take(self.info.preprocessing)  # a recipe may use other preprocessing than the backbone's
        method = build_method(self.info.method.name, backbone, self.taxonomy, self.info.method.options)
        state = {name: torch.from_numpy(array) for name, array in self.state.items()}
        try:
            method.load_own_state(state)
        except (KeyError, ValueError) as error:
            raise BundleError(
                f"{self.path / WEIGHTS_FILE} does not fit method {self.info.method.name!r}: {error.args[0]}; "
                "the bundle is damaged, or of another version of intclip; fetch or copy it again, or upgrade intclip"
            ) from error
        method.temperature = self.info.temperature
        method.eval()
        return method

    def _source(self, checkpoint: str | os.PathLike[str] | None) -> str | None:
        """Return where to read the backbone from; None means the registry's source.

        Raises:
            BundleError: It was trained on custom weights that are missing, or other ones are given.
        """
        from intclip.backbones.hub import HUB_PREFIX
        from intclip.backbones.sources import local_weights

        identity = self.info.backbone
        trained = identity.checkpoint
        if checkpoint is None:
            if trained is None or trained.name.startswith(HUB_PREFIX):
                return None if trained is None else trained.name
            if local_weights(identity.name) is None:
                raise BundleError(
                    f"{self.path} was trained on your own {identity.name} weights; {_PASS}{self._trained_over()}"
                )
            return None
        file = Path(checkpoint)
        if (
            trained is not None
            and trained.sha256 is not None
            and file.is_file()
            and sha256_file(file) != trained.sha256
        ):
            raise BundleError(
                f"{checkpoint} is not the {identity.name} file that {self.path} was trained on; "
                f"{_PASS}{self._trained_over()}"
            )
        return os.fspath(checkpoint)

    def _trained_over(self) -> str:
        trained = self.info.backbone.checkpoint
        if trained is None:
            return ""
        return f" ({trained.name}{f', SHA-256 {trained.sha256[:12]}…' if trained.sha256 else ''})"


def save_bundle(
    path: str | os.PathLike[str],
    method: "Method",
    *,
    thresholds: float | Sequence[float] | npt.NDArray[np.floating[Any]],
    channel_thresholds: Mapping[Channel, npt.NDArray[np.floating[Any]]] | None = None,
    recipe: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    overwrite: bool = False,
) -> None:
    """Write a trained method as a bundle directory, atomically.

    Args:
        path: The directory to create.
        method: The trained method; only its own state is written, not the backbone.
        thresholds: In [0, 1]: one for all labels, or K.
        channel_thresholds: Channel to thresholds (K,) of posts that have only this one.
        recipe: The training recipe.
        metrics: What was measured; NaN becomes null.
        dtype: Type of floats on disk; float16 halves the file.
        overwrite: Replace an existing directory.

    Raises:
        BundleError: Weights are not finite or too large for float16, or a threshold is outside [0, 1].
        StorageError: The directory exists, or cannot be written.
    """
    from intclip.methods.registry import name_of

    taxonomy = method.taxonomy
    names = taxonomy.names
    levels = np.asarray(thresholds, dtype=np.float64)
    if levels.shape not in ((), (len(names),)) or not np.all((levels >= 0) & (levels <= 1)):
        raise BundleError(f"thresholds must be one number or {len(names)}, in [0, 1]; got shape {levels.shape}")
    state = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in method.own_state().items()}
    given = method.backbone.given_checkpoint
    backbone = BackboneIdentity(
        name=method.backbone.name,
        split=method.backbone.split,
        checkpoint=None if given is None else _checkpoint_identity(given),
        activation=method.backbone.given_activation,
        regions=method.backbone.regions,
        weights=method.backbone.identity(),
    )
    plain_options: dict[str, Any] = _plain(method.options)
    with atomic_directory(path, overwrite=overwrite) as partial:
        tensors = write_weights(partial / WEIGHTS_FILE, state, dtype=dtype)
        info = BundleInfo(
            intclip=__version__,
            backbone=backbone,
            method=MethodIdentity(name=name_of(method), options=plain_options),
            task="singlelabel" if taxonomy.exclusive else "multilabel",
            taxonomy=taxonomy.to_dict(),
            sentences=sentences_of(taxonomy, plain_options),
            preprocessing=method.backbone.preprocess,
            thresholds=levels.tolist(),
            channels=list(method.channels),
            channel_thresholds={name: found.tolist() for name, found in (channel_thresholds or {}).items()},
            scales=_scales(plain_options),
            recipe=None if recipe is None else _plain(recipe),
            metrics=None if metrics is None else _plain(metrics),
            weights=WeightsInfo(sha256=sha256_file(partial / WEIGHTS_FILE), tensors=tensors),
        )
        (partial / JSON_FILE).write_text(_to_text(info), encoding="utf-8")


def _checkpoint_identity(checkpoint: str) -> CheckpointIdentity:
    from intclip.backbones.hub import HUB_PREFIX

    if checkpoint.startswith(HUB_PREFIX):
        return CheckpointIdentity(name=checkpoint)
    path = Path(checkpoint).expanduser()
    return CheckpointIdentity(name=path.name, sha256=sha256_file(path) if path.is_file() else None)


def set_temperature(path: str | os.PathLike[str], temperature: float) -> None:
    """Store a temperature T in a bundle: probabilities become those of logits / T.

    In multi-label tasks, thresholds change accordingly, t to sigmoid(logit(t) / T), so that predicted labels stay the
    same.

    Args:
        path: The bundle's directory; its JSON is replaced atomically.
        temperature: Above 0, from `intclip.evaluation.calibration.fit_temperature`.

    Raises:
        BundleError: Not a bundle, or it has a temperature already.
    """
    info = load_bundle(path).info
    if info.temperature != 1:
        raise BundleError(f"{path} already has a temperature, {info.temperature:.3g}; train again to fit another one")

    def moved(thresholds: float | list[float]) -> Any:
        return move_thresholds(thresholds, temperature).tolist() if info.task == "multilabel" else thresholds

    change = {"temperature": temperature, "thresholds": moved(info.thresholds)}
    change["channel_thresholds"] = {name: moved(levels) for name, levels in info.channel_thresholds.items()}
    new = BundleInfo.model_validate(info.model_dump() | change)
    write_text(Path(path) / JSON_FILE, _to_text(new))


def move_thresholds(thresholds: npt.ArrayLike, temperature: float) -> npt.NDArray[np.float64]:
    """Return thresholds, of any shape, that give the same labels after a temperature T: sigmoid(logit(t) / T)."""
    levels = np.asarray(thresholds, dtype=np.float64)
    with np.errstate(divide="ignore", over="ignore"):  # 0 and 1 do not change
        return np.asarray(1 / (1 + ((1 - levels) / levels) ** (1 / temperature)))


def set_thresholds(path: str | os.PathLike[str], thresholds: npt.NDArray[np.floating[Any]]) -> None:
    """Replace a bundle's thresholds by K others in [0, 1], atomically.

    Raises:
        BundleError: Not a bundle, or not K thresholds.
    """
    bundle = load_bundle(path)
    levels = np.asarray(thresholds, dtype=float)
    if levels.shape != (len(bundle.taxonomy.names),):
        raise BundleError(f"{path}: thresholds of shape {levels.shape}; give one for each of its labels")
    try:
        new = BundleInfo.model_validate(bundle.info.model_dump() | {"thresholds": levels.tolist()})
    except ValidationError as error:
        raise BundleError(f"{path}: {reason(error)}") from error
    write_text(Path(path) / JSON_FILE, _to_text(new))


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read a bundle directory, checking every field, tensor and hash.

    Raises:
        BundleError: Something is missing, unexpected, damaged, or of a newer version.
    """
    path = Path(path)
    if not path.is_dir():
        raise BundleError(f"no bundle at {path}: no folder with {JSON_FILE} and {WEIGHTS_FILE}; check the path")
    for name in (JSON_FILE, WEIGHTS_FILE):
        _check_regular(path / name)
    info = _read_info(path / JSON_FILE)
    try:
        taxonomy = Taxonomy.from_dict(info.taxonomy)
    except IntclipError as error:
        raise BundleError(f"{path / JSON_FILE}: taxonomy: {error}; {DAMAGED}") from error
    classes = len(taxonomy.names)
    for levels in (info.thresholds, *info.channel_thresholds.values()):
        if isinstance(levels, list) and len(levels) != classes:
            raise BundleError(f"{path / JSON_FILE}: {len(levels)} thresholds for {classes} labels; {DAMAGED}")
    if len(info.sentences) != classes:
        raise BundleError(f"{path / JSON_FILE}: {len(info.sentences)} sentences for {classes} labels; {DAMAGED}")
    state = read_weights(path / WEIGHTS_FILE, info.weights.tensors, sha256=info.weights.sha256)
    return Bundle(path, info, taxonomy, state)


def _to_text(info: BundleInfo) -> str:
    return json.dumps(info.model_dump(mode="json"), ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def sentences_of(taxonomy: Taxonomy, options: Mapping[str, Any]) -> list[str]:
    """Return the K sentences that a method with these options uses in its prompts."""
    form = options.get("sentence_form")
    return taxonomy.sentences(form) if isinstance(form, str) else list(taxonomy.names)


def _read_info(file: Path) -> BundleInfo:
    if file.stat().st_size > MAX_JSON_BYTES:
        raise BundleError(f"{file} is larger than {MAX_JSON_BYTES >> 20} MiB; that is not an intclip bundle: {_WANTED}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is not valid JSON ({error}); {DAMAGED}") from error
    if not isinstance(content, dict) or content.get("format") != "intclip-bundle":
        raise BundleError(f"{file} does not describe an intclip bundle (no 'format': 'intclip-bundle'); {_WANTED}")
    version = content.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise BundleError(
            f"{file} was written by a newer intclip ({content.get('intclip')}, format {version}; this one reads up to "
            f"{FORMAT_VERSION}); upgrade with: pip install -U intclip"
        )
    if type(version) is not int or version != FORMAT_VERSION:
        raise BundleError(f"{file}: format_version is {version!r}, expected {FORMAT_VERSION}; {DAMAGED}")
    try:
        return BundleInfo.model_validate(content)
    except ValidationError as error:
        raise BundleError(f"{file}: {reason(error)}; {DAMAGED}") from error


def _check_regular(file: Path) -> None:
    try:
        mode = file.lstat().st_mode
    except OSError as error:
        raise BundleError(f"{file.parent} is not a bundle: it has no {file.name}; {_WANTED}") from error
    if stat.S_ISLNK(mode):
        raise BundleError(f"{file} is a link; bundles need regular files: copy the file that it points to")
    if not stat.S_ISREG(mode):
        raise BundleError(f"{file} is not a regular file; {DAMAGED}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _scales(options: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the options that scale the method's logits, by dotted name."""
    found: dict[str, float] = {}
    for key, value in options.items():
        if isinstance(value, Mapping):
            found |= _scales(value, f"{prefix}{key}.")
        elif key.endswith("scale") and isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + key] = float(value)
    return found


def _plain(value: Any) -> Any:
    """Convert to JSON types; non-finite floats become None."""
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | int | None):
        return value
    return str(value)
