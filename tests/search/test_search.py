"""An index of photos: results, recomputation, and killed updates."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fakes import TinyBackbone, tiny_taxonomy
from intclip.batch.job import JobOptions, ModelOptions, plan_job
from intclip.batch.mapper import ShardMapper
from intclip.batch.run import run_job
from intclip.data import loading
from intclip.data.images import read_image
from intclip.data.loading import DRAFT_FACTOR
from intclip.errors import ImageError, IntclipError, StorageError, TaxonomyError
from intclip.search import index as index_module
from intclip.search.index import Updated, update_index
from intclip.search.query import PhotoIndex
from intclip.search.vectors import build_vectors, load_vectors, nearest, save_vectors
from tiny_models import reference_probabilities

pytest.importorskip("faiss")
NAMES = tiny_taxonomy().names


def index_photos(place: Path, sources: list[str], model: ModelOptions, **options: object) -> Updated:
    return update_index(place, sources, JobOptions(model=model), **options)


@pytest.fixture
def model(bundle_path) -> ModelOptions:
    return ModelOptions(spec=str(bundle_path), engine="torch")


@pytest.fixture
def folder(photos, tmp_path) -> Path:
    shutil.copytree(photos[0].parent, tmp_path / "photos")
    (tmp_path / "photos" / "bad.jpg").write_text("no photo")
    return tmp_path / "photos"


def unit(rows: torch.Tensor) -> np.ndarray:
    return (rows / rows.norm(dim=1, keepdim=True)).numpy()


def image_embeddings(photos: list[Path]) -> np.ndarray:
    backbone = TinyBackbone()
    images = [read_image(path, min_side=DRAFT_FACTOR * backbone.image_size) for path in photos]
    return unit(backbone.encode_image(backbone.pixels(images)))


def test_text_photo_and_intent_rank_as_by_hand(folder, photos, model, tmp_path):
    done = index_photos(tmp_path / "index", [str(folder)], model)
    assert (done.photos, done.computed, done.errors) == (5, 6, 1)
    index = PhotoIndex(tmp_path / "index")
    embeddings, probabilities = image_embeddings(photos), reference_probabilities(photos)
    backbone = TinyBackbone()
    text = unit(backbone.encode_text(backbone.tokenize(["joy in nature"])))[0]
    for hits, query in (
        (index.by_text("joy in nature", top=3), text),
        (index.by_photo(photos[3], top=3), embeddings[3]),
    ):
        cosines = embeddings @ query
        best = np.argsort(-cosines)[:3]
        np.testing.assert_allclose([hit.score for hit in hits], cosines[best], atol=2e-3)
        assert [Path(hit.path).name for hit in hits] == [photos[i].name for i in best]
    hits = index.by_intent("class 2")
    order = np.argsort(-probabilities[:, 2])
    assert [Path(hit.path).name for hit in hits] == [photos[i].name for i in order]
    np.testing.assert_allclose([hit.probabilities for hit in hits], probabilities[order], atol=1e-5)


def test_filters_keep_what_they_say(folder, photos, model, tmp_path):
    index_photos(tmp_path / "index", [str(folder)], model)
    index = PhotoIndex(tmp_path / "index")
    probabilities = reference_probabilities(photos)
    middle = float(np.median(probabilities[:, 1])) + 1e-4
    for text, expected in (
        (f"class 1 > {middle}", probabilities[:, 1] > middle),
        (f"class 1<={middle}", probabilities[:, 1] <= middle),
        ("class 2", probabilities[:, 2] >= index.info.thresholds[2]),
    ):
        assert index.matching([text]).tolist() == expected.tolist()
        hits = index.by_text("books near water", where=[text])
        assert {Path(hit.path).name for hit in hits} == {photos[i].name for i in np.flatnonzero(expected)}
    assert index.by_intent("class 0", where=["class 1>1"]) == []
    assert index.by_photo(photos[0], where=["class 1>1"]) == []
    with pytest.raises(TaxonomyError, match="did you mean 'class 1'"):
        index.matching(["klass 1>0.5"])
    for text in (
        "class 1>1.2.3",
        ">0.5",
        " ",
        "class 1=0.5",
        "class 1>50%",
        "class 1=>0.5",
        "class 1>0.5 and class 2<1",
    ):
        with pytest.raises(IntclipError, match=r"write NAME>0\.5"):
            index.matching([text])


def paths_of(folder: Path) -> set[str]:
    return {Path(hit.path).name for hit in PhotoIndex(folder).by_intent("class 0", top=100)}


def test_only_new_and_changed_photos_are_computed(folder, photos, model, tmp_path, monkeypatch):
    scored: list[str] = []
    score = ShardMapper._score

    def watched(self, inputs):
        scored.extend(Path(reference.path).name for reference in inputs)
        return score(self, inputs)

    monkeypatch.setattr(ShardMapper, "_score", watched)
    place = tmp_path / "index"
    index_photos(place, [str(folder)], model)
    assert len(scored) == 6
    scored.clear()
    assert index_photos(place, [str(folder)], model).kept == 5
    assert scored == []
    shutil.copy(photos[0], folder / "new.jpg")
    (folder / photos[1].name).unlink()
    shutil.copy(photos[4], folder / photos[2].name)
    os.utime(folder / photos[2].name, ns=(1, 1))
    done = index_photos(place, [str(folder)], model)
    assert sorted(scored) == ["new.jpg", photos[2].name]
    assert (done.computed, done.kept, done.removed, done.errors) == (2, 4, 1, 1)
    assert paths_of(place) == {"new.jpg", *(photos[i].name for i in (0, 2, 3, 4))}
    same = PhotoIndex(place).by_photo(photos[4], top=2)
    assert {Path(hit.path).name for hit in same} == {photos[2].name, photos[4].name}
    (tmp_path / "more").mkdir()
    shutil.copy(photos[1], tmp_path / "more" / "x.png")
    assert index_photos(place, [str(tmp_path / "more")], model, add=True).photos == 6
    assert index_photos(place, [str(tmp_path / "more")], model).photos == 1
    assert len(list(place.glob("g-*"))) == 1


def test_photos_that_could_not_be_read_are_tried_again_when_asked(folder, photos, model, tmp_path, monkeypatch):
    def outage(source, **options):
        raise ImageError(f"no answer from the store of {source}")

    place = tmp_path / "index"
    index_photos(place, [str(folder)], model)
    (tmp_path / "more").mkdir()
    shutil.copy(photos[0], tmp_path / "more" / "x.png")
    with monkeypatch.context() as patch:
        patch.setattr(loading, "read_image", outage)
        assert index_photos(place, [str(tmp_path / "more")], model, add=True).errors == 2
    assert index_photos(place, [str(tmp_path / "more")], model, add=True).computed == 0
    done = index_photos(place, [str(tmp_path / "more")], model, add=True, retry_errors=True)
    assert (done.computed, done.kept, done.removed, done.errors) == (1, 6, 0, 1)
    assert "x.png" in paths_of(place)
    done = index_photos(place, [str(folder)], model, retry_errors=True)
    assert (done.photos, done.computed, done.kept, done.removed, done.errors) == (5, 1, 5, 1, 1)


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_a_changed_photo_whose_name_is_no_utf_8_is_computed_again(photos, model, tmp_path):
    (tmp_path / "odd").mkdir()
    odd = tmp_path / "odd" / os.fsdecode(b"\xff.png")
    for photo in photos[:2]:
        shutil.copyfile(photo, odd)
        assert index_photos(tmp_path / "index", [str(tmp_path / "odd")], model).computed == 1
    assert index_photos(tmp_path / "index", [str(tmp_path / "odd")], model).computed == 0


def die(*arguments, **options):
    raise KeyboardInterrupt


def killed_update(place, folder, model, monkeypatch):
    """Update an index; the process is killed when all photos are computed."""
    with monkeypatch.context() as patch:
        patch.setattr(index_module, "save_vectors", die)
        with pytest.raises(KeyboardInterrupt):
            index_photos(place, [str(folder)], model)


def test_a_killed_update_leaves_the_index_as_it_was_and_goes_on(folder, photos, model, tmp_path, monkeypatch):
    place = tmp_path / "index"
    index_photos(place, [str(folder)], model)
    shutil.copy(photos[0], folder / "new.jpg")
    killed_update(place, folder, model, monkeypatch)
    assert "new.jpg" not in paths_of(place)
    with monkeypatch.context() as patch:
        patch.setattr(ShardMapper, "_score", die)  # results of the killed update exist already
        assert index_photos(place, [str(folder)], model).computed == 1
    assert "new.jpg" in paths_of(place)


def test_a_photo_that_changes_after_a_kill_is_computed_again(folder, photos, model, tmp_path, monkeypatch):
    """Regression: the killed update's embedding was kept for the new photo, for good."""
    place, changed = tmp_path / "index", folder / "changed.jpg"
    shutil.copy(photos[0], changed)
    killed_update(place, folder, model, monkeypatch)
    Image.new("RGB", (96, 96), (250, 0, 90)).save(changed)
    index_photos(place, [str(folder)], model)
    index_photos(tmp_path / "fresh", [str(folder)], model)
    found, fresh = (PhotoIndex(tmp_path / name).by_photo(changed, top=1)[0] for name in ("index", "fresh"))
    assert (found.path, fresh.path) == (str(changed), str(changed))
    np.testing.assert_allclose(found.probabilities, fresh.probabilities, atol=1e-6)
    assert found.score == pytest.approx(fresh.score, abs=1e-5)


