"""Batch jobs: exactly one row per input, for any source, engine and time of interruption."""

import csv
import io
import json
import os
import shutil
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fakes import TinyBackbone, tiny_taxonomy
from intclip.batch import run
from intclip.batch.check import read_status, verify_job
from intclip.batch.duplicates import NEAR_BITS, find_duplicates
from intclip.batch.job import LOCK, PROGRESS, JobOptions, ModelOptions, plan_job, read_job
from intclip.batch.mapper import ShardMapper
from intclip.batch.references import references
from intclip.batch.run import RayWorker, run_job
from intclip.batch.shards import read_shard, to_matrix
from intclip.data.images import read_bytes, read_image
from intclip.data.loading import DRAFT_FACTOR
from intclip.errors import ImageError, StorageError
from intclip.files import hold_lock
from local_server import LocalServer, QuietHandler, running
from tiny_models import reference_probabilities


@pytest.fixture
def options(bundle_path) -> JobOptions:
    return JobOptions(model=ModelOptions(spec=str(bundle_path), engine="torch"), shard_size=2, batch_size=2)


@pytest.fixture
def listing(photos, tmp_path) -> Path:
    """Five photos, one of them twice, a missing one, and a file that is not a photo."""
    (tmp_path / "no.jpg").write_text("hello")
    names = [*photos, photos[1], "gone.jpg", "no.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(map(str, names)))
    return tmp_path / "list.txt"


def rows_of(folder: Path) -> list[dict]:
    return pq.read_table(folder / "shards").to_pylist()


def shard_times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted((folder / "shards").iterdir())}


def test_rows_are_the_predictor_s_numbers_and_bad_photos_are_errors(photos, listing, options, tmp_path):
    options = options.model_copy(update={"embedding": True})
    job = plan_job(tmp_path / "job", [str(listing)], options)
    summary = run_job(job)
    assert (summary.photos, summary.computed, summary.errors) == (8, 8, 2)
    rows = rows_of(tmp_path / "job")
    assert [row["row"] for row in rows] == list(range(8))
    assert [row["path"] for row in rows[:6]] == [*map(str, photos), str(photos[1])]
    expected = reference_probabilities([*photos, photos[1]])
    np.testing.assert_allclose([row["probabilities"] for row in rows[:6]], expected, atol=1e-5)
    levels = job.manifest.thresholds
    names = tiny_taxonomy().names
    for row, probabilities in zip(rows, expected, strict=False):
        assert row["labels"] == [n for n, p, t in zip(names, probabilities, levels, strict=True) if p >= t]
    assert "no such photo" in rows[6]["error"]
    assert "no.jpg is not a supported image" in rows[7]["error"]
    assert rows[6]["probabilities"] is None
    assert rows[7]["embedding"] is None
    backbone = TinyBackbone()
    for row, path in zip(rows, photos, strict=False):
        pixels = backbone.preprocess(read_image(path, min_side=DRAFT_FACTOR * backbone.image_size))[None]
        embedding = backbone.encode_image(pixels)[0]
        np.testing.assert_allclose(row["embedding"], (embedding / embedding.norm()).numpy(), atol=1e-3)
    matrix = to_matrix(read_shard(job.shard_path(3))["probabilities"])
    assert np.isnan(matrix).all()
    assert verify_job(job).errors == 2


