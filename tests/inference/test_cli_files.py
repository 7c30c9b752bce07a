"""Inputs and outputs of `intclip predict`: standard input and output, pipes, sidecars, tables, unusual terminals."""

import csv
import io
import json
import os
import select
import signal
import stat
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fakes import tiny_taxonomy
from intclip.inference.results import FIXED_COLUMNS, score_columns
from tiny_models import reference_probabilities

NAMES = list(tiny_taxonomy().names)


def start(*words, **options) -> subprocess.Popen:
    """Run the command line in its own process."""
    command = [sys.executable, "-m", "intclip.cli", *map(str, words)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(command, **pipes)


@pytest.fixture
def many(photos, tmp_path):
    """A folder of forty photos."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02d}.png").hardlink_to(photos[number % len(photos)])
    return folder


# -- standard input


@pytest.fixture
def stdin(monkeypatch):
    def give(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


def test_one_photo_from_standard_input(cli, exported, photos, stdin):
    stdin(photos[0].read_bytes())
    code, out, _ = cli("predict", "-", "-m", exported, "--json")
    (row,) = json.loads(out)
    assert (code, row["source"]) == (0, "<stdin>")
    np.testing.assert_allclose(list(row["scores"].values()), reference_probabilities(photos[:1])[0], atol=1e-5)


def test_a_list_from_standard_input(cli, exported, photos, stdin, tmp_path):
    stdin(f"{photos[1]}\n\n{tmp_path}/gone.png\n{photos[0]}\n".encode())
    code, out, err = cli("predict", "-", "-m", exported, "--json")
    assert (code, [row["error"] is None for row in json.loads(out)]) == (2, [True, False, True])
    assert "gone.png" in err
    stdin(b"")
    assert cli("predict", "-", "-m", exported)[0] == 2


def test_explain_reads_a_photo_from_standard_input(cli, exported, photos, stdin, tmp_path):
    stdin(photos[0].read_bytes())
    assert cli("explain", "-", "-m", exported, "--out", tmp_path / "o.png")[0] == 0
    assert (tmp_path / "o.png").is_file()


# -- outputs


def test_tables_and_pictures_on_standard_output(exported, photos):
    done = start("predict", *photos[:2], "-m", exported, "--csv", "-")
    out, _ = done.communicate()
    rows = list(csv.DictReader(io.StringIO(out.decode())))
    assert (done.returncode, [row["source"] for row in rows]) == (0, [str(photo) for photo in photos[:2]])
    done = start("predict", *photos[:2], "-m", exported, "--parquet", "/dev/stdout")
    assert pq.read_table(io.BytesIO(done.communicate()[0])).num_rows == 2
    done = start("explain", photos[0], "-m", exported, "--out", "-")
    picture, said = done.communicate()
    with Image.open(io.BytesIO(picture)) as image:
        assert image.format == "PNG"
    assert b"evidence in -" in said
    done = start("report", photos[0], "-m", exported, "--out", "-")
    assert done.communicate()[0].startswith(b"<!doctype html>")


def test_standard_output_takes_one_result(cli, exported, photos):
    assert cli("predict", photos[0], "-m", exported, "--json", "--csv", "-")[0] == 2
    assert cli("predict", photos[0], "-m", exported, "--csv", "-", "--parquet", "/dev/stdout")[0] == 2


@pytest.mark.skipif(sys.platform == "win32", reason="names of POSIX")
def test_a_link_and_a_pipe_stay_what_they_are(cli, exported, photos, tmp_path):
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    code, _, err = cli("predict", photos[0], "-m", exported, "--csv", tmp_path / "link.csv")
    assert code == 0
    assert "link.csv: 1 photos" in err
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text().startswith("source,")
    os.mkfifo(tmp_path / "pipe")
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()))
    reader.start()
    assert cli("predict", photos[0], "-m", exported, "--csv", tmp_path / "pipe")[0] == 0
    reader.join(10)
    assert got[0].startswith("source,")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("options", [(), ("--json",), ("--csv", "-")])
def test_a_reader_that_wants_no_more_is_no_failure(exported, many, options):
    done = start("predict", many, "-m", exported, *options)
    done.stdout.readline()
    done.stdout.close()
    said = done.stderr.read()
    assert (done.wait(), said) == (0, b"")


def test_files_are_written_though_nobody_reads_standard_output(exported, many, tmp_path):
    done = start("predict", many, "-m", exported, "--json", "--csv", tmp_path / "all.csv")
    done.stdout.close()
    assert (done.wait(), done.stderr.read()) == (0, b"")
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 41


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell")
def test_files_are_written_though_all_standard_streams_are_closed(exported, photos, tmp_path):
    """A file that is opened would get the number of a closed stream, and then all that is printed."""
    words = [sys.executable, "-m", "intclip.cli", "predict", str(photos[0]), "-m", str(exported), "--csv", "out.csv"]
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words]
    assert subprocess.run(shell, cwd=tmp_path, timeout=120).returncode == 0
    assert (tmp_path / "out.csv").read_text().splitlines()[0].startswith("source,error,labels")
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="a short pipe")
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGHUP])
def test_a_process_that_is_told_to_end_leaves_nothing(exported, many, tmp_path, sign):
    fcntl = pytest.importorskip("fcntl")
    place = tmp_path / "out"
    place.mkdir()
    os.mkfifo(tmp_path / "list")
    reader = os.open(tmp_path / "list", os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)  # so the process waits amid its rows, the other file begun
    done = start("predict", many, "-m", exported, "--csv", tmp_path / "list", "--parquet", place / "t.parquet")
    waiting = select.poll()
    waiting.register(reader, select.POLLIN)
    assert waiting.poll(60_000)
    for _ in range(200):
        if begun := list(place.iterdir()):
            break
        time.sleep(0.05)
    assert begun
    done.send_signal(sign)
    assert done.wait(30) == -sign
    assert not list(place.iterdir())
    os.close(reader)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1"])
def test_terminals_that_have_few_characters(exported, photos, tmp_path, encoding):
    path = tmp_path / "фото ü 😀.png"
    path.write_bytes(photos[0].read_bytes())
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = start("predict", path, "-m", exported, "--threshold", "0.01", env=environment)
    out, err = done.communicate()
    assert (done.returncode, err) == (0, b"")
    assert b"\\u0444\\u043e\\u0442\\u043e" in out
    assert out.splitlines()[1].split()[0] == b"*"
    done = start("predict", path, "-m", exported, "--json", env=environment)
    assert json.loads(done.communicate()[0].decode(encoding))[0]["source"] == str(path)
    done = start("predict", tmp_path / "●.png", "-m", exported, env=environment)
    assert b"\\u25cf.png" in done.communicate()[1]
    assert done.returncode == 2


# -- sidecars


def test_sidecars(cli, exported, photos, tmp_path):
    pytest.importorskip("lxml")
    for number, photo in enumerate(photos[:3]):
        (tmp_path / f"{number}.png").write_bytes(photo.read_bytes())
    (tmp_path / "2.png.xmp").write_text("not XML")
    code, out, err = cli("predict", tmp_path, "-m", exported, "--xmp", "--threshold", "0.01")
    assert (code, out) == (2, "")
    assert "sidecars written or changed: 2" in err
    assert "2.png.xmp" in err
    assert all(name in (tmp_path / "0.png.xmp").read_text() for name in NAMES)
    assert (tmp_path / "2.png.xmp").read_text() == "not XML"
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{n}.png{s}" for n in range(3) for s in ("", ".xmp")]


def test_sidecars_need_files(cli, exported, photos, stdin):
    pytest.importorskip("lxml")
    stdin(photos[0].read_bytes())
    assert cli("predict", "-", "-m", exported, "--xmp")[0] == 2


# -- labels with the names of columns


def test_labels_with_the_names_of_columns():
    names = ["error", "Source", "labels", "image", "text", "joy", "error (label)"]
    columns = score_columns(names)
    assert columns[5:] == ["joy", "error (label)"]
    assert len({column.casefold() for column in [*columns, *FIXED_COLUMNS, "image", "text"]}) == 12
    assert all(column.startswith(name) for name, column in zip(names, columns, strict=True))


def test_tables_of_such_labels(cli, photos, tmp_path):
    labels, table, frame = (tmp_path / name for name in ("labels.yaml", "out.csv", "out.parquet"))
    labels.write_text("- error\n- source\n- labels\n- image\n- text\n")
    words = ("predict", photos[0], "--taxonomy", labels, "--csv", table, "--parquet", frame)
    assert cli(*words)[0] == 0
    with table.open(encoding="utf-8", newline="") as stream:
        (row,) = csv.DictReader(stream)
    columns = pq.read_table(frame).to_pydict()
    assert list(row) == list(columns)
    assert len(set(row)) == 8
    assert row["error"] == ""
    assert 0 < float(row["error (label)"]) < 1
    code, out, _ = cli("labels", "check", labels)
    assert code == 0
    assert "error (label)" in out


# -- photos inside tables, and lists


@pytest.mark.parametrize("plain", [False, True])
def test_photos_inside_a_parquet_file(cli, exported, photos, tmp_path, plain):
    cells = [{"bytes": photo.read_bytes(), "path": f"{n}.png"} for n, photo in enumerate(photos)]
    column = [cell["bytes"] for cell in cells] if plain else cells
    pq.write_table(pa.table({"image": column, "note": ["x"] * len(cells)}), tmp_path / "t.parquet", row_group_size=2)
    code, out, err = cli("predict", tmp_path / "t.parquet", "-m", exported, "--json", "--workers", 3)
    assert (code, err) == (0, "")
    rows = json.loads(out)
    names = [f"row {n + 1}" if plain else f"{n}.png" for n in range(len(photos))]
    assert [row["source"] for row in rows] == [f"{tmp_path}/t.parquet!{name}" for name in names]
    scores = [[row["scores"][name] for name in NAMES] for row in rows]
    np.testing.assert_allclose(scores, reference_probabilities(photos), atol=1e-5, rtol=0)


def test_one_missing_photo_of_a_list_ends_no_run(cli, exported, photos, tmp_path):
    (tmp_path / "list.txt").write_text(f"{photos[0]}\ngone.png\n{photos[1]}\n")
    code, out, err = cli("predict", tmp_path / "list.txt", "-m", exported, "--json")
    assert (code, [row["error"] is None for row in json.loads(out)]) == (2, [True, False, True])
    assert "gone.png" in err


def test_streams_are_photos(exported, photos):
    import intclip

    model = intclip.load(exported)
    content = photos[0].read_bytes()
    expected = reference_probabilities(photos[:1])[0]
    with photos[0].open("rb") as file:
        sources = [file, io.BytesIO(content), [io.BytesIO(content)], photos[0].open("rb"), bytearray(content)]
        for source in sources:
            np.testing.assert_allclose(model.predict(source)[0].probabilities, expected, atol=1e-5)
        assert model.predict(file)[0].source == str(photos[0])


def test_truncated_photos_on_request(cli, exported, photos, tmp_path):
    path = tmp_path / "cut.png"
    path.write_bytes(photos[0].read_bytes()[:-60])
    assert cli("predict", path, "-m", exported)[0] == 2
    code, out, err = cli("predict", path, "-m", exported, "--lenient", "--json")
    assert (code, err, json.loads(out)[0]["source"]) == (0, "", str(path))


def test_exclude(cli, exported, many):
    code, out, _ = cli("predict", many, "-m", exported, "--json", "--exclude", "[1-3]*.png", "--exclude", "0[0-7]*")
    assert (code, [row["source"][-6:] for row in json.loads(out)]) == (0, ["08.png", "09.png"])
    assert cli("report", many, "-m", exported, "--exclude", "[0-3]*", "--out", many / "x.html")[0] == 2, (
        "no photo is left"
    )


@pytest.mark.parametrize("model", ["lit2", "gone.onnx", "runs/gone"])
def test_a_model_that_is_not_there_is_not_said_to_bring_labels(cli, photos, tmp_path, model):
    (tmp_path / "x.yaml").write_text("- a\n- b\n")
    code, _, err = cli("predict", photos[0], "-m", model, "--taxonomy", tmp_path / "x.yaml")
    assert (code, "has its own" in err) == (2, False)
    assert model in err
