import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from intclip.errors import CheckpointError, RecipeError
from intclip.methods.base import ParameterGroup
from intclip.training.checkpoint import NEWEST, PREVIOUS, load_checkpoint, read_tensors, save_checkpoint, write_tensors
from intclip.training.distributed import connect, pick_device
from intclip.training.ema import MovingAverage
from intclip.training.logbook import Logbook, flat_numbers, read_log
from intclip.training.mixup import mixed
from intclip.training.optimizer import build_optimizer, flatten_optimizer, restore_optimizer, set_rates
from intclip.training.plan import epoch_order, global_batches, micro_batches, share, steps_per_epoch
from intclip.training.recipe import load_recipe
from intclip.training.schedule import learning_rate


def rates(name: str, unit: str, *, epochs: int = 10, per_epoch: int = 4, warmup: float = 1, rate: float = 0.2) -> list:
    return [
        learning_rate(
            name,
            unit,
            rate=rate,
            warmup_rate=1e-5,
            step=step,
            steps_per_epoch=per_epoch,
            epochs=epochs,
            warmup_epochs=warmup,
        )
        for step in range(epochs * per_epoch)
    ]


def optimizer(lr: float) -> torch.optim.SGD:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


def test_cosine_by_epoch_is_dassls_constant_warm_up_then_torchs_cosine():
    sgd = optimizer(0.2)
    cosine = CosineAnnealingLR(sgd, T_max=10)
    expected = [1e-5] * 4
    for _ in range(9):
        expected += [cosine.get_last_lr()[0]] * 4
        sgd.step()
        cosine.step()
    np.testing.assert_allclose(rates("cosine", "epoch"), expected, rtol=1e-9)


def test_cosine_by_step_rises_linearly_and_reaches_zero():
    got = rates("cosine", "step")
    np.testing.assert_allclose(got[:4], [1e-5 + (0.2 - 1e-5) * step / 4 for step in range(4)])
    np.testing.assert_allclose(got[4:], [0.1 * (1 + math.cos(math.pi * step / 36)) for step in range(36)], atol=1e-12)
    assert rates("cosine", "step", warmup=0)[0] == 0.2


def test_onecycle_is_torchs():
    sgd = optimizer(0.2)
    torchs = OneCycleLR(sgd, max_lr=0.2, total_steps=40, pct_start=0.2)
    expected = []
    for _ in range(40):
        expected.append(torchs.get_last_lr()[0])
        sgd.step()
        torchs.step() if len(expected) < 40 else None
    np.testing.assert_allclose(rates("onecycle", "step", warmup=2), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adam])
@pytest.mark.parametrize("epochs", [1, 10])
def test_onecycle_cycles_rate_and_momentum_as_torch_does(kind, epochs):
    """Compared with torch's scheduler, with default settings except the share of the rise."""
    recipe = load_recipe("tiny", [f"schedule={{name: onecycle, epochs: {epochs}, warmup_epochs: {0.3 * epochs}}}"])
    options = {"lr": 0.2} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
    theirs, ours = (kind([nn.Parameter(torch.zeros(2))], **options) for _ in range(2))
    ours.param_groups[0]["multiplier"] = 0.2 / recipe.optim.lr
    torchs = OneCycleLR(theirs, max_lr=0.2, total_steps=4 * epochs, pct_start=0.3)
    for step in range(4 * epochs):
        set_rates(ours, recipe.optim, recipe.schedule, step, 4)
        for key in ("lr", "momentum" if "momentum" in options else "betas"):
            assert ours.param_groups[0][key] == pytest.approx(theirs.param_groups[0][key], rel=1e-6)
        theirs.step()
        torchs.step() if step < 4 * epochs - 1 else None


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_vectors_are_decayed_only_where_the_recipe_says_so(name):
    groups = [ParameterGroup("a", [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(3))], lr_multiplier=0.5)]
    for decays in (True, False):
        changes = [f"optim.name={name}", "optim.weight_decay=0.1", f"optim.decay_vectors={str(decays).lower()}"]
        built = build_optimizer(load_recipe("tiny", changes).optim, groups)
        decay = {tuple(p.shape): group["weight_decay"] for group in built.param_groups for p in group["params"]}
        assert decay == {(2, 2): 0.1, (3,): 0.1 if decays else 0}
        assert {group["multiplier"] for group in built.param_groups} == {0.5}
        assert {group["name"] for group in built.param_groups} == {"a"}


