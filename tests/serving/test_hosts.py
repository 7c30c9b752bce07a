"""Accepted host names, so that an external page cannot reach a local service by its own name (DNS rebinding)."""

import http.client
import json

import pytest
from server_process import serving
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from watched import WatchedPredictor, photo

from intclip.serving.api import create_api
from intclip.serving.app.routes import create_app
from intclip.serving.hosts import LOCAL, allowed_hosts
from intclip.serving.settings import Settings


def test_on_loopback_without_a_key_only_local_names_and_those_given():
    assert set(allowed_hosts("127.0.0.2", "127.0.0.2", guarded=False)) == {*LOCAL, "127.0.0.2"}
    assert "photos.example" in allowed_hosts("localhost", "127.0.0.1", guarded=False, extra=["Photos.example"])
    assert allowed_hosts("localhost", "127.0.0.1", guarded=True) == ()
    assert allowed_hosts("0.0.0.0", "0.0.0.0", guarded=False) == ()
    assert allowed_hosts("::", "::", guarded=False, extra=["a.example"]) == ("a.example",)


LOCAL_HEADERS = ["localhost", "LOCALHOST:8000", "127.0.0.1:80", "[::1]", "[::1]:7860", "given.example:1"]
OTHER_HEADERS = [
    "evil.com",
    "evil.com:8000",
    "localhost.evil.com",
    "127.0.0.1.evil.com",
    "localhost@evil.com",
    "evil.com@localhost",
    "localhost/evil",
    "localhost:evil",
    "[::2]",
    "[::1",
    "",
]


@pytest.fixture(scope="module")
def named():
    settings = Settings(hosts=allowed_hosts("localhost", "127.0.0.1", guarded=False, extra=["given.example"]))
    with TestClient(create_api({"a": WatchedPredictor()}, settings)) as client:
        yield client


@pytest.mark.parametrize("path", ["/healthz", "/v1/models", "/docs", "/nothing"])
@pytest.mark.parametrize("host", OTHER_HEADERS)
def test_other_names_are_refused_on_every_route(named, path, host):
    answer = named.get(path, headers={"Host": host})
    assert answer.status_code == 421
    assert "--allow-host" in answer.json()["detail"]
    assert "evil" not in answer.text


@pytest.mark.parametrize("host", LOCAL_HEADERS)
def test_local_names_are_answered(named, host):
    assert named.get("/healthz", headers={"Host": host}).status_code == 200
    assert named.post("/v1/predict", files={"images": photo(255)}, headers={"Host": host}).status_code == 200


def test_websockets_are_refused_too(named):
    with pytest.raises(WebSocketDisconnect) as refused, named.websocket_connect("/", headers={"Host": "evil.com"}):
        pass
    assert refused.value.code == 1008


@pytest.mark.parametrize("command", [["serve"], ["serve", "--page"]])
def test_the_commands_refuse_them(command, tmp_path, monkeypatch):
    """The real commands on a real socket, with names from --host and --allow-host."""
    monkeypatch.setenv("INTCLIP_CACHE", "off")
    code = f"""
import sys
sys.path.insert(0, {str(__file__.rpartition("/")[0])!r})
from watched import WatchedPredictor
import intclip.inference.loading as loading
loading.load = lambda *_, **__: WatchedPredictor()
from intclip.cli.main import main
sys.argv = ["intclip", *{json.dumps(command)}, "--port", "0", "--allow-host", "photos.example"]
main()
"""
    with serving(tmp_path, "-c", code) as (_, url, _):
        pages = ["/v1/models"] if command == ["serve"] else ["/app/"]
        for page in pages:
            for host, status in (("evil.com", 421), ("photos.example", 200), ("localhost", 200)):
                assert _get(url, page, host) == status, (page, host)


def _get(url: str, path: str, host: str) -> int:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.request("GET", path, headers={"Host": host})
    return connection.getresponse().status


def test_the_app_is_named_too():
    with TestClient(create_app({"a": WatchedPredictor()}, settings=Settings(hosts=LOCAL))) as client:
        for path in ("/", "/app/", "/app/app.js", "/app/facts", "/app/photos/0", "/app/training", "/favicon.ico"):
            assert client.get(path, headers={"Host": "evil.com"}).status_code == 421
        assert client.get("/", headers={"Host": "localhost:7860"}).status_code == 200


def test_probes_answer_head(named):
    for path in ("/healthz", "/readyz"):
        answer = named.head(path, headers={"Host": "localhost"})
        assert (answer.status_code, answer.content) == (200, b"")
        assert "head" not in named.get("/openapi.json", headers={"Host": "localhost"}).json()["paths"][path]


def test_pages_of_allowed_origins_read_when_to_come_again():
    origin = "https://example.org"
    with TestClient(create_api({"a": WatchedPredictor()}, Settings(cors_origins=(origin,)))) as client:
        answer = client.get("/healthz", headers={"Origin": origin})
    assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]
