"""The three diagnostic commands of MCCL on a tiny backbone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fakes import TinyBackbone, tiny_taxonomy
from intclip.backbones import registry
from intclip.data.sample import Dataset, Sample
from intclip.errors import IntclipError
from intclip.evidence.label_attention import LabelAttention, contrasting, label_attention, overlap
from intclip.evidence.prototypes import choose_prototypes, nearest_patches
from intclip.inference.bundle import load_bundle, save_bundle
from intclip.methods.registry import build_method
from intclip.studies import ablation
from intclip.studies.momentum import unsteadiness
from intclip.training import train

OPTIONS = {
    "train": "none",
    "stages": [2, 3],
    "pool": {"prototypes": 10, "patches": 30},
    "decoder": {"dim": 8, "heads": 2, "feedforward": 12},
}


@pytest.fixture(autouse=True)
def tiny_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILDERS, "tiny", lambda name, checkpoint, split: TinyBackbone())
    monkeypatch.setenv("INTCLIP_CACHE", "off")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Photos with a different colour in each quarter."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    paths = []
    for i in range(12):
        quarters = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
        paths.append(folder / f"{i:02d}.png")
        Image.fromarray(quarters).resize((40, 30), Image.Resampling.NEAREST).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def bundle(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    backbone = TinyBackbone()
    method = build_method("mccl", backbone, tiny_taxonomy(), OPTIONS)
    pixels = backbone.pixels([Image.open(path) for path in photos])
    targets = (torch.arange(12)[:, None] % 6 >= torch.arange(5)).float()
    method.prepare([(backbone.features(pixels, method.needs), targets)])
    path = tmp_path_factory.mktemp("bundles") / "mccl"
    save_bundle(path, method, thresholds=0.5)
    return path


def test_nearest_patches_equal_a_search_over_everything(bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    method = load_bundle(bundle).build_method()
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no photo")
    found = nearest_patches(method, [*photos[:5], damaged, *photos[5:]], {2: [7, 1], 3: [0]}, count=4, batch_size=5)
    assert [(p.stage, p.index) for p in found] == [(2, 7), (2, 1), (3, 0)]
    pixels = method.backbone.pixels([Image.open(path) for path in photos])
    patches = method.patches(method.backbone.features(pixels, method.needs))
    for prototype in found:
        pool = method.stages[prototype.stage].pool
        direction = pool.prototypes[prototype.index] / pool.prototypes[prototype.index].norm()
        cosines = patches[prototype.stage] @ direction
        best = cosines.flatten(1).max(dim=1)
        order = best.values.argsort(descending=True)[:4]
        np.testing.assert_allclose([p.cosine for p in prototype.patches], best.values[order].tolist(), atol=1e-5)
        assert [p.photo for p in prototype.patches] == [photos[i] for i in order]
        side = cosines.shape[1]
        row, column = divmod(int(best.indices[order[0]]), side)
        first = prototype.patches[0]
        assert (first.row, first.column) == ((row + 0.5) / side, (column + 0.5) / side)
        assert prototype.label == method.taxonomy.names[int(pool.owner[prototype.index])]


def test_prototypes_are_chosen_by_stage_label_and_seed(bundle: Path) -> None:
    method = load_bundle(bundle).build_method()
    assert choose_prototypes(method, count=99) == {3: list(range(10))}
    assert choose_prototypes(method, count=3, seed=1) == choose_prototypes(method, count=3, seed=1)
    chosen = choose_prototypes(method, stage=2, label="class 4")[2]
    assert chosen
    assert all(int(method.stages[2].pool.owner[index]) == 4 for index in chosen)
    with pytest.raises(IntclipError, match=r"2, 3.*1"):
        choose_prototypes(method, stage=1)


def test_attention_is_the_decoders_and_contrast_is_least_overlap(bundle: Path, photos: list[Path]) -> None:
    method = load_bundle(bundle).build_method()
    looks = label_attention(method, photos[0])
    for look in looks:
        assert look.attention.sum() == pytest.approx(1, abs=1e-5)
        assert look.attention.min() >= 0
        assert overlap(look, look) == pytest.approx(1, abs=1e-5)
    left, right = np.array([[1.0, 0.0]], np.float32), np.array([[0.0, 1.0]], np.float32)
    made = [
        LabelAttention("a", 0.9, left),
        LabelAttention("b", 0.8, (left + right) / 2),
        LabelAttention("c", 0.7, right),
        LabelAttention("d", 0.1, right),
    ]
    assert [look.label for look in contrasting(made)] == ["a", "c"]
    assert [look.label for look in contrasting(made, top=2)] == ["a", "b"]
    assert overlap(made[0], made[1]) == pytest.approx(0.5)
    assert contrasting(made[:1]) == made[:1]


def test_prototypes_command_draws_and_tells(bundle: Path, photos: list[Path], tmp_path: Path, cli) -> None:
    picture = tmp_path / "prototypes.png"
    arguments = ("mccl", "prototypes", bundle, photos[0].parent, "--out", picture, "--count", 3, "--nearest", 4)
    code, out, _ = cli(*arguments)
    assert code == 0
    assert "3 prototypes, the nearest patches of 12 photos" in out
    assert "stage 2: 10 of 10 prototypes in effective use" in out
    width, height = Image.open(picture).size
    assert width > 4 * 112
    assert height > 3 * 112
    assert len(np.unique(np.asarray(Image.open(picture)).reshape(-1, 3), axis=0)) > 50
    code, out, _ = cli(*arguments, "--label", "class 0", "--json")
    content = json.loads(out)
    assert {p["label"] for p in content["prototypes"]} == {"class 0"}
    assert content["in_use"] == {"2": pytest.approx(10), "3": pytest.approx(10)}


def test_attention_command_draws_and_tells(bundle: Path, photos: list[Path], tmp_path: Path, cli) -> None:
    picture = tmp_path / "attention.jpg"
    code, out, _ = cli("mccl", "attention", bundle, photos[1], "--out", picture)
    assert code == 0
    assert "of their attention" in out
    assert Image.open(picture).width > 3 * 400
    labels = ("--label", "class 1", "--label", "CLASS 3", "--label", "class 0")
    code, out, _ = cli("mccl", "attention", bundle, photos[1], "--out", picture, *labels, "--json")
    content = json.loads(out)
    assert list(content["labels"]) == ["class 1", "class 3", "class 0"]
    assert len(content["overlap"]) == 3
    assert all(0 < shared <= 1 for *_, shared in content["overlap"])


def test_momentum_command_trains_and_tells(
    photos: list[Path], tmp_path: Path, cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    samples = [Sample(path.stem, (rng.random(5) < 0.5).astype(np.float32), path) for path in photos]
    dataset = Dataset("toy", tiny_taxonomy(), "multilabel", {"train": samples, "val": samples[:6], "test": samples[6:]})

    def here(cells, **_) -> dict[str, str]:
        for cell in cells:
            train(cell.recipe, cell.out, dataset=dataset, progress=False)
        return {}

    monkeypatch.setattr(ablation, "run_cells", here)
    sets = "method.name=mccl data.val=val data.test=test backbone.name=tiny schedule.epochs=2 train.device=cpu"
    sets += " train.workers=1 evaluate.bootstrap=0"
    options = json.dumps(OPTIONS)
    arguments = [part for item in [*sets.split(), f"method.options={options}"] for part in ("--set", item)]
    out = tmp_path / "momentum"
    base = ["mccl", "momentum", "--recipe", "tiny", "--set", "cache.path=off", "--out", out, "--seeds", "0", *arguments]
    code, text, _ = cli(*base, "--values", "0.5,1", "--json")
    assert code == 0
    results = json.loads(text)
    assert [result["name"] for result in results] == ["momentum 0.5", "momentum 1"]
    for result in results:
        assert set(result["scores"]) == {"macro_f1", "micro_f1", "samples_f1", "mAP"}
        assert result["prototypes"] == 10
        assert all(1 <= used <= 10 for used in result["in_use"].values())
    assert "| 0.5 |" in (out / "momentum.md").read_text()


def test_unsteadiness_is_the_deviation_of_the_second_half() -> None:
    assert unsteadiness([0, 9, 0.3, 0.5]) == pytest.approx(0.02**0.5)
    assert unsteadiness([1]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("attention", "BUNDLE", "PHOTO", "--label", "clas 9"), "did you mean"),
        (("attention", "BUNDLE", "PHOTO", "--out", "x.bmp"), "x.bmp"),
        (("attention", "BUNDLE", "nowhere.jpg"), "nowhere.jpg"),
        (("prototypes", "BUNDLE", "PHOTO", "--stage", "4"), "uses stages 2, 3, not 4"),
        (("prototypes", "lost", "PHOTO"), "no model 'lost'"),
        (("momentum", "--values", "0.9,x"), "0.9,x"),
        (("momentum", "--values", "2"), "less than or equal to 1"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: tuple[str, ...], message: str, bundle: Path, photos: list[Path], cli, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"BUNDLE": bundle, "PHOTO": photos[0]}
    code, _, err = cli("mccl", *(places.get(argument, argument) for argument in arguments))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("*.png"))