def test_constant_stays_after_warm_up():
    assert set(rates("constant", "step")[4:]) == {0.2}
    assert rates("constant", "epoch")[:5] == [1e-5] * 4 + [0.2]


def test_moving_average_in_closed_form():
    states = [torch.tensor([float(value)]) for value in (1, 4, 2, 8)]
    average = MovingAverage({"w": states[0], "n": torch.tensor(0)}, 0.75)
    for number, state in enumerate(states[1:], 1):
        average.update({"w": state, "n": torch.tensor(number)}, 100)
    expected = 0.75**3 * 1 + 0.25 * (0.75**2 * 4 + 0.75 * 2 + 8)
    torch.testing.assert_close(average.state["w"], torch.tensor([expected]))
    assert average.state["n"] == 3
    other = MovingAverage({"w": torch.zeros(1), "n": torch.tensor(0)}, 0.75)
    other.load(average.state)
    assert torch.equal(other.state["w"], average.state["w"])
    other.update({"w": torch.ones(1), "n": torch.tensor(0)}, 0)  # the first step: the average is nearly the new weights
    torch.testing.assert_close(other.state["w"], 0.1 * average.state["w"] + 0.9)


def test_mixup_blends_features_and_targets_by_the_same_share_and_pairs():
    features = torch.eye(4)
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, float("nan")], [0.0, 0.0]])
    torch.manual_seed(3)
    views, blended = mixed([{"pooled": features, "trunk": features.view(4, 4, 1, 1)}], targets, 0.7)
    weights = views[0]["pooled"]
    torch.testing.assert_close(views[0]["trunk"].flatten(1), weights)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(4))
    torch.testing.assert_close(blended[:, 0], weights @ targets[:, 0])
    assert torch.equal(blended[:, 1].isnan(), weights[:, 2] > 0)
    untouched = mixed([{"pooled": features}], targets, 0)
    assert untouched[0][0]["pooled"] is features
    assert untouched[1] is targets


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_every_photo_of_an_epoch_once(world):
    order = epoch_order(23, seed=5, epoch=2)
    assert sorted(order) == list(range(23))
    assert not np.array_equal(order, epoch_order(23, seed=5, epoch=3))
    np.testing.assert_array_equal(order, epoch_order(23, seed=5, epoch=2))
    batches = list(global_batches(order, 8))
    assert [len(batch) for batch in batches] == [8, 8, 7]
    assert steps_per_epoch(23, 8) == 3
    for batch in batches:
        parts = [share(batch, rank, world) for rank in range(world)]
        np.testing.assert_array_equal(np.concatenate(parts), batch)
        for part in parts:
            np.testing.assert_array_equal(np.concatenate(micro_batches(part, 3)), part)
    rest = list(global_batches(order, 8, start=1))
    np.testing.assert_array_equal(np.concatenate(rest), order[8:])


def test_micro_batches_are_never_empty():
    assert [len(piece) for piece in micro_batches(np.arange(2), 4)] == [1, 1]
    assert micro_batches(np.arange(0), 4) == []


def test_checkpoint_keeps_tensors_of_every_kind(tmp_path):
    tensors = {
        "scalar": torch.tensor(3),
        "half": torch.randn(2, 3).half(),
        "brain": torch.randn(4).bfloat16(),
        "empty": torch.zeros(0, 5),
        "transposed": torch.randn(3, 2).T,
    }
    tensors["shared"] = tensors["half"][0]
    save_checkpoint(tmp_path, tensors, {"value": 0.1 + 0.2, "nothing": None})
    read, meta = load_checkpoint(tmp_path)
    assert meta == {"value": 0.1 + 0.2, "nothing": None}
    assert read.keys() == tensors.keys()
    for key, value in tensors.items():
        assert torch.equal(read[key], value)
        assert read[key].dtype == value.dtype


def test_no_checkpoint_is_none(tmp_path):
    assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text", "no sum", "no meta", "deep"])
