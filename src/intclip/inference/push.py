"""Upload a trained model to the Hugging Face hub, with a model card; load it with `intclip.load("hf://owner/name")`."""

import os
import re
from collections.abc import Sequence
from typing import Any

from intclip.backbones.hub import HUB_PREFIX
from intclip.errors import IntclipError, StorageError, reason
from intclip.extras import require
from intclip.inference.bundle import JSON_FILE, WEIGHTS_FILE, Bundle, CheckpointIdentity, load_bundle
from intclip.inference.loading import bundle_path, is_zero_shot

CARD_FILE = "README.md"
TITLES = {
    "macro_f1": "Macro F1",
    "micro_f1": "Micro F1",
    "samples_f1": "Samples F1",
    "mAP": "mAP",
    "accuracy": "Accuracy",
}
_READS: dict[tuple[str, ...], str] = {
    ("image",): "photos",
    ("text",): "texts",
    ("image", "text"): "photos, texts, or both",
}
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def push(
    model: str | os.PathLike[str],
    repository: str,
    *,
    private: bool = False,
    license: str | None = None,
    message: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Upload a bundle and its model card as one commit; creates the repository if needed.

    Args:
        model: A bundle's folder, a training run's folder, or "proxy".
        repository: "owner/name".
        private: Make a new repository private.
        license: Identifier for the card, such as "cc-by-4.0"; no default, because data and weights may restrict it.
        message: Commit message.
        endpoint: URL of the hub; default: `HF_ENDPOINT`, else the public one.

    Returns: URL of the commit.

    Raises:
        BundleError: Not a complete bundle.
        IntclipError: The repository's name is invalid, or the model has no weights of its own.
        StorageError: The hub cannot be reached or rejects the upload.
        MissingExtraError: `huggingface_hub` is not installed.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise IntclipError(f"Not a hub repository: {repository!r}; write owner/name")
    spec = os.fspath(model)
    if is_zero_shot(spec):
        raise IntclipError(f"{spec} was not trained and can be loaded by name; push a trained bundle's folder")
    bundle = load_bundle(bundle_path(spec))
    hub, errors = require("huggingface_hub", "hub"), require("huggingface_hub.errors", "hub")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise StorageError(f"cannot push to {repository}: offline mode is on (HF_HUB_OFFLINE); unset it and push again")
    card = model_card(bundle, repository, license=license)
    contents: dict[str, bytes | str] = {CARD_FILE: card.encode()}
    contents |= {name: str(bundle.path / name) for name in (JSON_FILE, WEIGHTS_FILE)}
    api = hub.HfApi(endpoint=endpoint or os.environ.get("HF_ENDPOINT"))
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        commit = api.create_commit(
            repository,
            [hub.CommitOperationAdd(name, content) for name, content in contents.items()],
            commit_message=message or f"{bundle.info.method.name} on {bundle.info.backbone.name}",
        )
    except (errors.HfHubHTTPError, OSError, RuntimeError, ValueError, require("httpx2", "hub").HTTPError) as error:
        raise StorageError(f"cannot push to {repository}: {_reason(error)}") from error
    return str(commit.commit_url)


def _reason(error: Exception) -> str:
    """Return the hub's error in one line."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return "not logged in, or no access to the repository; log in with: hf auth login"
    return f"{reason(error).rstrip('.')}; check the network and push again"


def model_card(bundle: Bundle, repository: str, *, license: str | None = None) -> str:
    """Render the model card of a bundle as Markdown with the hub's metadata.

    Args:
        bundle: The model.
        repository: "owner/name", for the example.
        license: Identifier, if any.
    """
    info, taxonomy = bundle.info, bundle.taxonomy
    reads = _READS[tuple(sorted(info.channels))]
    hub = require("huggingface_hub", "hub")
    metadata = hub.ModelCardData(
        library_name="intclip",
        pipeline_tag="image-classification" if "image" in info.channels else "text-classification",
        license=license,
        tags=["intclip", info.method.name, "multi-label" if info.task == "multilabel" else "single-label"],
    )
    lines = [
        "---", metadata.to_yaml(), "---", "",
        f"# {repository.split('/')[1]}", "",
        f"Predicts {len(taxonomy.names)} labels of {taxonomy.name} from {reads}: method "
        f"{info.method.name} on the frozen backbone {info.backbone.name}. Made with intclip {info.intclip}.", "",
        "## Use", "",
        "```python", "import intclip", "", f'model = intclip.load("hf://{repository}")',
        _example(info.channels), "    print(prediction.source, prediction.labels)", "```", "",
    ]  # fmt: skip
    if info.backbone.checkpoint is not None:
        identity = info.backbone.checkpoint
        lines += [_backbone_note(identity), ""]
    lines += _figures(info.metrics)
    lines += ["## Labels", "", *_labels(bundle), ""]
    if info.recipe is not None:
        data = info.recipe.get("data", {}).get("name")
        lines += [
            "## Training", "",
            f"On {data or 'data not named in the recipe'}; the full recipe is in `{JSON_FILE}`.", "",
        ]  # fmt: skip
    lines += [
        "## Limits", "",
        "Probabilities are a model's estimates of which labels people would give a photo. They are not facts "
        "about a person, and they reflect the biases of the training data.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _example(channels: Sequence[str]) -> str:
    posts: dict[tuple[str, ...], str] = {
        ("image",): '"photos/"',
        ("text",): 'texts=["what a great day"]',
        ("image", "text"): '["photo.jpg"], texts=["what a great day"]',
    }
    return f"for prediction in model.predict({posts[tuple(sorted(channels))]}):"


def _backbone_note(identity: CheckpointIdentity) -> str:
    if identity.name.startswith(HUB_PREFIX):
        return f"The backbone's weights are not included; they are downloaded from `{identity.name}`."
    kind, digest = ("file", f" (SHA-256 `{identity.sha256}`)") if identity.sha256 else ("folder", "")
    return f"The backbone's weights are not included: pass the {kind} {identity.name} as `checkpoint`{digest}."


def _figures(metrics: dict[str, Any] | None) -> list[str]:
    """Return a table of metrics, one row per split."""
    splits = {
        name: part["headline"]
        for name, part in (metrics or {}).items()
        if isinstance(part, dict) and isinstance(part.get("headline"), dict)
    }
    keys = [key for key in TITLES if any(headline.get(key) is not None for headline in splits.values())]
    if not keys:
        return []
    rows = [f"| Split (%) | {' | '.join(TITLES[key] for key in keys)} |", f"|---|{'---:|' * len(keys)}"]
    for name, headline in splits.items():
        cells = ("–" if headline.get(key) is None else f"{100 * headline[key]:.1f}" for key in keys)
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return ["## Figures", "", *rows, ""]


def _labels(bundle: Bundle) -> list[str]:
    pairs = zip(bundle.taxonomy.names, bundle.thresholds.tolist(), strict=True)
    if bundle.info.task == "singlelabel":
        return [", ".join(bundle.taxonomy.names) + ". The most probable one is predicted."]
    return ["| Label | threshold |", "|---|---:|", *(f"| {_cell(name)} | {level:.2f} |" for name, level in pairs)]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
