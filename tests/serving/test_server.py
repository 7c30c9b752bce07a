"""A real server in its own process: hostile and slow clients, the typed client, and shutdown."""

import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from server_process import running
from watched import photo

from intclip.errors import IntclipError
from intclip.serving.client import Client, ServiceError
from intclip.serving.server import address, bind


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The process and its address."""
    with running(tmp_path_factory.mktemp("server")) as (process, url, log):
        yield process, url
        # No unexpected failure, whatever the tests sent.
        assert not [line for line in log.read_text().splitlines() if "Traceback" in line]


@pytest.fixture(scope="module")
def service(server):
    return server[1]


def test_a_service_needs_no_torch():
    rooms = ", ".join(f"intclip.serving.{name}" for name in ("api", "app.routes", "server"))
    code = f"import sys, {rooms}; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "False", run.stderr


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def say(url: str, *pieces: bytes) -> bytes:
    """Return the server's answer to raw bytes, until it closes the connection.

    If it closes before reading everything, the system may drop the answer: then this is empty or incomplete.
    """
    with connect(url) as line:
        answer = b""
        try:
            for piece in pieces:
                line.sendall(piece)
            line.shutdown(socket.SHUT_WR)
            while more := line.recv(65536):
                answer += more
        except OSError:  # reset, or no longer connected
            pass
    return answer


def head(*lines: str) -> bytes:
    return "\r\n".join(["POST /v1/predict HTTP/1.1", "Host: x", *lines, "", ""]).encode()


def test_the_client_predicts_and_explains(service, tmp_path):
    file = tmp_path / "a b.png"
    file.write_bytes(photo(255, 3))
    with Client(service) as client:
        answer = client.predict([file, photo(9, 200)], threshold=0.7, level="group")
        assert [(one.source, one.labels) for one in answer.results] == [
            ("a b.png", ["class 0"]),
            ("image 2", ["class 1"]),
        ]
        assert set(answer.results[0].scores) == {"group 0", "group 1"}
        assert client.predict(file).results[0].scores["class 1"] == pytest.approx(3 / 255)
        found = client.explain(file, "class 1", picture=True)
        assert found.picture_bytes().startswith(b"\xff\xd8")
        assert found.box.right == pytest.approx(32 / 3)
        finer = client.explain(file, "class 1", kind="fine")
        assert len(finer.regions["fused"]) == 4 * len(found.regions["fused"])
        assert client.models()[0].name == "a"
        assert client.taxonomies()[0].levels["group"] == ["group 0", "group 1"]
        odd = tmp_path / os.fsdecode(b"\xff.png")  # not UTF-8, like names from old archives
        odd.write_bytes(photo(255, 3))
        assert client.predict(odd).results[0].source == "?.png"
        with pytest.raises(ServiceError, match="uses only photos"):
            client.predict(file, texts="cut \ud83d in half")
        with pytest.raises(ServiceError, match="not a supported image") as refusal:
            client.predict(b"<html>")
        assert refusal.value.status == 422
        with pytest.raises(IntclipError, match=r"nothing\.png"):
            client.predict("nothing.png")
        with pytest.raises(IntclipError, match=r"^no photos"):
            client.predict([])


def test_hostile_requests_are_refused_and_change_nothing_for_others(service):
    jpeg, png = photo(10, kind="JPEG"), photo(10)
    bomb = png[:16] + (60000).to_bytes(4, "big") * 2 + png[24:]
    with Client(service) as client:
        before = client.predict(png).results[0].scores
        for bad in (b"", b"\0" * 1000, jpeg[:200], bomb, b"GIF89a" + b"\xff" * 500, b"%PDF-1.7", b"<svg onload='x'/>"):
            with pytest.raises(ServiceError) as refusal:
                client.predict(bad)
            assert refusal.value.status == 422
        polyglot = client.predict(jpeg + b"<script>alert(1)</script>" + png)  # read as the format of its beginning
        assert polyglot.results[0].scores.keys() == before.keys()
        with pytest.raises(ServiceError, match="1 MB") as large:
            client.predict(b"x" * 1_500_000)
        assert large.value.status == 413
        with pytest.raises(ServiceError, match="too many files"):
            client.predict([png] * 5)
        assert b" 400 " in say(service, b"nonsense\r\n\r\n").split(b"\r\n")[0]
        large_head = say(service, head("X: " + "a" * 200_000))
        assert not large_head or b" 400 " in large_head.split(b"\r\n")[0]
        body = b"{" * 900_000
        lines = head("Content-Type: application/json", f"Content-Length: {len(body)}")
        assert b" 422 " in say(service, lines, body).split(b"\r\n")[0]
        with connect(service) as line:  # and disconnects
            line.sendall(head("Content-Type: application/json", "Content-Length: 100") + b'{"images"')
        assert client.predict(png).results[0].scores == before


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def zeros(megabytes: int) -> bytes:
    """Compressed to about a thousandth."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(megabytes)) + packer.flush()