def test_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage):
    for number in range(3):
        save_checkpoint(tmp_path, {"w": torch.full((100,), float(number))}, {"number": number})
    content = (tmp_path / NEWEST).read_bytes()
    broken = {
        "truncated": content[:-50],
        "flipped": content[:-9] + bytes([content[-9] ^ 4]) + content[-8:],
        "empty": b"",
        "text": b"no tensors here",
        "no sum": content.replace(b"sha256", b"shi256"),
        "no meta": content.replace(b"meta\\", b"mete\\"),
        "deep": save({"w": torch.ones(1)}, metadata={"intclip": "[" * 100_000}),
    }
    (tmp_path / NEWEST).write_bytes(broken[damage])
    tensors, meta = load_checkpoint(tmp_path)
    assert meta == {"number": 1}
    assert torch.equal(tensors["w"], torch.ones(100))
    (tmp_path / PREVIOUS).unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors"):
        load_checkpoint(tmp_path)


def test_checkpoint_of_another_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("intclip.training.checkpoint.VERSION", 99)
    write_tensors(tmp_path / "x.safetensors", {"w": torch.zeros(1)}, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        read_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizer_goes_on_from_its_flat_state(name):
    def fresh() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        groups = [ParameterGroup("weight", [layer.weight], 0.1), ParameterGroup("bias", [layer.bias], 1.0, 0.0)]
        return layer, build_optimizer(load_recipe("tiny", [f"optim.name={name}"]).optim, groups)

    def steps(layer: torch.nn.Linear, optim: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            optim.zero_grad()
            layer(torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
            optim.step()

    whole, whole_optim = fresh()
    steps(whole, whole_optim, range(6))
    first, first_optim = fresh()
    steps(first, first_optim, range(3))
    tensors, meta = flatten_optimizer(first_optim)
    second, second_optim = fresh()
    second.load_state_dict(first.state_dict())
    restore_optimizer(second_optim, tensors, json.loads(json.dumps(meta)))
    steps(second, second_optim, range(3, 6))
    assert torch.equal(second.weight, whole.weight)
    assert torch.equal(second.bias, whole.bias)


def test_optimizer_state_of_another_model_is_refused():
    optim = optimizer(0.1)
    with pytest.raises(CheckpointError, match=r"\(7\)"):
        restore_optimizer(optim, {"7.momentum_buffer": torch.zeros(1)}, {"state": {}, "param_groups": []})


def test_unknown_parameter_group_names_the_nearest():
    recipe = load_recipe("tiny", ["optim.multipliers={wieght: 0.1}"])
    with pytest.raises(RecipeError, match=r"'wieght'.*did you mean 'weight'"):
        build_optimizer(recipe.optim, [ParameterGroup("weight", [torch.nn.Parameter(torch.zeros(1))])])


def test_unknown_device_is_refused():
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(RecipeError, match="'warp:9'"):
        pick_device("warp:9")


def test_log_is_cut_back_to_a_position(tmp_path):
    with Logbook(tmp_path, active=True, total_steps=8) as log:
        for epoch in (1, 2):
            for step in (2, 3):
                log.write({"kind": "step", "epoch": epoch, "step": step + 4 * (epoch - 1)})
            log.write({"kind": "epoch", "epoch": epoch, "step": 4 * epoch})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "step", "epo')
    log.rewind(step=6, epoch=1)
    lines = read_log(tmp_path / "log.jsonl")
    assert [(line["kind"], line["step"]) for line in lines] == [("step", 2), ("step", 3), ("epoch", 4), ("step", 6)]


def test_tensorboard_gets_the_numbers(tmp_path):
    with Logbook(tmp_path, active=True, total_steps=8, tensorboard=True) as log:
        log.write({"kind": "epoch", "epoch": 1, "step": 4, "loss": {"asl": 0.5}, "best": True})
    assert list((tmp_path / "tensorboard").glob("events.*"))
    assert flat_numbers({"loss": {"asl": 0.5}, "best": True, "step": 4}) == {"loss.asl": 0.5, "step": 4.0}


@pytest.mark.parametrize("said", ["abc", "", "-2", "2"])
def test_wrong_variables_of_a_launcher_are_named(said, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", said)
    with pytest.raises(RecipeError, match="WORLD_SIZE"):
        connect("cpu")
