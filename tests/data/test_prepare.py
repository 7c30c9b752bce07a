import io
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from makers import INTENTS, encode, intentonomy_file, photo
from PIL import Image
from server import PhotoServer, photo_server

from intclip.data import fetch
from intclip.data import prepare as prepare_module
from intclip.data.fetch import Failed, Fetcher, Gone, retry_after
from intclip.data.images import read_image
from intclip.data.intentonomy import REPORT, load_intentonomy
from intclip.data.prepare import Preparation, at_width, prepare_intentonomy, to_jpeg
from intclip.errors import DatasetError, ImageError, StorageError

FAST: dict[str, Any] = {"timeout": 0.5, "backoff": 0.01, "attempts": 3}


@contextmanager
def fast_fetcher(*, rate: float = 1000, connections: int = 8, **constants: Any) -> Iterator[Fetcher]:
    """A `Fetcher` that gives up soon; `constants` are others than those of `FAST`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (FAST | constants).items():
            patch.setattr(fetch, name.upper(), value)
        with Fetcher(rate=rate, connections=connections) as fetcher:
            yield fetcher


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[PhotoServer]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with photo_server() as running:
        yield running


def annotate(folder: Path, url: str, names: list[str], split: str = "val") -> Path:
    intentonomy_file(
        folder / f"intentonomy_{split}2020.json",
        [(name, [index % 28]) for index, name in enumerate(names)],
        INTENTS,
        url=url,
    )
    return folder


def prepare(root: Path, *, splits: Sequence[str] = ("val",), **options: Any) -> Preparation:
    """`prepare_intentonomy` with a fast fetcher; options of the fetcher are passed to it."""
    of_fetcher = {name: options.pop(name) for name in (*FAST, "rate", "connections") if name in options}
    with fast_fetcher(**of_fetcher) as fetcher:
        return prepare_intentonomy(root, fetcher, splits=splits, **options)


def run(root: Path, server: PhotoServer, names: list[str], **options: Any) -> Preparation:
    annotate(root, server.url, names)
    return prepare(root, **options)


def reasons(report: Preparation) -> dict[str, str]:
    return {item["id"]: item["reason"] for item in [*report.gone, *report.failed]}


def test_photos_of_every_fate(tmp_path: Path, server: PhotoServer) -> None:
    good = [
        "good-1",
        "good-2",
        "large-1",
        "png-1",
        "turned-1",
        "untyped-1",
        "flaky-1",
        "short-1",
        "slow-1",
        "silent-1",
        "moved-1",
    ]
    gone = ["gone-1", "vanished-1"]
    bad = {
        "forbidden-1": "status 403",
        "page-1": "the server sent text/html",
        "liar-1": "not a supported image",
        "dead-1": "status 500",
        "breaks-1": "was interrupted",
        "understated-1": "truncated",
        "circle-1": "invalid URL",
        "empty-1": "empty",
    }
    report = run(tmp_path, server, [*good, *gone, *bad], width=200, timeout=1.0)
    assert (report.photos, report.there, report.fetched) == (21, 0, 11)
    assert sorted(item["id"] for item in report.gone) == gone
    found = reasons(report)
    assert set(found) == {*gone, *bad}
    for name, reason in bad.items():
        assert reason in found[name]
    for name in good:
        with Image.open(tmp_path / "low" / f"{name}.jpg") as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert image.width <= 200
            assert image.getexif().get(0x0112, 1) == 1
    assert Image.open(tmp_path / "low" / "large-1.jpg").size == (200, 133)
    assert Image.open(tmp_path / "low" / "turned-1.jpg").size == (30, 40)
    assert sorted(path.name for path in (tmp_path / "low").iterdir()) == sorted(f"{name}.jpg" for name in good)
    assert server.queries["good-1"] == {"q": ["30"], "w": ["200"], "fm": ["jpg"], "fit": ["max"]}
    assert server.asked["gone-1"] == server.asked["page-1"] == server.asked["liar-1"] == 1  # retries are useless
    assert server.asked["dead-1"] == server.asked["breaks-1"] == 3
    assert server.asked["flaky-1"] == 3

    written = json.loads((tmp_path / REPORT).read_text())
    assert written["share_gone"] == pytest.approx(2 / 21)
    assert (written["fetched"], written["width"], written["bytes"]) == (11, 200, report.bytes)
    assert len(written["annotations"]["intentonomy_val2020.json"]) == 64
    line = report.summary()
    assert line.startswith("11 of 21 photos are usable (11 new")
    assert "2 (9.5%) no longer exist; 8 failed this time" in line

    with pytest.raises(DatasetError, match="8 of 21 photos"):  # missing photos are expected, failed ones are not
        load_intentonomy(tmp_path)
    assert len(load_intentonomy(tmp_path, missing="skip").splits["val"]) == 11


def test_a_second_run_fetches_only_what_is_missing(tmp_path: Path, server: PhotoServer) -> None:
    names = [f"good-{i}" for i in range(6)] + ["gone-1", "page-1"]
    run(tmp_path, server, names)
    (tmp_path / "low" / "good-0.jpg").unlink()
    content = (tmp_path / "low" / "good-1.jpg").read_bytes()
    (tmp_path / "low" / "good-1.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "low" / "good-2.jpg").write_bytes(b"")
    before = dict(server.asked)
    report = run(tmp_path, server, names)
    assert (report.there, report.fetched) == (3, 3)
    again = {name for name, count in server.asked.items() if count > before[name]}
    assert again == {"good-0", "good-1", "good-2", "page-1"}
    assert (tmp_path / "low" / "good-1.jpg").read_bytes() == content
    assert [item["id"] for item in report.gone] == ["gone-1"]  # still in the report, not requested again
    run(tmp_path, server, names, retry_gone=True)
    assert server.asked["gone-1"] == 2


def test_small_jpegs_stay_byte_for_byte(tmp_path: Path, server: PhotoServer) -> None:
    run(tmp_path, server, ["good-1"], width=100)
    assert (tmp_path / "low" / "good-1.jpg").read_bytes() == encode(
        photo(len("good-1") + sum(map(ord, "good-1")), (100, 75))
    )


def test_the_server_sets_the_pace(tmp_path: Path, server: PhotoServer) -> None:
    """After 429 with Retry-After there is no request before the time is over."""
    report = run(tmp_path, server, ["wait-1", *(f"good-{i}" for i in range(6))], connections=1)
    assert report.fetched == 7
    gaps = [second - first for first, second in zip(server.times, server.times[1:], strict=False)]
    assert max(gaps) >= 0.95
    started = time.monotonic()
    assert run(tmp_path / "b", server, ["date-1"]).fetched == 1  # Retry-After as a date
    assert time.monotonic() - started >= 0.9


def test_rate_and_number_of_workers_are_kept(
    tmp_path: Path, server: PhotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = time.monotonic()
    run(tmp_path, server, [f"good-{i}" for i in range(12)], rate=20, connections=8)
    assert time.monotonic() - started >= 11 / 20
    assert min(second - first for first, second in zip(server.times, server.times[2:], strict=False)) > 0.02
    # Counted at the client: the server may still be closing an answer when the next request comes.
    original, lock, under_way = Fetcher.fetch, threading.Lock(), [0, 0]

    def counted(*args: Any, **options: Any) -> bytes:
        with lock:
            under_way[0] += 1
            under_way[1] = max(under_way)
        try:
            return original(*args, **options)
        finally:
            with lock:
                under_way[0] -= 1

    monkeypatch.setattr(Fetcher, "fetch", counted)
    run(tmp_path / "b", server, [f"slow-{i}" for i in range(6)], connections=2)
    assert under_way == [0, 2]


def test_an_endless_answer_is_given_up(tmp_path: Path, server: PhotoServer) -> None:
    started = time.monotonic()
    report = run(tmp_path, server, ["drip-1"], timeout=0.2, attempts=1)
    assert "too slow" in reasons(report)["drip-1"]
    assert time.monotonic() - started < 15


def test_too_large_an_answer_is_given_up(tmp_path: Path, server: PhotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intclip.data.fetch.MAX_BYTES", 100)
    assert "larger than" in reasons(run(tmp_path, server, ["good-1"]))["good-1"]


def test_no_server_at_all_ends_soon_with_one_line(tmp_path: Path) -> None:
    annotate(tmp_path, "http://127.0.0.1:1", [f"good-{i}" for i in range(400)])
    with pytest.raises(DatasetError, match="cannot be reached") as error:
        prepare(tmp_path, attempts=1)
    assert "\n" not in str(error.value)
    assert len(json.loads((tmp_path / REPORT).read_text())["failed"]) < 100


def test_interruption_leaves_whole_photos_and_a_report(
    tmp_path: Path, server: PhotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"slow-{i}" for i in range(40)]
    annotate(tmp_path, server.url, names)

    def interrupt(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, connections=2, on_progress=interrupt)
    assert time.monotonic() - started < 10
    files = sorted((tmp_path / "low").iterdir())
    assert 5 <= len(files) < 40
    for path in files:
        read_image(path)
    assert json.loads((tmp_path / REPORT).read_text())["fetched"] >= 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("intclip-prepare")]
    assert run(tmp_path, server, names).there == len(files)


def test_a_full_disk_ends_the_run(tmp_path: Path, server: PhotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if self.name.endswith(".partial") and "good-3" in self.name:
            raise OSError(28, os.strerror(28))
        return real(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="No space left"):
        run(tmp_path, server, [f"good-{i}" for i in range(6)], connections=1)
    assert not list(tmp_path.rglob("*.partial"))


def test_annotations_are_copied_from_a_folder_or_fetched_and_verified(
    tmp_path: Path, server: PhotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = annotate(tmp_path / "given", server.url, ["good-1"])
    report = prepare(tmp_path / "root", annotations=given)
    assert report.fetched == 1
    assert (tmp_path / "root" / "intentonomy_val2020.json").is_file()
    with pytest.raises(DatasetError, match=r"intentonomy_train2020\.json"):
        prepare(tmp_path / "root", annotations=given, splits=["train"])

    monkeypatch.setitem(prepare_module.ANNOTATIONS, "val", f"{server.url}/gone-file")
    with pytest.raises(DatasetError, match=r"404.*--annotations"):
        prepare(tmp_path / "new")
    monkeypatch.setitem(prepare_module.ANNOTATIONS, "val", f"{server.url}/page-file")
    with pytest.raises(DatasetError, match="page-file"):
        prepare(tmp_path / "new")
    monkeypatch.delitem(prepare_module.CHECKSUMS, "val")
    with pytest.raises(DatasetError, match="not JSON"):
        prepare(tmp_path / "new")
    assert not list((tmp_path / "new").rglob("*.json"))  # nothing half-checked stays

    content = (given / "intentonomy_val2020.json").read_bytes()
    monkeypatch.setattr(Fetcher, "fetch", lambda self, url, accept=(): content)
    with pytest.raises(DatasetError, match="498 photos"):
        prepare(tmp_path / "new")
    monkeypatch.setitem(prepare_module.COUNTS, "val", 1)
    monkeypatch.setattr(prepare_module, "_run", lambda *_: None)
    prepare(tmp_path / "new")
    assert (tmp_path / "new" / "intentonomy_val2020.json").read_bytes() == content


def test_file_names_that_leave_the_folder_are_refused(tmp_path: Path, server: PhotoServer) -> None:
    path = annotate(tmp_path, server.url, ["good-1"]) / "intentonomy_val2020.json"
    for name in ("../evil.jpg", "/tmp/evil.jpg", "low/../../evil.jpg", "a\0.jpg", ""):
        content = json.loads(path.read_text())
        content["images"][0]["filename"] = name
        path.write_text(json.dumps(content))
        with pytest.raises(DatasetError, match=re.escape(repr(name)[:100])):
            prepare(tmp_path)
    assert not server.asked


def test_unknown_split_and_photo_without_address(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="'dev'"):
        prepare(tmp_path, splits=["dev"])
    path = annotate(tmp_path, "", ["good-1"]) / "intentonomy_val2020.json"
    content = json.loads(path.read_text())
    del content["images"][0]["unsplash_url"]
    path.write_text(json.dumps(content))
    assert reasons(prepare(tmp_path)) == {"good-1": "the annotations have no URL"}
    for url in ("ftp://example.org/a", "not an address", "http://[::1"):
        content["images"][0]["unsplash_url"] = url
        path.write_text(json.dumps(content))
        assert "invalid URL" in reasons(prepare(tmp_path))["good-1"]


def test_addresses_keep_what_they_ask_for_and_get_a_width() -> None:
    url = "https://images.unsplash.com/photo-1?ixid=eyJhc==&q=30&w=9"
    assert at_width(url, 640) == "https://images.unsplash.com/photo-1?ixid=eyJhc%3D%3D&q=30&w=640&fm=jpg&fit=max"


def test_to_jpeg() -> None:
    small = encode(photo())
    assert to_jpeg(small, 40) is small
    for content, size in (
        (encode(photo(), "PNG"), (40, 30)),
        (small, (20, 15)),
        (encode(photo().convert("CMYK")), (40, 30)),
    ):
        image = Image.open(io.BytesIO(to_jpeg(content, size[0])))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", size)
    assert Image.open(io.BytesIO(to_jpeg(encode(Image.new("RGB", (1000, 1))), 10))).size == (10, 1)
    with pytest.raises(ImageError):
        to_jpeg(small[:200], 40)


def test_retry_after() -> None:
    assert retry_after(None) == retry_after("") == retry_after("soon") == retry_after("-3") == 0
    assert retry_after("7") == 7
    assert retry_after("Fri, 31 Dec 1999 23:59:59 GMT") == 0
    assert retry_after("Fri, 31 Dec 2100 23:59:59 GMT") > 1e9


def test_fetcher_alone(server: PhotoServer) -> None:
    with fast_fetcher(attempts=2, timeout=1) as fetcher:
        assert read_image(fetcher.fetch(f"{server.url}/good-1")).size == (400, 300)
        with pytest.raises(Gone):
            fetcher.fetch(f"{server.url}/gone-1")
        with pytest.raises(Failed, match="403"):
            fetcher.fetch(f"{server.url}/forbidden-1")
    with pytest.raises(Failed, match="interrupted"):
        fetcher.fetch(f"{server.url}/good-1")
