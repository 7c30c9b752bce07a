"""Loading by name: from a file, a folder of weights, or a local hub."""

import hashlib
import json
import os
import re
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
from safetensors.torch import save
from seeded import SMALL_RESNET, SMALL_VIT, pixels

from hub_server import COMMIT, Hub
from intclip.backbones import backbone_names, load_backbone, registry
from intclip.backbones.architecture import ARCHITECTURES
from intclip.backbones.checkpoints import openai_state_dict
from intclip.backbones.clip import random_clip
from intclip.backbones.hub import HubFile, fetch, fetch_repository, parse
from intclip.errors import CheckpointError, MissingExtraError

CONTENT = bytes(range(256)) * 4096  # a mebibyte
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILE = HubFile("owner/name", "model.safetensors")


def weights(backbone):
    return save({key: tensor.contiguous() for key, tensor in openai_state_dict(backbone).items()})


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "INTCLIP_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(monkeypatch):
    with Hub({"owner/name/model.safetensors": CONTENT}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        yield hub


class TestFetch:
    """One file: download, cache, resume, verify."""

    def test_download_then_cache_then_offline(self, server, monkeypatch):
        path = fetch(replace(FILE, revision=COMMIT))
        assert path.read_bytes() == CONTENT
        asked = len(server.requests)
        assert fetch(replace(FILE, revision=COMMIT)) == path
        assert len(server.requests) == asked, "a pinned file in the cache needs no request"
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert fetch(replace(FILE, revision=COMMIT)) == path
        assert len(server.requests) == asked

    def test_the_main_branch_stays_as_it_was_at_the_first_download(self, server):
        path = fetch(FILE)
        server.files["owner/name/model.safetensors"] = b"pushed later"
        assert fetch(FILE) == path
        assert path.read_bytes() == CONTENT

    def test_endpoint_as_an_argument(self, server, monkeypatch):
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        assert fetch(FILE, endpoint=server.address).read_bytes() == CONTENT

    def test_a_broken_connection_goes_on_where_it_broke(self, server, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50_000)
        server.break_after = 300_000
        assert fetch(FILE).read_bytes() == CONTENT
        assert [asked for _, _, asked in server.requests if asked] == ["bytes=300000-"]

    def test_a_killed_process_is_gone_on_with(self, server, tmp_path):
        server.stall_after = 300_000
        script = """
            import sys, huggingface_hub.constants as constants
            constants.DOWNLOAD_CHUNK_SIZE = 50_000
            import intclip.backbones.registry
            assert "huggingface_hub.file_download" not in sys.modules, "the hub is imported when it is needed"
            from intclip.backbones.hub import HubFile, fetch
            fetch(HubFile("owner/name", "model.safetensors"))
        """
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", textwrap.dedent(script)]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as child:
            deadline = time.monotonic() + 60
            while child.poll() is None and time.monotonic() < deadline and not partial_size(tmp_path) >= 250_000:
                time.sleep(0.02)
            child.kill()
            printed = child.stderr.read()
        left = partial_size(tmp_path)
        assert left >= 250_000, printed
        assert "%" not in printed, "no progress bar where there is no terminal"
        assert fetch(FILE).read_bytes() == CONTENT
        assert [asked for _, _, asked in server.requests if asked] == [f"bytes={left}-"]
        assert partial_size(tmp_path) == 0

    def test_the_first_use_is_recorded_and_later_ones_compared(self, server):
        path = fetch(FILE)
        record = path.with_name("model.safetensors.sha256")
        assert record.read_text() == DIGEST + "\n"
        path.resolve().write_bytes(b"replaced")
        with pytest.raises(CheckpointError, match=DIGEST):
            fetch(FILE)

    def test_what_the_hub_announces_is_compared_at_the_first_use(self, server):
        server.corrupt = True
        with pytest.raises(CheckpointError, match=DIGEST):
            fetch(FILE)

    def test_a_pin_is_compared_and_nothing_recorded(self, server):
        path = fetch(replace(FILE, sha256=DIGEST))
        assert not path.with_name("model.safetensors.sha256").exists()
        with pytest.raises(CheckpointError, match="0" * 64):
            fetch(replace(FILE, sha256="0" * 64))

    @pytest.mark.parametrize(
        ("file", "reason"),
        [
            (replace(FILE, filename="other.bin"), r"other\.bin"),
            (replace(FILE, revision="v2"), r"\bv2\b"),
            (replace(FILE, repo="nobody/nothing"), "nobody/nothing"),
            (replace(FILE, repo="a/b/c"), "Repo id must"),
        ],
    )
    def test_what_is_not_there(self, server, file, reason):
        with pytest.raises(CheckpointError, match=reason) as caught:
            fetch(file)
        assert_says_how_to_go_on(caught.value)

    def test_no_network(self):
        with pytest.raises(CheckpointError, match="Connection refused") as caught:
            fetch(FILE, endpoint="http://127.0.0.1:9")
        assert_says_how_to_go_on(caught.value)

    def test_offline_mode(self, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(CheckpointError, match="offline") as caught:
            load_backbone("RN101")
        assert "timm/resnet101_clip.openai" in str(caught.value)
        assert_says_how_to_go_on(caught.value)

    def test_without_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'intclip\[hub\]'"):
            load_backbone("RN101")


def partial_size(folder):
    return sum(path.stat().st_size for path in folder.glob("cache/models--*/blobs/*.part"))


def assert_says_how_to_go_on(error):
    message = str(error)
    assert "pass its path as checkpoint, or put it into the folder in INTCLIP_WEIGHTS" in message
    assert "\n" not in message


class TestRepositories:
    """Any CLIP on the hub, with its configuration."""

    def test_spec(self):
        assert parse("hf:owner/na.me-1") == ("owner/na.me-1", None)
        assert parse("hf:owner/name@abc") == ("owner/name", "abc")
        for wrong in ("hf:name", "hf:a/b/c", "hf:", "hf:a b/c"):
            with pytest.raises(CheckpointError, match="hf:owner/name"):
                parse(wrong)

    def test_activation_comes_from_the_configuration(self, server):
        exact = random_clip(replace(SMALL_VIT, activation="gelu"), seed=9)
        config = {"model_cfg": {"vision_cfg": {"width": 128}, "text_cfg": {"heads": 1}}}
        server.files |= {
            "laion/small/open_clip_config.json": json.dumps(config).encode(),
            "laion/small/open_clip_model.safetensors": weights(exact),
        }
        loaded = load_backbone(f"hf:laion/small@{COMMIT}")
        assert loaded.architecture == exact.architecture
        assert loaded.name == f"hf:laion/small@{COMMIT}"
        assert torch.equal(loaded.encode_image(pixels(SMALL_VIT)), exact.encode_image(pixels(SMALL_VIT)))

    def test_what_is_cached_loads_without_a_network_and_is_asked_for_once(self, server, monkeypatch):
        server.files["laion/small/model.safetensors"] = weights(random_clip(SMALL_VIT, seed=9))
        spec = f"hf:laion/small@{COMMIT}"
        first = load_backbone(spec)
        asked = len(server.requests)
        assert load_backbone(spec).identity() == first.identity()
        assert len(server.requests) == asked, "what the repository lacks is remembered too"
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert load_backbone(spec).identity() == first.identity()
        assert load_backbone("CLIP", checkpoint=spec).identity() == first.identity()
        with pytest.raises(CheckpointError, match="laion/other"):
            load_backbone("hf:laion/other")

    def test_weights_that_another_program_cached_load_offline(self, server, monkeypatch):
        server.files["laion/small/model.safetensors"] = weights(random_clip(SMALL_VIT, seed=9))
        fetch(HubFile("laion/small", "model.safetensors"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert load_backbone("hf:laion/small").grid == (3, 3)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the tries of one file
        asked = Mock(wraps=huggingface_hub.hf_hub_download)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", asked)
        assert load_backbone("hf:laion/small").grid == (3, 3)
        assert asked.call_count == 1, "a hub that does not answer is asked for one file"

    def test_weights_in_parts(self, server):
        state = openai_state_dict(random_clip(SMALL_VIT, seed=9))
        index = {"weight_map": {key: f"model-{n % 2}.safetensors" for n, key in enumerate(state)}}
        for part in set(index["weight_map"].values()):
            mine = {key: state[key].contiguous() for key, name in index["weight_map"].items() if name == part}
            server.files[f"laion/parts/{part}"] = save(mine)
        server.files["laion/parts/model.safetensors.index.json"] = json.dumps(index).encode()
        loaded = load_backbone(f"hf:laion/parts@{COMMIT}")
        assert torch.equal(loaded.head.proj, state["visual.proj"])

    def test_a_repository_without_weights(self, server):
        server.files["owner/empty/README.md"] = b"nothing"
        with pytest.raises(CheckpointError, match=r"owner/empty.*open_clip_model\.safetensors"):
            fetch_repository("hf:owner/empty")


class TestByName:
    """`load_backbone`."""

    @pytest.fixture(autouse=True)
    def small_architectures(self, monkeypatch):
        monkeypatch.setitem(ARCHITECTURES, "RN50", SMALL_RESNET)
        monkeypatch.setitem(ARCHITECTURES, "ViT-B/32", SMALL_VIT)

    def test_a_file_a_folder_and_the_folder_of_weights(self, tmp_path, monkeypatch):
        original = random_clip(SMALL_VIT, seed=8)
        path = tmp_path / "mine.safetensors"
        path.write_bytes(weights(original))
        folder = tmp_path / "snapshot"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(path.read_bytes())
        shelf = tmp_path / "shelf"
        shelf.mkdir()
        (shelf / "ViT-B-32.safetensors").write_bytes(path.read_bytes())
        expected = original.encode_image(pixels(SMALL_VIT))
        for checkpoint in (path, str(path), folder):
            loaded = load_backbone("ViT-B/32", checkpoint=checkpoint)
            assert loaded.name == "ViT-B/32"
            assert torch.equal(loaded.encode_image(pixels(SMALL_VIT)), expected)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert torch.equal(load_backbone("ViT-B/32", checkpoint="~/snapshot").logit_scale, original.logit_scale)
        monkeypatch.setenv("INTCLIP_WEIGHTS", str(shelf / "missing"))
        with pytest.raises(CheckpointError, match=r"INTCLIP_WEIGHTS.*missing"):
            load_backbone("ViT-B/32")
        monkeypatch.setenv("INTCLIP_WEIGHTS", str(shelf))
        assert torch.equal(load_backbone("ViT-B/32").encode_image(pixels(SMALL_VIT)), expected)

    def test_the_hub(self, server, monkeypatch):
        original = random_clip(SMALL_RESNET, seed=8)
        server.files["timm/small/open_clip_model.safetensors"] = weights(original)
        monkeypatch.setitem(registry.HUB_FILES, "RN50", HubFile("timm/small", "open_clip_model.safetensors"))
        loaded = load_backbone("RN50", split="released")
        assert loaded.split == "released"
        assert torch.equal(loaded.encode_image(pixels(SMALL_RESNET)), original.encode_image(pixels(SMALL_RESNET)))

    def test_another_architecture_is_refused(self, tmp_path):
        path = tmp_path / "RN50.safetensors"
        path.write_bytes(weights(random_clip(SMALL_VIT)))
        with pytest.raises(CheckpointError, match=r"RN50\.safetensors.*ViT-B/32.*RN50"):
            load_backbone("RN50", checkpoint=path)

    def test_a_folder_as_the_name_is_told_where_it_belongs(self, tmp_path):
        with pytest.raises(CheckpointError, match=f"{tmp_path}.*CLIP.*checkpoint"):
            load_backbone(str(tmp_path))

    def test_unknown_names(self):
        with pytest.raises(CheckpointError, match=r"'ViT-B32'.*did you mean ViT-B/32.*lite, lite2, lite\+lite2"):
            load_backbone("ViT-B32")
        with pytest.raises(CheckpointError, match=r"'papers'.*paper, released"):
            load_backbone("lite", split="papers")

    def test_lite_takes_no_checkpoint(self):
        with pytest.raises(CheckpointError, match=r"^lite .*checkpoint"):
            load_backbone("lite", checkpoint="x.pt")

    def test_names(self):
        assert backbone_names() == [
            "lite", "lite2", "lite+lite2", "RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32",
            "ViT-B/16", "ViT-L/14", "ViT-L/14@336px", "ViT-H/14", "MetaCLIP2-H/14",
            "SigLIP-B/16", "SigLIP-L/16@256px", "SigLIP-SO400M/14@384px",
            "SigLIP2-B/32@256px", "SigLIP2-B/16", "SigLIP2-L/16@256px", "SigLIP2-SO400M/14",
            "EVA02-B/16", "EVA02-L/14", "PE-B/16", "PE-L/14@336px",
            "MobileCLIP2-S0", "MobileCLIP2-S2", "MobileCLIP2-B", "TIPSv2-B/14",
        ]  # fmt: skip
        assert registry.HUB_FILES.keys() == ARCHITECTURES.keys()


def test_pins_are_whole():
    for name, file in registry.HUB_FILES.items():
        assert file.revision is None or re.fullmatch(r"[0-9a-f]{40}", file.revision), name
        assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256), name


def test_the_documents_tell_the_pins():
    text = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text("utf-8")
    for name, file in registry.HUB_FILES.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` | `"))
        assert file.repo in row
        assert file.filename in row
        assert (file.sha256 or "recorded")[:8] in row
        assert (file.revision or "main")[:8] in row


def test_random_weights_have_a_name_that_loads_them_again():
    first, second = (load_backbone("RN50@random", split="released") for _ in range(2))
    assert first.name == "RN50@random"
    assert torch.equal(first.head.regions(torch.ones(1, 2048, 7, 7)), second.head.regions(torch.ones(1, 2048, 7, 7)))
    with pytest.raises(CheckpointError, match="'RN5'"):
        load_backbone("RN5@random")