@pytest.fixture
def sources(photos, tmp_path) -> dict[str, str]:
    """The five photos, given in every supported way."""
    names = [path.name for path in photos]
    (tmp_path / "list.txt").write_text("\n".join(map(str, photos)) + "\n\n")
    folder = tmp_path / "tables"
    shutil.copytree(photos[0].parent, folder)
    with (folder / "t.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["image", "other"], *([name, 1] for name in names)])
    (folder / "t.jsonl").write_text("\n".join(json.dumps({"path": name}) for name in names))
    pq.write_table(pa.table({"file_name": names, "x": [1.0] * 5}), folder / "t.parquet")
    tars = tmp_path / "tars"
    tars.mkdir()
    with tarfile.open(tars / "a-000.tar", "w") as tar:
        for path in photos[:3]:
            tar.add(path, f"deep/{path.name}")
            text = tarfile.TarInfo(f"deep/{path.stem}.txt")
            text.size = 2
            tar.addfile(text, io.BytesIO(b"hi"))
    with tarfile.open(tars / "a-001.tar", "w") as tar:
        for path in photos[3:]:
            tar.add(path, path.name)
    memory = fsspec.filesystem("memory")
    for path in photos:
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    memory.pipe("/lists/urls.txt", "\n".join(f"memory://bucket/{name}" for name in names).encode())
    memory.pipe("/bucket2/t.csv", ("path\n" + "\n".join(f"../bucket/{name}" for name in names)).encode())
    for name in ("a-000.tar", "a-001.tar"):
        memory.pipe(f"/tars/{name}", (tars / name).read_bytes())
    places = {name: str(folder / f"t.{name}") for name in ("csv", "jsonl", "parquet")}
    return places | {
        "folder": str(photos[0].parent),
        "pattern": str(photos[0].parent / "*"),
        "list": str(tmp_path / "list.txt"),
        "tars": str(tars / "a-*.tar"),
        "folder of tars": str(tars),
        "remote folder": "memory://bucket",
        "remote pattern": "memory://bucket/photo*",
        "remote list": "memory://lists/urls.txt",
        "remote tars": "memory://tars",
    }


KINDS = (
    *("folder", "pattern", "list", "csv", "jsonl", "parquet", "tars", "folder of tars"),
    *("remote folder", "remote pattern", "remote list", "remote tars"),
)


def test_every_kind_of_source_gives_the_same_rows(sources, photos, options, tmp_path):
    expected = reference_probabilities(photos)
    for kind in KINDS:
        job = plan_job(tmp_path / "jobs" / kind, [sources[kind]], options)
        run_job(job)
        rows = rows_of(job.folder)
        names = [row["path"].replace("!", "/").rpartition("/")[2] for row in rows]
        assert names == [path.name for path in photos], kind
        np.testing.assert_allclose([row["probabilities"] for row in rows], expected, atol=1e-5, err_msg=kind)
        assert verify_job(job).photos == 5


def test_a_tar_in_capitals_and_one_at_an_address_with_a_query(photos, tmp_path, options):
    archive = tmp_path / "A.TAR"
    with tarfile.open(archive, "w") as tar:
        tar.add(photos[0], "deep!/a.tar!.png")
    (found,) = references([str(archive)])
    assert read_image(found.image()).tobytes() == read_image(photos[0]).tobytes()
    signed = found._replace(path="https://host/a.tar?signature=x/y!deep!/a.tar!.png").image()
    assert (signed.url, signed.name) == ("https://host/a.tar?signature=x/y", "deep!/a.tar!.png")


def test_a_folder_of_photos_and_tars_gives_all_of_them(photos, tmp_path):
    folder = tmp_path / "mixed"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(photos[0], folder / "photo.png")
    for name, path in (("a.tar", photos[1]), ("deep/b.TAR", photos[2])):
        with tarfile.open(folder / name, "w") as tar:
            tar.add(path, "photo.png")
    names = ["a.tar!photo.png", "deep/b.TAR!photo.png", "photo.png"]
    for source in (str(folder), f"file://{folder}"):
        assert [found.path.rpartition("/mixed/")[2] for found in references([source])] == names
    assert len(list(references([str(folder / "*")]))) == 2, "a pattern gives the archives it matches too"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_pipe_that_is_called_a_tar_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    (found,) = references([str(tmp_path)])
    with pytest.raises(ImageError, match=r"pipe\.tar"):
        read_image(found.image())


class FolderHandler(QuietHandler, SimpleHTTPRequestHandler):
    """Serves the files of a folder."""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_pipe_at_an_address_is_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.jpg")
    (found,) = references([(tmp_path / "pipe.jpg").as_uri()])
    monkeypatch.setattr(type(fsspec.filesystem("file")), "cat_file", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ImageError, match=r"pipe\.jpg"):
        read_bytes(found.image())


def test_http_addresses(photos, tmp_path, options):
    with running(LocalServer(partial(FolderHandler, directory=photos[0].parent))) as server:
        url = server.url
        (tmp_path / "urls.txt").write_text(f"{url}/{photos[0].name}\n{url}/gone.jpg\n{url}/{photos[1].name}\n")
        job = plan_job(tmp_path / "job", [str(tmp_path / "urls.txt")], options)
        assert run_job(job).errors == 1
    rows = rows_of(job.folder)
    np.testing.assert_allclose(
        [rows[i]["probabilities"] for i in (0, 2)], reference_probabilities(photos[:2]), atol=1e-5
    )
    assert rows[1]["error"] == f"no such photo: {url}/gone.jpg; check the URL"


def test_a_wrong_address_in_a_list_is_a_row(photos, tmp_path, options):
    (tmp_path / "list.txt").write_text(f"{photos[0]}\nnosuch://bucket/a.jpg\n{photos[1]}\n")
    job = plan_job(tmp_path / "job", [str(tmp_path / "list.txt")], options)
    assert run_job(job).errors == 1
    assert rows_of(job.folder)[1]["error"].startswith("cannot open nosuch://bucket/a.jpg: ")


def test_http_addresses_with_a_query(photos, tmp_path):
    (tmp_path / "list.txt").write_text(photos[0].name)
    shutil.copy(photos[0], tmp_path)
    with running(LocalServer(partial(FolderHandler, directory=tmp_path))) as server:
        photo = f"{server.url}/{photos[0].name}"
        assert [found.path for found in references([f"{photo}?key=a/b"])] == [f"{photo}?key=a/b"]
        assert [found.path for found in references([f"{server.url}/list.txt?key=a/b"])] == [photo]


def test_a_rerun_does_only_what_is_missing(listing, options, tmp_path):
    job = plan_job(tmp_path / "job", [str(listing)], options)
    run_job(job)
    before, rows = shard_times(job.folder), rows_of(job.folder)
    again = plan_job(tmp_path / "job", [str(listing)], options)
    assert run_job(again).computed == 0
    assert shard_times(job.folder) == before
    job.shard_path(1).unlink()
    job.shard_path(2).write_bytes(job.shard_path(2).read_bytes()[:-40])  # a copy that was cut short
    assert read_status(job.folder)["shards_done"] == 2
    assert run_job(again).computed == 4
    after = shard_times(job.folder)
    assert [after[name] == before[name] for name in sorted(after)] == [True, False, False, True]
    assert rows_of(job.folder) == rows


def test_errors_are_tried_again_when_asked(listing, photos, options, tmp_path):
    job = plan_job(tmp_path / "job", [str(listing)], options)
    run_job(job)
    shutil.copy(photos[0], tmp_path / "gone.jpg")
    assert run_job(job).computed == 0
    assert run_job(job, retry_errors=True).errors == 1
    rows = rows_of(job.folder)
    np.testing.assert_allclose(rows[6]["probabilities"], rows[0]["probabilities"], atol=1e-5)


def test_another_source_or_model_is_refused(listing, photos, options, tmp_path):
    job = plan_job(tmp_path / "job", [str(listing)], options)
    with pytest.raises(StorageError, match=r"\b8 photos.*\b5\b.*--out"):
        plan_job(job.folder, [str(photos[0].parent)], options)
    with pytest.raises(StorageError, match=rf"8 photos.*{listing}"):
        plan_job(job.folder, [str(listing)], options, inputs=reversed(list(references([str(listing)]))))
    for changes, reason in (({"threshold": 0.4}, "threshold.*None"), ({"embedding": True}, "embedding")):
        with pytest.raises(StorageError, match=reason):
            plan_job(job.folder, [str(listing)], options.model_copy(update=changes))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".inputs.parquet.0.partial").touch()  # not one left by a killed start
    assert plan_job(tmp_path / "full", [str(listing)], options).manifest.photos == 8
    (tmp_path / "full" / "manifest.json").rename(tmp_path / "full" / "x")
    with pytest.raises(StorageError, match=str(tmp_path / "full")):
        plan_job(tmp_path / "full", [str(listing)], options)


