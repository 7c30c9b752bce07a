"""`intclip data prepare`: download Intentonomy's annotations, and the photos at the URLs in them.

Photos are downloaded at a chosen width (Unsplash resizes on request; larger ones are resized here),
verified by decoding, and written atomically; a second run downloads only what is missing. Some photos no longer exist:
the report lists them, and `load_dataset` skips them.
"""

import io
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from PIL import Image

from intclip.data.fetch import Failed, Fetcher, Gone
from intclip.data.images import read_image
from intclip.data.intentonomy import REPORT, SPLITS, AnnotatedPhoto, annotation_file, gone_photos, read_annotations
from intclip.data.reading import inside
from intclip.errors import DatasetError, ImageError
from intclip.files import atomic_path, sha256_file, write_text
from intclip.labels import load_taxonomy

ANNOTATIONS = {
    "train": "https://cornell.box.com/shared/static/rff4fuq20t7tc4edx2wl0golh64zf9qh.json",
    "val": "https://cornell.box.com/shared/static/3dmyavfpyyayxylfo9fzmaj1v2j0gqmk.json",
    "test": "https://cornell.box.com/shared/static/3ep2w96qf91w9qvqop2ri95g0e3fx4zj.json",
}
"""Direct URLs of the files linked in KMnP/intentonomy's DATA.md."""

CHECKSUMS = {
    "val": "46ed3c6621a2009f1b310822c9af298c8fcf940aa5b24168b3808225162d5049",
    "test": "f1364696c754f5526446a2226995ccfdb293291704c414198529c2fa6757e27d",
}
"""SHA-256 of the annotation files of val and test; train's is unknown."""

COUNTS = {"train": 12_740, "val": 498, "test": 1_217}
_ROUND = 256  # photos submitted to the threads at once
_UNREACHABLE = 16  # consecutive photos without a response, before the first success, that end the run


