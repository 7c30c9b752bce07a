"""Evidence for users: kinds, the aggregation's attention, nearest known photos, the legend."""

import base64
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import intclip
from fakes import TinyBackbone
from intclip.batch.job import JobOptions, ModelOptions
from intclip.data import images
from intclip.data.content import open_content
from intclip.data.images import read_image
from intclip.data.loading import DRAFT_FACTOR
from intclip.errors import IntclipError
from intclip.evidence.evidence import make_evidence
from intclip.evidence.heat import LEGEND, overlay, upsample
from intclip.evidence.kinds import KINDS, maps_of_kind
from intclip.reports.report import write_folder_report
from intclip.reports.sheet import NARROWEST, evidence_sheet, prompts_overlay
from intclip.search.index import update_index
from intclip.search.neighbours import nearest_photos
from tiny_models import tiny_intclip, tiny_known, write_bundle

LABEL = "class 2"


@pytest.fixture(scope="module")
def model(bundle_path):
    with tiny_known():
        yield intclip.load(bundle_path, engine="torch", device="cpu")


@pytest.fixture(scope="module", params=["torch", "openvino", "onnx"])
def in_engine(request, bundle_path, model):
    return intclip.load(bundle_path, engine=request.param, device="cpu")


def test_every_kind_that_the_model_has(model, photos):
    own = model.explain(photos[0], LABEL)
    assert own.kind == "regions"
    for kind in set(KINDS) - {"rollout"}:
        evidence = model.explain(photos[0], LABEL, kind=kind)
        assert evidence.kind == kind
        assert set(evidence.branches) == {"fused", "sight", "semantic"}
        assert evidence.fused.shape == own.fused.shape
        # A logit is 100 times the difference of two cosines. One float32 rounding of a cosine, 2^-25, moves the
        # probability by a quarter of 100 times that, 7e-7; a cosine of eight numbers has about ten.
        assert evidence.probability == pytest.approx(own.probability, abs=1e-5)
        assert kind == "regions" or not np.allclose(evidence.fused, own.fused)
    with pytest.raises(IntclipError, match=r"ViT.*gradcam or regions"):
        model.explain(photos[0], LABEL, kind="rollout")


def test_a_photo_is_decoded_once_and_its_box_is_of_the_whole_photo(model, tmp_path, monkeypatch):
    file, opened = tmp_path / "large.jpg", []
    Image.new("RGB", (900, 600), "navy").save(file)
    monkeypatch.setattr(images, "open_content", lambda source: opened.append(source) or open_content(source))
    for kind in ("regions", "fine", "gradcam"):
        assert model.explain(file, LABEL, kind=kind).box == (150, 0, 750, 600)
    assert opened == [file] * 3


def test_the_fine_kind_is_the_same_in_every_engine(in_engine, model, photos):
    """It also equals torch; probability and attention are those of the whole photo."""
    plain, fine = (in_engine.explain(photos[0], LABEL, kind=kind) for kind in ("regions", "fine"))
    assert fine.probability == pytest.approx(plain.probability, abs=1e-5)
    np.testing.assert_allclose(fine.attention, plain.attention, atol=1e-5)
    preprocess = model.card.preprocessing
    pixels = preprocess(read_image(photos[0], min_side=DRAFT_FACTOR * preprocess.size))[None].numpy()
    expected = maps_of_kind(model.method(), pixels, model.taxonomy.index(LABEL), "fine")
    assert set(fine.regions) == set(expected)
    for name, values in expected.items():
        side = plain.regions[name].shape[0]
        assert fine.regions[name].shape == (4 * side, 4 * side)
        np.testing.assert_allclose(fine.regions[name], values, atol=1e-4)
        assert getattr(fine, name).shape == getattr(plain, name).shape