def many_frames(kind: str, mark: bytes, end: int, times: int) -> bytes:
    """Return a red frame and repeated blue frames; a frame starts with `mark`, `end` bytes follow the last."""
    stream = io.BytesIO()
    first, second = Image.new("RGB", (12, 10), (255, 0, 0)), Image.new("RGB", (12, 10), (0, 0, 255))
    first.save(stream, kind, save_all=True, append_images=[second], duration=40)
    content = stream.getvalue()
    frame = content[content.rfind(mark) : len(content) - end]
    return content[: len(content) - end] + frame * times + content[len(content) - end :]


def many_scans(side: int, times: int) -> bytes:
    """Return a progressive JPEG with a repeated last scan: some thirty bytes each, and a pass over all pixels."""
    stream = io.BytesIO()
    Image.new("L", (side, side), 90).save(stream, "JPEG", progressive=True)
    content = stream.getvalue()
    return content[:-2] + content[content.rfind(b"\xff\xda") : -2] * times + content[-2:]


def used(pid: int) -> tuple[float, float]:
    """Return CPU seconds and peak memory in MB so far."""
    home = Path(f"/proc/{pid}")
    fields = (home / "stat").read_text().rpartition(")")[2].split()
    held = dict(line.split(":", 1) for line in (home / "status").read_text().splitlines())
    peak = held.get("VmHWM", held["VmRSS"])  # not every kernel records the peak
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), int(peak.split()[0]) / 1e3


def test_bombs_cost_neither_time_nor_memory(server):
    process, url = server
    png = photo(255)
    begin = 8 + 25  # the signature and the header
    large = zeros(200)
    bombs = {
        "text": png[:begin] + chunk(b"zTXt", b"a\0\0" + large) + png[begin:],
        "texts": png[:begin] + chunk(b"zTXt", b"a\0\0" + zeros(1)) * 300 + png[begin:],
        "profile": png[:begin] + chunk(b"iCCP", b"a\0\0" + large) + png[begin:],
        "scans": many_scans(4000, 25_000),
    }
    frames = many_frames("WEBP", b"ANMF", 0, 5_000)
    animations = {
        "gif": many_frames("GIF", b"\x21\xf9\x04", 1, 15_000),
        "webp": frames[:4] + (len(frames) - 8).to_bytes(4, "little") + frames[8:],
    }
    with Client(url) as client:
        client.predict(png)
        seconds, memory = used(process.pid)
        for name, bomb in bombs.items():
            assert len(bomb) < 950_000, "small enough that the service reads it"
            with pytest.raises(ServiceError, match=r"damaged|scans") as refusal:
                client.predict(bomb)
            assert refusal.value.status == 422, name
        black = png[:begin] + chunk(b"IDAT", large) + chunk(b"IEND", b"")  # much more than its pixels need
        assert client.predict(black).results[0].scores["class 0"] == 0
        for name, animation in animations.items():
            assert 100_000 < len(animation) < 950_000
            assert client.predict(animation).results[0].labels == ["class 0"], name
        later, peak = used(process.pid)
        assert later - seconds < 10
        assert peak - memory < 200
        assert client.predict(png).results[0].labels == ["class 0"]


def test_slow_clients_are_cut_off_and_nobody_waits_for_them(service):
    lines = head("Content-Type: application/json", "Content-Length: 100000")
    slow = [connect(service) for _ in range(20)]
    try:
        for line in slow:
            line.sendall(lines + b'{"images": ["')
        start = time.monotonic()
        with Client(service) as client:
            assert client.predict(photo(255)).results[0].labels == ["class 0"]
        assert slow[0].recv(65536).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - start < 30
        for line in slow[1:]:
            assert b" 408 " in line.recv(65536).split(b"\r\n")[0]
    finally:
        for line in slow:
            line.close()


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_it_answers_what_it_took_before_it_ends_and_logs_nothing_of_photos(tmp_path, sign):
    with running(tmp_path, delay=1.0, key="let-me-in") as (server, url, log):
        secret = tmp_path / "my-secret-holiday.png"
        secret.write_bytes(photo(255))
        answers: list = []

        def ask():
            with Client(url, api_key="let-me-in", attempts=1) as client:
                answers.append(client.predict(secret).results[0].labels)

        asking = [threading.Thread(target=ask) for _ in range(3)]
        for thread in asking:
            thread.start()
        client = Client(url, attempts=1)
        with pytest.raises(ServiceError, match="API key"):
            client.models()
        time.sleep(0.6)
        server.send_signal(sign)
        for thread in asking:
            thread.join(60)
        assert answers == [["class 0"]] * 3
        assert server.wait(60) == (0 if sign == signal.SIGINT else -sign)
        assert not client.ready()
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        requests = [one for one in lines if one["event"] == "request"]
        assert {"request", "method", "route", "status", "ms"} <= set(requests[0])
        assert [one["status"] for one in requests if one["route"] == "/v1/predict"] == [200] * 3
        assert "stopping" in [one["event"] for one in lines]
        assert not any(word in log.read_text() for word in ("holiday", "class 0", "let-me-in"))