@dataclass
class Preparation:
    """Result of a download.

    Attributes:
        root: The dataset's folder.
        width: Largest width of the photos, in pixels.
        annotations: Annotation file to its SHA-256.
        photos: Number of requested photos.
        there: Photos that already existed and could be decoded.
        fetched: New photos.
        gone: Photos that no longer exist: id, split, url, reason.
        failed: Photos that failed this time: id, split, url, reason.
        bytes: Size of the new photos on disk.
        seconds: Duration.
        date: When the run ended (UTC).
    """

    root: str
    width: int
    annotations: dict[str, str]
    photos: int = 0
    there: int = 0
    fetched: int = 0
    gone: list[dict[str, str]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    bytes: int = 0
    seconds: float = 0.0
    date: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, with the share of gone photos."""
        share = len(self.gone) / self.photos if self.photos else 0.0
        return {"dataset": "intentonomy", **asdict(self), "share_gone": share}

    def summary(self) -> str:
        """Return a one-line summary."""
        usable = self.there + self.fetched
        line = f"{usable} of {self.photos} photos are usable ({self.fetched} new, {self.bytes / 1e6:.1f} MB)"
        if self.gone:
            line += f"; {len(self.gone)} ({len(self.gone) / self.photos:.1%}) no longer exist"
        if self.failed:
            reasons = Counter(item["reason"] for item in self.failed)
            line += (
                f"; {len(self.failed)} failed this time (mostly: {reasons.most_common(1)[0][0]}), run again to retry"
            )
        return line


@dataclass(frozen=True)
class _Job:
    photo: AnnotatedPhoto
    split: str
    path: Path


def prepare_intentonomy(
    root: Path,
    fetcher: Fetcher,
    *,
    annotations: Path | None = None,
    splits: Sequence[str] = SPLITS,
    width: int = 640,
    retry_gone: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Preparation:
    """Download Intentonomy's annotations and photos into a folder.

    Args:
        root: The folder; photos are written to the `filename` of their annotation.
        fetcher: Downloads with its rate, and photos with as many threads as it has connections.
        annotations: Folder with `intentonomy_{split}2020.json`, copied to `root`; default: those in `root`, else
            downloaded.
        splits: Any of train, val, test.
        width: Largest width of a photo in pixels.
        retry_gone: Retry photos that an earlier run found gone.
        on_progress: Called with photos done and photos in all.

    Raises:
        DatasetError: The annotations are unavailable or malformed, or no server can be reached.
        StorageError: The folder cannot be written.
    """
    for split in splits:
        if split not in ANNOTATIONS:
            raise DatasetError(f"intentonomy has no split {split!r}; choose from {', '.join(ANNOTATIONS)}")
    started = time.monotonic()
    files = {split: _annotations(root, annotations, split, fetcher) for split in splits}
    taxonomy = load_taxonomy("intentonomy")
    jobs = [
        _Job(photo, split, inside(root, photo.filename, str(path)))
        for split, path in files.items()
        for photo in read_annotations(path, taxonomy)
    ]
    report = Preparation(str(root), width, {path.name: sha256_file(path) for path in files.values()}, len(jobs))
    known_gone = set() if retry_gone else set(gone_photos(root))
    try:
        _run(jobs, known_gone, fetcher, width, report, on_progress)
    finally:
        report.seconds = round(time.monotonic() - started, 1)
        report.date = datetime.now(UTC).isoformat(timespec="seconds")
        write_text(root / REPORT, json.dumps(report.to_dict(), indent=1, ensure_ascii=False))
    return report


def at_width(url: str, width: int) -> str:
    """Return the URL of an Unsplash photo resized to a width in pixels."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    return urlunsplit(parts._replace(query=urlencode({**query, "w": str(width), "fm": "jpg", "fit": "max"})))


def to_jpeg(content: bytes, width: int) -> bytes:
    """Convert a photo to an upright RGB JPEG of at most `width` pixels; unchanged if it already is one.

    Raises:
        ImageError: The content is not a complete image.
    """
    photo = read_image(content)
    with Image.open(io.BytesIO(content)) as given:
        as_it_is = given.format == "JPEG" and given.mode == "RGB" and given.getexif().get(0x0112, 1) == 1
    if as_it_is and photo.width <= width:
        return content
    if photo.width > width:
        photo = photo.resize((width, max(1, round(photo.height * width / photo.width))), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _annotations(root: Path, given: Path | None, split: str, fetcher: Fetcher) -> Path:
    name = f"intentonomy_{split}2020.json"
    there = annotation_file(root, name)
    if given is not None:
        source = annotation_file(given, name)
        if source is None:
            raise DatasetError(f"{given} has no {name}; give the folder of the annotations, or fewer splits")
        if source != there:
            with atomic_path(root / name) as partial:
                partial.write_bytes(source.read_bytes())
        return root / name if source != there else source
    if there is not None:
        return there
    url = ANNOTATIONS[split]
    try:
        content = fetcher.fetch(url)
    except (Gone, Failed) as error:
        raise DatasetError(
            f"{name} could not be downloaded from {url} ({error}); download it manually "
            "(docs/datasets.md) and pass its folder as --annotations"
        ) from error
    with atomic_path(root / name) as partial:
        partial.write_bytes(content)
        digest = sha256_file(partial)
        if CHECKSUMS.get(split, digest) != digest:
            raise DatasetError(f"{url} is not the expected file (SHA-256 {digest}); download {name} manually")
        if len(read_annotations(partial, load_taxonomy("intentonomy"))) != COUNTS[split]:
            raise DatasetError(f"{url} does not list {COUNTS[split]} photos; download {name} manually")
    return root / name


def _run(
    jobs: Sequence[_Job],
    known_gone: set[str],
    fetcher: Fetcher,
    width: int,
    report: Preparation,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    todo = iter(jobs)
    running: dict[Future[int | None], _Job] = {}
    done = unreachable = 0
    with ThreadPoolExecutor(fetcher.connections, thread_name_prefix="intclip-prepare") as pool:
        try:
            while True:
                for job in islice(todo, _ROUND - len(running)):
                    running[pool.submit(_settle, job, job.photo.id in known_gone, fetcher, width)] = job
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    unreachable = _record(future, running.pop(future), report, unreachable)
                    done += 1
                    if on_progress is not None:
                        on_progress(done, len(jobs))
                    if unreachable >= _UNREACHABLE:
                        raise DatasetError(
                            f"the photos' server cannot be reached ({report.failed[-1]['reason']}); check the "
                            "network, then run the command again; existing photos are kept"
                        )
        except BaseException:
            fetcher.stopping.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _settle(job: _Job, known_gone: bool, fetcher: Fetcher, width: int) -> int | None:
    """Download one photo; return its size in bytes, or None if it existed."""
    if job.path.is_file():
        try:
            read_image(job.path, min_side=64)
            return None
        except ImageError:
            pass  # download a damaged file again
    if known_gone:
        raise Gone("gone in an earlier run")
    if job.photo.url is None:
        raise Failed("the annotations have no URL")
    try:
        address = at_width(job.photo.url, width)
    except ValueError as error:
        raise Failed(f"invalid URL ({error})") from error
    content = fetcher.fetch(address, accept=("image/", "application/octet-stream"))
    try:
        jpeg = to_jpeg(content, width)
    except ImageError as error:
        raise Failed(str(error)) from error
    with atomic_path(job.path) as partial:
        partial.write_bytes(jpeg)
    return len(jpeg)


def _record(future: Future[int | None], job: _Job, report: Preparation, unreachable: int) -> int:
    """Record one result; return the number of consecutive photos without a response."""
    entry = {"id": job.photo.id, "split": job.split, "url": job.photo.url or ""}
    try:
        size = future.result()
    except Gone as error:
        report.gone.append({**entry, "reason": str(error)})
        return 0
    except Failed as error:
        report.failed.append({**entry, "reason": str(error)})
        return unreachable + 1 if error.unreachable and report.fetched == 0 else 0
    if size is None:
        report.there += 1
        return unreachable
    report.fetched += 1
    report.bytes += size
    return 0