def test_which_sight_regions_answer_which_semantic_query(in_engine, photos):
    evidence = in_engine.explain(photos[0], LABEL)
    method = tiny_intclip()
    backbone = method.backbone
    pixels = backbone.preprocess(read_image(photos[0], min_side=DRAFT_FACTOR * backbone.image_size))[None]
    with torch.no_grad():
        trunk = backbone.trunk(pixels)
        sight = backbone.head.regions(backbone.deep(trunk))
        semantic = backbone.head.regions(method.semantic(trunk))
        _, expected = method.aggregation.attend(semantic, sight)
    assert evidence.attention.shape == (9, 9)
    np.testing.assert_allclose(evidence.attention.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(evidence.attention, expected[0].numpy(), atol=1e-4)


def test_an_exported_file_keeps_the_attention_beside_its_maps(model, photos, tmp_path):
    exported = intclip.load(model.export(tmp_path / "m.onnx", maps=True))
    assert exported.card.attention
    np.testing.assert_allclose(
        exported.explain(photos[0], LABEL).attention, model.explain(photos[0], LABEL).attention, atol=1e-4
    )
    with pytest.raises(IntclipError, match="exported graph"):
        exported.explain(photos[0], LABEL, kind="gradcam")


def test_a_method_without_aggregation_has_no_attention(photos, tmp_path):
    from intclip.methods.registry import build_method

    options = {"branches": "single", "context_length": 3}
    method = build_method("intclip", TinyBackbone(), tiny_intclip().taxonomy, options)
    path = write_bundle(tmp_path / "single", method)
    single = intclip.load(path, engine="torch", device="cpu")
    assert not single.card.attention
    assert single.explain(photos[0], LABEL).attention is None


def test_the_report_holds_the_attention_for_whoever_asks_a_place(model, photos, tmp_path):
    write_folder_report(photos[:1], model, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert re.search(f"{LEGEND[0]}</span>.*<span>{LEGEND[1]}</span>", page)
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    content = base64.b64decode(data["photos"][0]["attention"])
    assert (content[0], content[1], len(content)) == (9, 9, 2 + 81)
    found = np.frombuffer(content[2:], np.uint8).reshape(9, 9) / 255
    expected = model.explain(photos[0], LABEL).attention
    expected = expected / expected.max(axis=1, keepdims=True)
    low = expected.min()
    np.testing.assert_allclose(found, (expected - low) / (1 - low), atol=0.01)


@pytest.fixture
def known(photos, tmp_path):
    """The photos under other names, one of them twice, and one that cannot be read."""
    folder = tmp_path / "known"
    folder.mkdir()
    for path in photos:
        shutil.copy(path, folder / f"known-{path.name}")
    (folder / "broken.jpg").write_bytes(b"noise")
    return folder


def test_nearest_photos_of_a_folder_and_of_an_index(model, bundle_path, photos, known, tmp_path):
    found = nearest_photos(model, photos[1], known, count=3)
    assert len(found) == 3
    assert found[0].path == str(known / f"known-{photos[1].name}")
    assert found[0].cosine == pytest.approx(1, abs=1e-5)
    assert [near.cosine for near in found] == sorted((near.cosine for near in found), reverse=True)
    embeddings = {path: embedding(path) for path in known.glob("known-*")}
    expected = sorted(embeddings, key=lambda path: -float(embeddings[path] @ embedding(photos[1])))
    assert [near.path for near in found] == [str(path) for path in expected[:3]]
    assert found[0].labels == tuple(model.predict(photos[1])[0].labels)

    options = ModelOptions(spec=str(bundle_path), engine="torch", device="cpu")
    update_index(tmp_path / "index", [str(known)], JobOptions(model=options))
    indexed = nearest_photos(model, photos[1], tmp_path / "index", count=3)
    assert [near.path for near in indexed] == [near.path for near in found]
    np.testing.assert_allclose([n.cosine for n in indexed], [n.cosine for n in found], atol=2e-3)


def test_a_photo_is_not_its_own_neighbour(model, known):
    photo = next(known.glob("known-*"))
    assert str(photo) not in [near.path for near in nearest_photos(model, photo, known, count=9)]


def embedding(path):
    backbone = TinyBackbone()
    pixels = backbone.preprocess(read_image(path, min_side=DRAFT_FACTOR * backbone.image_size))[None]
    with torch.no_grad():
        return torch.nn.functional.normalize(backbone.encode_image(pixels), dim=1)[0]


@pytest.mark.parametrize("exclusive", [False, True])
def test_neighbours_have_the_labels_of_their_predictions(model, photos, known, monkeypatch, exclusive):
    """Regression: thresholds of posts with text, and any number of labels where exactly one applies."""
    levels = [0.0, 1.0] + [0.5] * (len(model.taxonomy) - 2)
    monkeypatch.setattr(model, "card", model.card.model_copy(update={"channel_thresholds": {"image": levels}}))
    monkeypatch.setattr(model, "taxonomy", replace(model.taxonomy, exclusive=exclusive))
    found = nearest_photos(model, photos[3], known)
    assert [each.labels for each in found] == [tuple(model.predict(each.path)[0].labels) for each in found]
    assert all(len(each.labels) == 1 for each in found) or not exclusive


def test_the_sheet_has_photo_legend_and_neighbours(model, photos, known):
    evidence = model.explain(photos[3], LABEL)
    evidence = replace(evidence, neighbours=nearest_photos(model, photos[3], known))
    photo = read_image(photos[3])
    with_strip = evidence_sheet(photo, evidence)
    plain = evidence_sheet(photo, model.explain(photos[3], LABEL, kind="gradcam"), "sight")
    assert with_strip.width == plain.width == max(photo.width, NARROWEST)
    assert photo.height < plain.height < with_strip.height
    # The legend runs from the palette's dark end to its bright end.
    row = np.asarray(plain, float).sum(axis=2)[photo.height + 32]
    assert row[15] < 60 < 500 < row[-15]


def test_two_prompts_side_by_side_share_one_range(model, photos):
    """Similarity 2 everywhere to one prompt, 0 everywhere to the other: all bright next to the photo itself."""
    photo = read_image(photos[3])
    box = model.card.preprocessing.source_box(photo.size)

    def evidence(positive, negative):
        pair = zip(("positive", "negative"), (positive, negative), strict=True)
        return [
            make_evidence(LABEL, 0.5, {"fused": np.float32(values)}, size=24, box=box, source="", kind=kind)
            for kind, values in pair
        ]

    drawn = np.asarray(prompts_overlay(photo, *evidence(np.full((3, 3), 2), np.zeros((3, 3)))))
    one, none = (np.asarray(overlay(photo, np.full((24, 24), value, np.float32), box)) for value in (1, 0))
    np.testing.assert_array_equal(drawn[:, : photo.width], one)
    np.testing.assert_array_equal(drawn[:, -photo.width :], none)
    low, high = np.arange(9.0).reshape(3, 3) - 3, np.arange(9.0).reshape(3, 3)  # from -3 to 8 together
    drawn = np.asarray(prompts_overlay(photo, *evidence(low, high)))
    for half, values in ((drawn[:, : photo.width], low), (drawn[:, -photo.width :], high)):
        heat = (upsample(values, 24) + 3) / 11
        assert np.abs(half.astype(int) - np.asarray(overlay(photo, heat, box))).max() <= 1


def test_the_command_draws_both_prompts_over_one_legend(cli, bundle_path, photos, tmp_path, monkeypatch):
    from PIL import ImageDraw

    said = []
    draw = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, place, text, **options: (said.append(text), draw(self, place, text, **options)),
    )
    out = tmp_path / "both.png"
    words = ("explain", photos[3], "-m", bundle_path, "--label", LABEL, "--kind", "prompts", "--engine", "torch")
    code, told, _ = cli(*words, "--out", out, "--json")
    assert (code, json.loads(told)["kind"]) == (0, "prompts")
    assert said[:2] == ["like the positive prompt", "like the negative prompt"]
    assert tuple(said[-2:]) == LEGEND
    with Image.open(out) as sheet:
        assert sheet.width == max(2 * read_image(photos[3]).width + 10, NARROWEST)
    assert cli(*words, "--out", tmp_path / "plain.png", "--plain")[0] == 0
    with Image.open(tmp_path / "plain.png") as plain:
        assert plain.size == (2 * read_image(photos[3]).width + 10, read_image(photos[3]).height)


def test_the_command(cli, bundle_path, photos, known, tmp_path):
    out = tmp_path / "sheet.png"
    arguments = ("-m", bundle_path, "--label", LABEL, "--kind", "gradcam", "--neighbours", known, "--out", out)
    code, told, err = cli("explain", photos[0], *arguments, "--json", "--engine", "torch")
    assert (code, err) == (0, "")
    found = json.loads(told)
    assert found["kind"] == "gradcam"
    assert len(found["neighbours"]) == 5
    assert found["neighbours"][0]["cosine"] == pytest.approx(1, abs=1e-5)
    with Image.open(out) as drawn:
        assert drawn.width == NARROWEST
    code, _, err = cli("explain", photos[0], "-m", bundle_path, "--kind", "rollout", "--out", out, "--engine", "torch")
    assert code == 2
    assert "needs a ViT" in err