def test_of_exclusive_labels_a_name_finds_the_predicted_one(folder, model, tmp_path):
    """Regression: photos with another label were found, because they reached a threshold that is not used."""
    index_photos(tmp_path / "index", [str(folder)], model)
    index = PhotoIndex(tmp_path / "index")
    index.taxonomy = replace(index.taxonomy, exclusive=True)
    names = index.taxonomy.names
    found = np.stack([index.matching([name]) for name in names], axis=1)
    best = np.stack([hit.probabilities for hit in index.by_intent(names[0], top=len(index))]).argmax(axis=1)
    assert (found.sum(axis=1) == 1).all()
    assert found.sum(axis=0).tolist() == np.bincount(best, minlength=len(names)).tolist()


def test_a_batch_job_is_indexed_without_computing(folder, photos, model, tmp_path, monkeypatch):
    options = JobOptions(model=model, embedding=True, shard_size=2)
    job = plan_job(tmp_path / "job", [str(folder)], options)
    run_job(job)
    index_photos(tmp_path / "direct", [str(folder)], model)
    monkeypatch.setattr(ShardMapper, "_score", None)
    done = index_photos(tmp_path / "index", [str(job.folder)], ModelOptions())
    assert (done.photos, done.errors) == (5, 1)
    ways = [PhotoIndex(tmp_path / name).by_text("old books") for name in ("index", "direct")]
    assert [hit.path for hit in ways[0]] == [hit.path for hit in ways[1]]
    bare = plan_job(tmp_path / "bare", [str(folder)], JobOptions(model=model))
    with pytest.raises(StorageError, match="--embedding"):
        index_photos(tmp_path / "other", [str(bare.folder)], model)