def tampered(path: Path, change) -> None:
    """Rewrite a shard with its footer as it was, its rows changed."""
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)


def repeat_first(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(0, 1), table.slice(0, 1)])


def other_path(table: pa.Table) -> pa.Table:
    return table.set_column(1, "path", pa.array(["x", "y"]))


def no_error(table: pa.Table) -> pa.Table:
    return table.set_column(4, "error", pa.array([None, None], pa.string()))


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (1, repeat_first, r"\b2 .*\b3\b"),
        (1, other_path, "other photos than its inputs"),
        (1, lambda table: table.slice(0, 1), "1 of 4 shards"),
        (3, no_error, "neither probabilities nor error"),
    ],
)
def test_verify_finds_what_is_wrong(listing, options, tmp_path, number, change, message):
    job = plan_job(tmp_path / "job", [str(listing)], options)
    run_job(job)
    tampered(job.shard_path(number), change)
    with pytest.raises(StorageError, match=message):
        verify_job(job)


def test_a_flipped_byte_is_found_and_mended(listing, options, tmp_path, cli, bundle_path):
    job = plan_job(tmp_path / "job", [str(listing)], options)
    run_job(job)
    rows = rows_of(job.folder)
    content = bytearray(job.shard_path(0).read_bytes())
    column = pq.read_metadata(job.shard_path(0)).row_group(0).column(2)
    assert column.path_in_schema.startswith("probabilities")
    content[column.data_page_offset + column.total_compressed_size - 5] ^= 1
    job.shard_path(0).write_bytes(content)
    with pytest.raises(StorageError, match=r"part-0000000\.parquet"):
        verify_job(job)
    arguments = ["--out", job.folder, "-m", bundle_path, "--engine", "torch", "--shard-size", 2]
    code, out, _ = cli("batch", listing, *arguments, "--verify", "--json")
    told = json.loads(out)
    assert (code, told["computed"], told["verified"]["photos"]) == (0, 2, 8)
    assert rows_of(job.folder) == rows


