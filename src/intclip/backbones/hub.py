"""Download weights from the Hugging Face hub and verify their content.

The download itself (cache, progress bar on a terminal, offline mode, `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`,
`HF_TOKEN`) is `huggingface_hub`'s. Two features are added: interrupted downloads resume, and
the content is checked against a pinned SHA-256 or else against the one recorded at first use. Cached files are used
without contacting the hub.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from intclip.backbones.weight_files import SIDECARS, WEIGHT_FILES, weight_parts
from intclip.errors import CheckpointError, StorageError
from intclip.extras import require
from intclip.files import sha256_file, write_text

HUB_PREFIX = "hf:"
"""Prefix of a repository name on the hub."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HubFile:
    """A weight file on the hub.

    Attributes:
        repo: Owner and name.
        filename: Path in the repository.
        revision: Commit; None means the main branch at the first download.
        sha256: Hash of the content; None means the hash recorded at first use.
    """

    repo: str
    filename: str
    revision: str | None = None
    sha256: str | None = None


def parse(spec: str) -> tuple[str, str | None]:
    """Parse "hf:owner/name" or "hf:owner/name@revision" to repository and revision.

    Raises:
        CheckpointError: It has another form.
    """
    match = re.fullmatch(rf"{HUB_PREFIX}([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", spec)
    if match is None:
        raise CheckpointError(f"{spec!r} is not a hub repository; write hf:owner/name or hf:owner/name@revision")
    return match[1], match[2]


def fetch(file: HubFile, *, endpoint: str | None = None) -> Path:
    """Return the local path of a hub file, downloading it if needed and verifying its content.

    Args:
        file: What to fetch.
        endpoint: Address of the hub; by default `HF_ENDPOINT`, else the public one.

    Raises:
        CheckpointError: It is unavailable (no network, offline mode, no such file), or its content is unexpected.
        MissingExtraError: `huggingface_hub` is not installed.
    """
    path = _download(file, endpoint)
    if path is None:
        raise CheckpointError(_how_to_supply(file, "the repository has no such file"))
    _verify(file, path)
    return path


def fetch_repository(spec: str, *, endpoint: str | None = None) -> Path:
    """Return the local path of the weights of "hf:owner/name[@revision]", beside their configuration files.

    Raises:
        CheckpointError: It is unavailable, has no weight file with a known name, or its content is unexpected.
        MissingExtraError: `huggingface_hub` is not installed.
    """
    repo, revision = parse(spec)
    files = [HubFile(repo, name, revision) for name in WEIGHT_FILES]
    there = next((file for file in files if cached(file)), None)
    for name in SIDECARS:
        try:
            _download(HubFile(repo, name, revision), endpoint, large=False)
        except CheckpointError:
            if there is None:
                raise
            break  # the hub is unavailable, and asking for each file takes many seconds; use what is cached
    for file in [there] if there is not None else files:
        if path := _download(file, endpoint):
            _verify(file, path)
            for part in weight_parts(path):
                if part != path:
                    whole = HubFile(repo, part.name, revision)
                    _verify(whole, fetch(whole, endpoint=endpoint))
            return path
    raise CheckpointError(f"the hub repository {repo} has none of {', '.join(WEIGHT_FILES)}")


def cached_repository(spec: str) -> Path | None:
    """Return the cached weights of "hf:owner/name[@revision]", without downloading.

    Raises:
        CheckpointError: The spec is not one.
        MissingExtraError: `huggingface_hub` is not installed.
    """
    repo, revision = parse(spec)
    return next((path for name in WEIGHT_FILES if (path := cached(HubFile(repo, name, revision)))), None)


def cached(file: HubFile) -> Path | None:
    """Return the local path of a cached hub file, without network access or verification.

    Raises:
        MissingExtraError: `huggingface_hub` is not installed.
    """
    hub = require("huggingface_hub", "hub")
    try:
        path = hub.try_to_load_from_cache(file.repo, file.filename, cache_dir=_cache_folder(), revision=file.revision)
    except ValueError:  # an invalid repository name; the download reports it
        return None
    return Path(path) if isinstance(path, str) else None