def test_photos_beside_a_manifest_of_another_kind_are_photos(folder, model, tmp_path):
    (folder / "manifest.json").write_text('{"name": "gallery"}')
    assert index_photos(tmp_path / "index", [str(folder)], model).photos == 5


def test_another_model_is_refused(folder, model, tmp_path, bundle_path):
    from tiny_models import write_bundle

    index_photos(tmp_path / "index", [str(folder)], model)
    other = write_bundle(tmp_path / "other", thresholds=[0.1] * 5)
    with pytest.raises(StorageError, match=str(tmp_path / "index")):
        index_photos(tmp_path / "index", [str(folder)], ModelOptions(spec=str(other), engine="torch"))


def test_nothing_readable_is_no_index(tmp_path, model):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "bad.jpg").write_text("no photo")
    with pytest.raises(StorageError, match="1 photos"):
        index_photos(tmp_path / "index", [str(tmp_path / "photos")], model)
    assert not (tmp_path / "index" / "index.json").exists()


def test_a_folder_that_is_something_else_is_left_alone(folder, tmp_path, model):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text("{}")
    with pytest.raises(StorageError, match=r"/mine\b"):
        index_photos(tmp_path / "mine", [str(folder)], model)
    assert [path.name for path in (tmp_path / "mine").glob("[!.]*")] == ["manifest.json"]


@pytest.mark.parametrize("name", ["work", "g-family", "g-000001"])
def test_a_user_s_folder_is_not_taken_for_the_index_s_own(folder, tmp_path, model, name):
    photos = shutil.copytree(folder, tmp_path / "trip" / name)
    with pytest.raises(StorageError, match=r"/trip\b"):
        index_photos(tmp_path / "trip", [str(photos)], model)
    assert len(list(photos.iterdir())) == 6
    assert [path.name for path in photos.parent.iterdir()] == [name]