def test_status_of_a_job_that_runs_stops_and_ends(listing, options, tmp_path):
    job = plan_job(tmp_path / "job", [str(listing)], options)
    assert read_status(job.folder)["state"] == "stopped"
    seen = []

    def on_progress(done: int, total: int) -> None:
        seen.append((done, total, read_status(job.folder)["state"]))
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job, on_progress=on_progress)
    assert (6, 8, "running") in seen
    told = (job.folder / PROGRESS).read_text()
    for damaged in ("", "1", "[]", '{"updated": "now"}', '{"done": null}'):
        (job.folder / PROGRESS).write_text(damaged)
        assert read_status(job.folder)["done"] == 4, damaged
    (job.folder / PROGRESS).write_text(told)
    status = read_status(job.folder)
    assert (status["state"], status["done"], status["seconds_left"]) == ("stopped", 4, None)
    assert run_job(job).computed == 4
    status = read_status(job.folder)
    assert (status["state"], status["done"], status["errors"]) == ("finished", 8, 2)
    assert status["photos_per_second"] > 0


def test_one_process_at_a_time(listing, options, tmp_path):
    job = plan_job(tmp_path / "job", [str(listing)], options)
    with hold_lock(job.folder / LOCK, "held"), pytest.raises(StorageError, match=str(job.folder)):
        run_job(job)
    assert run_job(job).computed == 8


