"""State dicts of three layouts and files of four kinds, loaded strictly; errors name the tensors."""

import json
import pickle
import zipfile
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from seeded import SMALL, SMALL_RESNET, SMALL_VIT, pixels
from torch import nn
from torch.testing import assert_close

from intclip.backbones import from_openai_state_dict
from intclip.backbones.architecture import ARCHITECTURES, infer_architecture
from intclip.backbones.checkpoint_files import read_state_dict
from intclip.backbones.checkpoints import openai_state_dict
from intclip.backbones.clip import ClipBackbone, random_clip
from intclip.backbones.layouts import to_openai_layout
from intclip.backbones.weight_files import find_weights
from intclip.errors import CheckpointError

ODD = [
    SMALL_RESNET,
    replace(SMALL_RESNET, vision_layers=(1, 1, 3, 2), vision_width=10, image_size=64, embed_dim=7),
    SMALL_VIT,
    replace(SMALL_VIT, vision_layers=1, vision_width=192, vision_mlp=100, text_mlp=33, text_layers=1, embed_dim=5),
]


@pytest.fixture(params=["resnet", "vit"])
def kind(request):
    return request.param


@pytest.fixture
def backbone(kind):
    return random_clip(SMALL[kind], seed=7)


@pytest.fixture
def state(backbone):
    return openai_state_dict(backbone)


def assert_same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert torch.equal(tensor, theirs[key]), key


@pytest.mark.parametrize("architecture", ODD)
@pytest.mark.parametrize("split", ["paper", "released"])
def test_any_size_goes_out_and_comes_back(architecture, split):
    first = random_clip(architecture, seed=1, split=split)
    exported = openai_state_dict(first)
    assert infer_architecture(exported) == architecture
    again = from_openai_state_dict(exported, split=split)
    assert_same(first, again)
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    x = pixels(architecture)
    assert torch.equal(first.encode_image(x), again.encode_image(x))
    other_split = from_openai_state_dict(exported, split="released" if split == "paper" else "paper")
    assert_close(other_split.encode_image(x), first.encode_image(x))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_named_architectures_are_told_by_their_shapes(name):
    with torch.device("meta"):
        backbone = ClipBackbone(ARCHITECTURES[name])
    found = infer_architecture(openai_state_dict(backbone))
    if name.startswith("MetaCLIP2"):  # CLIP's keys: only a configuration shows it
        found = replace(found, family="metaclip2")
    assert found.same_sizes(ARCHITECTURES[name])
    assert found.label == ARCHITECTURES[name].label == name


def test_keys_are_openais(state, kind):
    expected = {
        "resnet": ["visual.layer1.0.downsample.0.weight", "visual.attnpool.c_proj.bias", "visual.bn3.running_var"],
        "vit": ["visual.transformer.resblocks.3.attn.in_proj_weight", "visual.proj", "visual.ln_pre.bias"],
    }[kind]
    both = ["transformer.resblocks.0.mlp.c_fc.weight", "ln_final.bias", "text_projection", "token_embedding.weight"]
    assert set(expected + both + ["logit_scale", "positional_embedding"]) <= state.keys()
    assert not [key for key in state if key.startswith(("trunk", "deep", "head", "text."))]


def test_weights_are_copied(state):
    loaded = from_openai_state_dict(state)
    before = loaded.text.text_projection.clone()
    state["text_projection"].add_(1)
    assert torch.equal(loaded.text.text_projection, before)


def test_half_precision_becomes_single(state, backbone):
    halved = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    loaded = from_openai_state_dict(halved)
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.float32}
    for ours, original in zip(loaded.parameters(), backbone.parameters(), strict=True):
        assert torch.equal(ours, original.half().float())


def test_wrappers_and_what_is_no_weight(state, backbone):
    sizes = {"input_resolution": torch.tensor(96), "context_length": torch.tensor(16), "vocab_size": torch.tensor(64)}
    assert_same(from_openai_state_dict({**state, **sizes}), backbone)
    parallel = {f"module.{key}": tensor for key, tensor in state.items()}
    training = {"epoch": 3, "name": "run", "state_dict": parallel, "optimizer": {"lr": 0.1}}
    assert_same(from_openai_state_dict(training), backbone)
    text_keys = ("positional_embedding", "text_projection", "token_embedding.", "transformer.", "ln_final.")
    custom = {f"text.{key}" if key.startswith(text_keys) else key: tensor for key, tensor in state.items()}
    custom["text.attn_mask"] = torch.zeros(16, 16)
    assert_same(from_openai_state_dict(custom), backbone)


def test_missing_left_over_and_misshapen_tensors_are_named(state):
    broken = dict(state)
    del broken["ln_final.bias"]
    broken["extra.weight"] = torch.zeros(2)
    broken["text_projection"] = torch.zeros(8, 32)
    with pytest.raises(CheckpointError) as caught:
        from_openai_state_dict(broken)
    message = str(caught.value)
    assert "missing: ln_final.bias" in message
    assert "unexpected: extra.weight" in message
    assert "wrong shape: text_projection is (8, 32), not (" in message
    assert "\n" not in message


def test_long_lists_are_counted(state):
    with pytest.raises(CheckpointError, match=r"extra00, extra01, .*, extra11 .*8"):
        from_openai_state_dict({**state, **{f"extra{i:02}": torch.zeros(1) for i in range(20)}})


def test_an_image_tower_alone_is_refused(state):
    visual = {key: tensor for key, tensor in state.items() if key.startswith("visual.")}
    with pytest.raises(CheckpointError, match=r"ln_final\.weight"):
        from_openai_state_dict(visual)