def test_what_lies_beside_an_index_stays(folder, tmp_path, model):
    place = tmp_path / "index"
    index_photos(place, [str(folder)], model)
    beside = shutil.copytree(folder, place / "g-family")
    (folder / "bad.jpg").unlink()
    assert index_photos(place, [str(folder)], model).removed == 1
    assert len(list(beside.iterdir())) == 6
    beside.rename(place / "work")
    with pytest.raises(StorageError, match=r"/index\b"):
        index_photos(place, [str(folder)], model)
    assert len(list((place / "work").iterdir())) == 6


def test_a_folder_without_photos_leaves_nothing_behind(tmp_path, model):
    (tmp_path / "empty").mkdir()
    with pytest.raises(IntclipError, match=str(tmp_path / "empty")):
        index_photos(tmp_path / "index", [str(tmp_path / "empty")], model)
    assert not (tmp_path / "index").exists()


def test_a_model_that_is_not_there_leaves_nothing_behind(folder, tmp_path):
    with pytest.raises(IntclipError, match="'gone'"):
        index_photos(tmp_path / "new" / "index", [str(folder)], ModelOptions(spec="gone"))
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(IntclipError, match="'gone'"):
        index_photos(tmp_path / "mine", [str(folder)], ModelOptions(spec="gone"))
    assert (tmp_path / "mine").exists(), "a folder that was there stays"


def clustered(count: int, dim: int = 16) -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, dim))[rng.integers(0, 60, count)] + 0.5 * rng.normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_codes_find_nearly_what_comparing_all_finds(tmp_path):
    rows = clustered(4000)
    allowed = np.random.default_rng(1).random(4000) < 0.05
    exact = build_vectors(np.array_split(rows, 7), 4000, 16)
    large = build_vectors(np.array_split(rows, 7), 4000, 16, exact_limit=100)
    save_vectors(large, tmp_path / "x.faiss")
    large = load_vectors(tmp_path / "x.faiss")
    hits = filtered_hits = 0
    for query in rows[::100]:
        cosines = rows @ query
        best = np.argsort(-cosines)[:10]
        ids, found = nearest(exact, query, 10)
        np.testing.assert_allclose(found, cosines[best], atol=1e-3)
        hits += len(set(best) & set(nearest(large, query, 10)[0].tolist()))
        best = np.flatnonzero(allowed)[np.argsort(-cosines[allowed])[:10]]
        ids, _ = nearest(large, query, 10, allowed)
        assert allowed[ids].all()
        filtered_hits += len(set(best) & set(ids.tolist()))
    assert hits >= 0.95 * 400
    assert filtered_hits >= 0.95 * 400


def test_command_line(folder, photos, model, tmp_path, cli):
    place = tmp_path / "index"
    code, out, _ = cli("index", folder, "--out", place, "-m", model.spec, "--engine", "torch", "--json")
    assert (code, json.loads(out)["photos"]) == (0, 5)
    code, out, _ = cli("index", folder, "--out", place, "-m", model.spec, "--engine", "torch")
    assert out == f"{place}: 5 photos (0 new or changed, 5 kept, 0 removed); 1 could not be read\n"
    code, out, _ = cli("search", place, "--intent", "class 1", "--top", 2, "--json")
    best = reference_probabilities(photos)[:, 1].argmax()
    assert (code, Path(json.loads(out)[0]["path"]).name) == (0, photos[best].name)
    code, out, _ = cli("search", place, "--text", "joy", "--where", "class 1>1")
    assert (code, out) == (0, "no photo matches the filters\n")
    for arguments, message in (
        (["search", place], "give one of --text"),
        (["search", place, "--text", "a", "--intent", "class 1"], "give one of --text"),
        (["search", place, "--text", " "], "the sentence is empty"),
        (["search", place, "--intent", "joy"], "joy"),
        (["search", tmp_path, "--text", "a"], "no index in"),
        (["search", place, "--photo", "gone.jpg"], "gone.jpg"),
    ):
        code, _, err = cli(*arguments)
        assert code == 2
        assert len(err.splitlines()) == 1
        assert message in err