def test_one_process_at_a_time_begins_a_job(listing, photos, options, tmp_path):
    def lines():
        with pytest.raises(StorageError, match=str(tmp_path / "job")):
            plan_job(tmp_path / "job", [str(photos[0].parent)], options)
        yield from references([str(listing)])

    job = plan_job(tmp_path / "job", [str(listing)], options, inputs=lines())
    assert [reference.path for reference in job.inputs(0)] == [
        reference.path for reference in list(references([str(listing)]))[: options.shard_size]
    ]


def test_equal_bytes_are_computed_once_and_twins_marked(photos, options, tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(photos[3], folder / "a.jpg")
    shutil.copy(photos[3], folder / "b.jpg")
    shutil.copy(photos[2], folder / "c.png")
    read_image(photos[3]).resize((120, 96)).save(folder / "d.jpg", quality=70)
    (folder / "e.jpg").write_text("no photo")
    shutil.copy(folder / "e.jpg", folder / "f.jpg")
    scored = []
    score = ShardMapper._score
    monkeypatch.setattr(ShardMapper, "_score", lambda self, inputs: scored.extend(inputs) or score(self, inputs))
    options = options.model_copy(update={"dedupe": "perceptual", "shard_size": 10})
    job = plan_job(tmp_path / "job", [str(folder)], options)
    assert run_job(job).duplicates == {"content": 2, "perceptual": 1}
    assert [Path(reference.path).name for reference in scored] == ["a.jpg", "c.png", "d.jpg", "e.jpg"]
    rows = rows_of(job.folder)
    assert rows[1]["probabilities"] == rows[0]["probabilities"]
    assert rows[5]["error"] == rows[4]["error"].replace("e.jpg", "f.jpg")
    found = pq.read_table(job.folder / "duplicates.parquet").to_pylist()
    assert [(row["row"], row["first"], row["kind"]) for row in found] == [
        (1, 0, "content"),
        (3, 0, "perceptual"),
        (5, 4, "content"),
    ]
    assert verify_job(job).errors == 2


def test_near_hashes_are_found_as_by_comparing_all_pairs():
    rng = np.random.default_rng(0)
    looks = rng.integers(0, 2**63, (300, 2), dtype=np.uint64)
    for row in range(100, 200):  # near-duplicates of earlier ones, up to just beyond the limit
        looks[row] = looks[rng.integers(0, 100)]
        for bit in rng.choice(128, rng.integers(0, NEAR_BITS + 2), replace=False):
            looks[row, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    contents = np.array([f"{i:064x}" for i in range(300)], dtype="S64")
    contents[299] = contents[7]
    looks[299] = looks[7]
    first, same = find_duplicates(contents, looks)
    group = list(range(300))  # slow reference: merge until nothing changes
    near = np.bitwise_count(looks[:, None] ^ looks[None]).sum(axis=2) <= NEAR_BITS
    near[299, 7] = near[7, 299] = True
    for _ in range(10):
        for row in range(300):
            group[row] = min(group[other] for other in np.flatnonzero(near[row]))
    assert first.tolist() == group
    assert np.flatnonzero(same).tolist() == [299]
    assert (first != np.arange(300)).sum() > 60


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_a_name_that_is_no_utf_8_is_read(photos, options, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    shutil.copy(photos[0], folder / os.fsdecode(b"\xff\xfe.jpg"))
    job = plan_job(tmp_path / "job", [str(folder)], options)
    assert run_job(job).errors == 0
    assert rows_of(job.folder)[0]["path"].endswith("\\udcff\\udcfe.jpg")
    (found,) = references([folder.as_uri()])
    assert found.path.endswith("\\udcff\\udcfe.jpg")
    assert read_bytes(found.image()) == photos[0].read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_a_name_that_is_no_utf_8_of_a_photo_that_cannot_be_read_is_a_row(options, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / os.fsdecode(b"\xff.jpg")).write_text("no photo")
    job = plan_job(tmp_path / "job", [str(folder)], options)
    assert run_job(job).errors == 1
    assert "\\udcff.jpg is not a supported image" in rows_of(job.folder)[0]["error"]


def test_ray_worker_does_a_shard_and_tells_what_is_wrong(listing, options, tmp_path):
    job = plan_job(tmp_path / "job", [str(listing)], options)
    worker = RayWorker()
    told = worker({"folder": str(job.folder), "home": str(Path.cwd()), "shard": 1})
    assert (told["failure"], told["start"], told["rows"]) == ("", 2, 2)
    (job.folder / "inputs.parquet").write_bytes(b"")
    assert "inputs.parquet" in worker({"folder": str(job.folder), "shard": 0})["failure"]


def test_a_ray_that_cannot_be_joined_is_one_line(listing, bundle_path, tmp_path, cli, monkeypatch):
    def init(**options):
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
        raise ConnectionError("Could not find any running Ray instance.\nMore of it.")

    ray = SimpleNamespace(is_initialized=lambda: False, init=init)
    monkeypatch.setattr(run, "require", lambda module, extra: ray)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    arguments = ["batch", listing, "--out", tmp_path / "job", "-m", bundle_path, "--engine", "torch"]
    code, out, err = cli(*arguments, "--runner", "ray")
    assert (code, out) == (2, "")
    message = "Ray cannot be started or joined: Could not find any running Ray instance.; or use --runner local"
    assert err == f"intclip: {message}\n"


def test_sources_that_name_nothing(tmp_path, cli):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bad.tar").write_bytes(b"x" * 2000)
    (tmp_path / "text.parquet").write_bytes(b"x" * 2000)
    cases = {
        "gone/": "gone",
        "gone-*.tar": r"gone-\*\.tar",
        str(tmp_path / "empty.txt"): r"empty\.txt",
        str(tmp_path / "bad.tar"): r"bad\.tar",
        str(tmp_path / "text.parquet"): r"text\.parquet",
        "memory://nowhere/x.txt": r"memory://nowhere/x\.txt",
        "nosuch://bucket/": "nosuch://bucket/",
    }
    for source, message in cases.items():
        with pytest.raises(Exception, match=message):
            list(references([source]))
        code, out, err = cli("batch", source, "--out", tmp_path / "job", "-m", "prior")
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1
    (tmp_path / "none").mkdir()
    assert cli("batch", tmp_path / "none", "--out", tmp_path / "job", "-m", "prior")[0] == 2
    assert not (tmp_path / "job").exists(), "no job was begun, so no folder of one is left"


def test_a_job_without_a_readable_photo_fails_with_its_rows_written(tmp_path, bundle_path, photos, cli):
    (tmp_path / "no.jpg").write_text("hello")
    listing = tmp_path / "list.txt"
    arguments = ["batch", listing, "--out", tmp_path / "job", "-m", bundle_path, "--engine", "torch"]
    listing.write_text("no.jpg\ngone.jpg\n")
    code, out, err = cli(*arguments)
    assert code == 2
    assert "2 photos" in out
    assert "2 photos" in err
    assert str(tmp_path / "job") in err
    assert all(row["error"] for row in rows_of(tmp_path / "job"))
    code, out, err = cli(*arguments, "--json")
    assert (code, json.loads(out)["errors"]) == (2, 2)
    listing.write_text(f"no.jpg\n{photos[0]}\n")
    arguments[3] = tmp_path / "other"
    assert cli(*arguments)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["batch", "x"], "--out DIR"),
        (["batch", "--out", "gone"], "give the photos"),
        (["batch", "--out", "gone", "--status"], "no batch job in gone"),
        (["batch", "--out", "gone", "--verify"], "no batch job in gone"),
        (["batch", "x", "--out", "y", "--engine", "spark"], "engine"),
    ],
)
def test_wrong_use_is_one_line(cli, arguments, message):
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert message in err


def test_a_damaged_manifest_is_told(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(StorageError, match=r"manifest\.json"):
        read_job(tmp_path)
