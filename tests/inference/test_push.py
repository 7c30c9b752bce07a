"""A model is pushed to a hub and loaded unchanged, over HTTP; failures are one-line errors."""

import base64
import json
from dataclasses import replace

import numpy as np
import pytest

import intclip
from hub_server import COMMIT, Hub
from intclip.errors import BundleError, IntclipError, StorageError
from intclip.inference.bundle import load_bundle
from intclip.inference.loading import bundle_path as bundle_path_of
from intclip.inference.push import model_card, push
from intclip.labels.taxonomy import Taxonomy
from tiny_models import reference_probabilities, write_bundle

REPOSITORY = "me/tiny"


class WritableHub(Hub):
    """A hub that also accepts commits of small files, like the real one.

    Attributes:
        created: Bodies of the requests for a new repository.
        commits: Header of each commit.
        refusal: Status of every answer, if any.
    """

    def __init__(self, files):
        super().__init__(files)
        self.created, self.commits, self.refusal = [], [], None
        hub = self

        class Handler(self.server.RequestHandlerClass):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = b"".join(iter(self.chunk, b""))
                self.say(hub.take(self.path, body) if not hub.refusal else {"error": "no"})

            def do_GET(self):
                if self.path.startswith("/api/"):
                    self.say({"id": REPOSITORY, "sha": COMMIT, "siblings": []})
                else:
                    super().do_GET()

            def say(self, answer):
                content = json.dumps(answer).encode()
                self.send_response(hub.refusal or 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def chunk(self):
                content = self.rfile.read(int(self.rfile.readline(), 16))
                self.rfile.readline()
                return content

        self.server.RequestHandlerClass = Handler

    def take(self, path, body):
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return {"url": f"{self.address}/{REPOSITORY}"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            regular = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return {"files": [{"path": file["path"], **regular} for file in files]}
        assert path == f"/api/models/{REPOSITORY}/commit/main"
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.commits.append(value)
            else:
                self.files[f"{REPOSITORY}/{value['path']}"] = base64.b64decode(value["content"])
        return {
            "commitUrl": f"{self.address}/{REPOSITORY}/commit/{COMMIT}",
            "commitOid": COMMIT,
            "pullRequestUrl": None,
        }


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with WritableHub({}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("HF_TOKEN", "secret")
        yield server


def test_there_and_back(hub, bundle_path, photos, cli):
    code, out, err = cli("push", bundle_path, REPOSITORY, "--private", "--license", "cc-by-4.0")
    assert (code, err) == (0, "")
    assert out.strip().endswith(f"{REPOSITORY}/commit/{COMMIT}")
    assert hub.created[0]["name"] == "tiny"
    assert hub.created[0]["organization"] == "me"
    assert "private" in json.dumps(hub.created[0])
    assert [commit["summary"] for commit in hub.commits] == ["intclip on tiny"]
    assert sorted(hub.files) == [f"{REPOSITORY}/{name}" for name in ("README.md", "bundle.json", "weights.safetensors")]
    for name in ("bundle.json", "weights.safetensors"):
        assert hub.files[f"{REPOSITORY}/{name}"] == (bundle_path / name).read_bytes()
    model = intclip.load(f"hf://{REPOSITORY}", engine="torch", device="cpu")
    found = np.stack([prediction.probabilities for prediction in model.predict(photos)])
    np.testing.assert_allclose(found, reference_probabilities(photos), atol=1e-5, rtol=0)


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_damaged_copy_of_a_fetched_bundle_is_made_anew(hub, bundle_path, damage):
    push(bundle_path, REPOSITORY)
    copy = bundle_path_of(f"hf://{REPOSITORY}") / "weights.safetensors"
    whole = copy.read_bytes()
    if damage == "gone":
        copy.unlink()
    else:
        copy.write_bytes(whole[:-1] + b"x")
    assert bundle_path_of(f"hf://{REPOSITORY}") == copy.parent
    assert copy.read_bytes() == whole


@pytest.mark.parametrize("spec", ["hf://me", "hf://", "hf://me/tiny@"])
def test_what_is_no_repository_is_told_as_it_is_written(spec):
    with pytest.raises(BundleError, match="hf://owner/name"):
        intclip.load(spec)


def test_the_card_tells_what_the_bundle_is(tmp_path):
    headline = {"macro_f1": 0.4567, "mAP": None}
    path = write_bundle(
        tmp_path / "b",
        metrics={"val": {"headline": headline}, "test": {"headline": {"macro_f1": 0.4, "mAP": 0.51}}},
        recipe={"data": {"name": "proxy-intents"}},
    )
    card = model_card(load_bundle(path), "me/tiny", license="mit")
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    for line in ("library_name: intclip", "license: mit", "pipeline_tag: image-classification", "- intclip"):
        assert line in front
    assert 'intclip.load("hf://me/tiny")' in body
    assert "| Split (%) | Macro F1 | mAP |" in body
    assert "| val | 45.7 | – |" in body
    assert "| test | 40.0 | 51.0 |" in body
    assert "| class 1 | 0.50 |" in body
    assert "proxy-intents" in body
    renamed = load_bundle(path)
    named = replace(
        renamed,
        taxonomy=Taxonomy.from_dict(json.loads(json.dumps(renamed.taxonomy.to_dict()).replace("class 1", "a|b"))),
    )
    assert "| a\\|b | 0.50 |" in model_card(named, "me/tiny")
    plain = model_card(load_bundle(write_bundle(tmp_path / "c", metrics=None, recipe=None)), "me/tiny")
    assert "license" not in plain
    assert "## Figures" not in plain


def test_a_backbone_of_one_s_own_is_named(tmp_path):
    weights = tmp_path / "mine.safetensors"
    weights.write_bytes(b"x")
    card = model_card(load_bundle(write_bundle(tmp_path / "b", checkpoint=weights)), "me/tiny")
    assert "pass the file mine.safetensors as `checkpoint`" in card


def test_offline_and_unreachable_are_one_line(hub, bundle_path, monkeypatch):
    hub.refusal = 401
    with pytest.raises(StorageError, match="hf auth login"):
        push(bundle_path, REPOSITORY)
    with pytest.raises(StorageError, match=REPOSITORY) as caught:
        push(bundle_path, REPOSITORY, endpoint="http://127.0.0.1:9")
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(StorageError, match="HF_HUB_OFFLINE"):
        push(bundle_path, REPOSITORY)
    assert hub.files == {}


def test_what_is_no_model_or_no_repository(hub, bundle_path, tmp_path):
    with pytest.raises(IntclipError, match="owner/name"):
        push(bundle_path, "tiny")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=str(tmp_path / "empty")):
        push(tmp_path / "empty", REPOSITORY)
    with pytest.raises(IntclipError, match="lite"):
        push("lite", REPOSITORY)
    assert hub.created == []