def test_a_second_ctrl_c_waits_for_no_upload_and_still_answers_what_was_taken(tmp_path):
    with running(tmp_path, delay=1.5) as (server, url, log):
        answers: list = []

        def ask():
            with Client(url, attempts=1) as client:
                answers.append(client.predict(photo(255)).results[0].labels)

        asking = threading.Thread(target=ask)
        asking.start()
        with connect(url) as upload:
            upload.sendall(head("Content-Type: application/json", "Content-Length: 100") + b"{")
            time.sleep(0.6)
            for _ in range(2):
                server.send_signal(signal.SIGINT)
                time.sleep(0.1)
            asking.join(60)
            assert answers == [["class 0"]]
            told = b""
            while more := upload.recv(65536):
                told += more
        assert told.startswith(b"HTTP/1.1 503 ")
        assert b"the service was stopped; try again later" in told
        assert server.wait(60) == 0
        assert "Traceback" not in log.read_text()


def test_the_client_comes_again_where_the_service_is_busy(monkeypatch):
    import httpx2

    from intclip.serving import client as module

    waits: list[float] = []
    answers = [(429, {"Retry-After": "7"}), (503, {}), (200, {})]

    def handle(request):
        status, headers = answers[min(len(seen), 2)]
        seen.append(request.url.path)
        return httpx2.Response(status, headers=headers, json=[] if status == 200 else {"detail": "busy"})

    seen: list[str] = []
    monkeypatch.setattr("time.sleep", waits.append)
    asking = module.Client("http://nowhere.test")
    asking._http = httpx2.Client(base_url="http://nowhere.test", transport=httpx2.MockTransport(handle))
    assert asking.models() == []
    assert seen == ["/v1/models"] * 3
    assert 7 <= waits[0] <= 8.75
    assert waits[1] > 0
    seen.clear()
    answers[2] = (422, {})
    with pytest.raises(ServiceError, match="busy") as refusal:
        asking.models()
    assert refusal.value.status == 422
    assert len(seen) == 3


def test_where_nothing_listens_and_where_something_does():
    taken = bind("127.0.0.1", 0)
    taken.listen()
    port = taken.getsockname()[1]
    with pytest.raises(IntclipError, match=f"127.0.0.1:{port}: .*--port or --host"):
        bind("127.0.0.1", port)
    taken.close()
    with pytest.raises(IntclipError, match="'no such host'"):
        bind("no such host", 1)
    with pytest.raises(ServiceError, match=rf"127\.0\.0\.1:{port}.*`intclip serve`"):
        Client(f"http://127.0.0.1:{port}", attempts=1).models()


def test_an_address_of_ipv6_is_told_as_a_browser_takes_it():
    assert address(SimpleNamespace(getsockname=lambda: ("::", 7860, 0, 0))) == "http://[::]:7860"
    assert address(SimpleNamespace(getsockname=lambda: ("127.0.0.1", 80))) == "http://127.0.0.1:80"


@pytest.mark.parametrize("url", ["http://[::1", "http://\n127.0.0.1:8000", "http://a..example", "127.0.0.1:8000"])
def test_an_address_that_is_none_is_told_in_one_line(url):
    with pytest.raises(ServiceError, match="`intclip serve`") as refusal:
        Client(url).models()
    assert "\n" not in str(refusal.value)


def test_an_answer_that_cannot_be_unpacked_is_told_in_one_line():
    import httpx2

    damaged = httpx2.MockTransport(lambda _: httpx2.Response(200, headers={"Content-Encoding": "gzip"}, content=b"no"))
    asking = Client("http://nowhere.test")
    asking._http = httpx2.Client(base_url="http://nowhere.test", transport=damaged)
    with pytest.raises(ServiceError, match=r"http://nowhere\.test"):
        asking.models()


@pytest.mark.parametrize("key", ["let-me-in\n", "", "hünter"])
def test_a_client_s_key_that_cannot_travel_is_refused_and_not_shown(key):
    with pytest.raises(IntclipError, match="api_key") as refusal:
        Client(api_key=key)
    assert not key or key.strip() not in str(refusal.value)