def _cache_folder() -> str:
    constants = require("huggingface_hub.constants", "hub")
    return str(os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE)


def _download(file: HubFile, endpoint: str | None, *, large: bool = True) -> Path | None:
    """Return the path in the cache; None if the repository exists without this file.

    A large file resumes where an earlier download stopped.
    """
    hub = require("huggingface_hub", "hub")
    errors = require("huggingface_hub.errors", "hub")
    endpoint = endpoint or os.environ.get("HF_ENDPOINT")
    cache = _cache_folder()
    try:
        known = hub.try_to_load_from_cache(file.repo, file.filename, cache_dir=cache, revision=file.revision)
        if known is not None:  # a path, or a record that the repository lacks the file
            return Path(known) if isinstance(known, str) else None
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
            raise CheckpointError(_how_to_supply(file, "offline mode is on and it is not in the cache"))
        url = hub.hf_hub_url(file.repo, file.filename, revision=file.revision, endpoint=endpoint)
        metadata = hub.get_hf_file_metadata(url) if large else None
        if metadata and metadata.etag and metadata.size:
            _resume(url, Path(cache, f"models--{file.repo.replace('/', '--')}", "blobs", metadata.etag), metadata.size)
        # The content is in place; this call creates its snapshot, and records files that a repository lacks.
        return Path(
            hub.hf_hub_download(file.repo, file.filename, revision=file.revision, cache_dir=cache, endpoint=endpoint)
        )
    except errors.LocalEntryNotFoundError as error:  # an EntryNotFoundError too, of a hub that does not answer
        raise CheckpointError(_how_to_supply(file, "the hub cannot be reached, and it is not in the cache")) from error
    except errors.EntryNotFoundError:
        return None
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(_how_to_supply(file, f"no such revision: {file.revision}")) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(_how_to_supply(file, "no such repository, or it is private")) from error
    except (OSError, RuntimeError, ValueError, require("httpx2", "hub").HTTPError) as error:
        raise CheckpointError(_how_to_supply(file, str(error) or type(error).__name__)) from error


def _resume(url: str, blob: Path, size: int) -> None:
    """Download to the content's place in the cache, resuming what an earlier process left unfinished.

    `huggingface_hub` itself resumes only within one process. It accepts content that is already in place.
    """
    utils = require("huggingface_hub.utils", "hub")
    if blob.exists():
        return
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(f"{blob.name}.part")
    with utils.WeakFileLock(f"{partial}.lock"):
        if blob.exists():
            return
        with partial.open("ab") as target:
            if target.tell() > size:
                target.truncate(0)
            if target.tell() < size:
                headers = utils.build_hf_headers()
                require("huggingface_hub.file_download", "hub").http_get(
                    url, target, resume_size=target.tell(), headers=headers, expected_size=size
                )
        partial.replace(blob)


def _how_to_supply(file: HubFile, reason: str) -> str:
    where = f"{file.repo}@{file.revision}" if file.revision else file.repo
    reason = " ".join(reason.split())
    return (
        f"cannot download {file.filename} from the hub repository {where} ({reason[:160].rstrip('.')});"
        " download it on another machine and pass its path as checkpoint, or put it into the "
        "folder in INTCLIP_WEIGHTS (see docs/backbones.md)"
    )


def _verify(file: HubFile, path: Path) -> None:
    """Compare the content with the pinned or recorded SHA-256; record it at an unpinned file's first use."""
    record = path.with_name(f"{path.name}.sha256")
    recorded = record.read_text(encoding="utf-8").strip() if record.is_file() else None
    # In the hub's cache, the name of a large file is the SHA-256 that the hub announced for it.
    announced = path.resolve().name
    expected = file.sha256 or recorded or (announced if _DIGEST.fullmatch(announced) else None)
    found = sha256_file(path)
    if expected is not None and found != expected:
        raise CheckpointError(
            f"{path} has the SHA-256 {found}, not the expected {expected}: it is damaged or was replaced;"
            " delete it and load again"
        )
    if file.sha256 is None and recorded is None:
        try:
            write_text(record, found + "\n")
        except StorageError:
            return  # A read-only cache is usable, but nothing is recorded there.