def test_a_key_of_hugging_faces_that_has_no_partner_is_named():
    broken = {"text_model.encoder.layers.0.self_attn.q_proj.weight": torch.zeros(64, 64)}
    assert list(to_openai_layout(broken)) == ["transformer.resblocks.0.self_attn.q_proj.weight"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"fc.weight": torch.zeros(1)}, r"OpenAI, open_clip or Hugging Face.*fc\.weight"),
        ({}, "this one has nothing in it"),
        ({"visual.x": 3}, r"visual\.x"),
    ],
)
def test_other_dictionaries_are_refused(content, message):
    with pytest.raises(CheckpointError, match=message):
        from_openai_state_dict(content)


class TestFiles:
    """Every kind of file gives the same weights."""

    def test_safetensors_and_torch(self, tmp_path, state, backbone):
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "a.safetensors")
        torch.save(state, tmp_path / "a.pt")
        torch.save({"state_dict": state}, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
        for name in ("a.safetensors", "a.pt", "a.bin"):
            assert_same(from_openai_state_dict(read_state_dict(tmp_path / name)), backbone)

    def test_torchscript_archive_is_read_without_running_its_code(self, tmp_path, state, backbone, kind):
        path = tmp_path / "clip.pt"
        script = torch.jit.trace(as_module(state).half(), torch.zeros(1), check_trace=False)
        script.save(path)
        with zipfile.ZipFile(path) as archive:
            assert any(name.startswith("clip/code/") for name in archive.namelist())
            contents = {info.filename: archive.read(info) for info in archive.infolist()}
        loaded = read_state_dict(path)
        assert {key: tensor.dtype for key, tensor in loaded.items()}["ln_final.weight"] == torch.float16
        for ours, original in zip(from_openai_state_dict(loaded).parameters(), backbone.parameters(), strict=True):
            assert torch.equal(ours, original.half().float())
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, b"this is no program" if "/code/" in name else content)
        assert read_state_dict(path).keys() == loaded.keys()

    def test_a_torchscript_archive_with_a_foreign_class_is_refused(self, tmp_path):
        path = tmp_path / "evil.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("evil/data.pkl", pickle.dumps(Evil(), protocol=2))
            archive.writestr("evil/constants.pkl", pickle.dumps((), protocol=2))
            archive.writestr("evil/version", "3\n")
        with pytest.raises(CheckpointError, match=str(path)):
            read_state_dict(path)
        assert not Evil.ran

    def test_code_in_a_pickle_is_refused(self, tmp_path):
        torch.save({"weight": Evil()}, tmp_path / "evil.pt")
        with pytest.raises(CheckpointError, match=r"evil\.pt") as caught:
            read_state_dict(tmp_path / "evil.pt")
        assert not Evil.ran
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
    @pytest.mark.parametrize("content", [b"", b"not weights", bytes(100)])
    def test_damaged_files(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=str(tmp_path / name)):
            read_state_dict(tmp_path / name)

    @pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
    def test_truncated_files(self, tmp_path, name, state):
        path = tmp_path / name
        if name.endswith(".pt"):
            torch.save(state, path)
        else:
            save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        with pytest.raises(CheckpointError, match=str(path)):
            read_state_dict(path)

    def test_a_list_is_no_state_dict(self, tmp_path):
        torch.save([torch.zeros(1)], tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=r"a\.pt"):
            read_state_dict(tmp_path / "a.pt")

    def test_weights_in_parts(self, tmp_path, state, backbone):
        keys = list(state)
        parts = {"one.safetensors": keys[::2], "two.safetensors": keys[1::2]}
        for name, held in parts.items():
            save_file({key: state[key].contiguous() for key in held}, tmp_path / name)
        index = tmp_path / "model.safetensors.index.json"
        where = {key: name for name, held in parts.items() for key in held}
        index.write_text(json.dumps({"weight_map": where}))
        assert find_weights(tmp_path) == index
        assert_same(from_openai_state_dict(read_state_dict(index)), backbone)
        (tmp_path / "two.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"two\.safetensors"):
            read_state_dict(index)
        save_file({keys[1]: state[keys[1]].contiguous()}, tmp_path / "two.safetensors")
        with pytest.raises(CheckpointError, match=f"index.json .*{sorted(keys[3::2])[0]}"):
            read_state_dict(index)
        for content in ("{", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../b"}}'):
            index.write_text(content)
            with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
                read_state_dict(index)

    def test_folders(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"open_clip_model\.safetensors"):
            find_weights(tmp_path)
        with pytest.raises(CheckpointError, match=r"missing\.pt"):
            find_weights(tmp_path / "missing.pt")
        (tmp_path / "model.safetensors").touch()
        (tmp_path / "open_clip_model.safetensors").touch()
        assert find_weights(tmp_path).name == "open_clip_model.safetensors"
        assert find_weights(tmp_path / "model.safetensors").name == "model.safetensors"


class Evil:
    """Runs code when unpickled unsafely."""

    ran = False

    def __reduce__(self):
        return (setattr, (Evil, "ran", True))


class Node(nn.Module):
    """A module tree built from a state dict's keys, as a TorchScript archive needs one."""

    def forward(self, x):
        return x + 1


def as_module(state):
    root = Node()
    for key, tensor in state.items():
        *path, leaf = key.split(".")
        node = root
        for part in path:
            if part not in node._modules:
                node.add_module(part, Node())
            node = node._modules[part]
        if tensor.is_floating_point() and "running" not in leaf:
            node.register_parameter(leaf, nn.Parameter(tensor.clone()))
        else:
            node.register_buffer(leaf, tensor.clone())
    return root
