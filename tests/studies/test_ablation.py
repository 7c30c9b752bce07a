import csv
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from intclip.errors import RecipeError, StorageError, TrainingError
from intclip.files import write_text
from intclip.studies.ablation import (
    Cell,
    adopt_finished,
    choose_jobs,
    end_with_parent,
    is_run,
    plan_cells,
    run_cells,
    slug,
)
from intclip.studies.studies import TABLE6, Study, StudyRow, load_study, study_names
from intclip.studies.tables import RowResult, collect, draw, render_csv, render_study, write_tables
from intclip.training.recipe import load_recipe
from intclip.training.recipe_file import dump_recipe, read_recipe

NAMES = [name for name in study_names() if name != "table6"]
BASE = read_recipe("tiny", ["cache.path=off"])


def figures(mean: float) -> dict:
    headline = dict.fromkeys(("macro_f1", "micro_f1", "samples_f1", "mAP"), mean)
    cost = {"training_seconds": 60.0, "photos_per_second": {"test": 1234.5}, "peak_memory_mb": 700 + 100 * mean}
    return {"splits": {"test": {"headline": headline}}, "learnable_parameters": 1500, "cost": cost}


def fake_work(cell: Cell, threads: int) -> None:
    """Replaces a training run; the row's name determines its behaviour."""
    cell.out.mkdir(parents=True, exist_ok=True)
    (cell.out / f"started-{len(list(cell.out.iterdir()))}").touch()
    if cell.row == "Fails":
        raise StorageError("the disk is full")
    if cell.row == "Killed" and not (cell.out / "started-1").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    (cell.out / "bundle").mkdir(exist_ok=True)
    (cell.out / "metrics.json").write_text(json.dumps(figures(0.4 + 0.01 * cell.seed)))


def cells_of(out: Path, *names: str, seeds=(0, 1)) -> tuple[Study, list[Cell]]:
    rows = [StudyRow(name=name, set={"optim": {"lr": 0.1 * (i + 1)}}, paper=[50.0 - i]) for i, name in enumerate(names)]
    study = Study(title="T", metrics=["mAP"], note="A note.", rows=rows)
    return study, plan_cells(study, BASE, out, list(seeds))


@pytest.mark.parametrize("name", [*NAMES, *TABLE6.values()])
def test_every_row_of_every_study_makes_a_valid_recipe(name, tmp_path):
    study = load_study(name)
    for base in ("paper", "clean", "proxy-lite"):
        cells = plan_cells(study, read_recipe(base), tmp_path, [0], fine_taxonomy="fine.yaml")
        assert [cell.row for cell in cells] == [row.name for row in study.rows if is_run(row, "fine.yaml")]
    assert len({cell.out for cell in cells}) == len(cells)


def test_studies_change_one_thing_a_row_and_keep_the_rest():
    cells = {cell.row: cell.recipe for cell in plan_cells(load_study("table4"), read_recipe("clean"), Path(), [3])}
    for recipe in cells.values():
        assert recipe.method.options["sentence_form"] == "11-15"
        assert recipe.train.seed == 3
    assert cells["Single, none"].method.options["train"] == "none"
    assert cells["Dual, semantic"].method.options["branches"] == "dual"


def test_methods_are_trained_by_their_own_recipes_on_the_same_data():
    overrides = ["schedule.epochs=3", "data.limit=10"]
    base = read_recipe("proxy-lite", overrides)
    cells = {cell.row: cell for cell in plan_cells(load_study("methods"), base, Path(), [0], overrides=overrides)}
    probe, own = cells["Linear probe"].recipe, load_recipe("linear_probe")
    assert (probe.method, probe.optim.lr) == (own.method, own.optim.lr)
    assert (probe.data, probe.backbone) == (cells["IntCLIP"].recipe.data, cells["IntCLIP"].recipe.backbone)
    assert {cell.recipe.schedule.epochs for cell in cells.values()} == {3}
    assert cells["IntCLIP"].recipe.method == load_recipe("proxy-lite").method


def test_a_method_trains_by_nothing_of_the_base_method():
    cells = plan_cells(load_study("methods"), read_recipe("proxy-lite"), Path(), [0])
    recipes = {cell.row: cell.recipe for cell in cells}
    for row, name in (("CoOp", "coop"), ("LabCR", "labcr"), ("Prior", "prior")):
        own = load_recipe(name)
        assert (recipes[row].optim, recipes[row].schedule, recipes[row].augment) == (
            own.optim,
            own.schedule,
            own.augment,
        )
        assert recipes[row].train.mixup == 0


def test_a_row_changes_its_own_recipe_and_overrides_come_last():
    def planned(*overrides: str, task: str = "multilabel") -> dict:
        base = read_recipe("proxy-lite", overrides)
        cells = plan_cells(load_study("methods-lite"), base, Path(), [0], overrides=overrides, task=task)
        return {cell.row: cell.recipe for cell in cells}

    plain, short = planned(), planned("schedule.epochs=1")
    assert plain["Query2Label"].method.options["decoder"] == {"dim": 256, "feedforward": 1024}
    assert plain["Query2Label"].optim.weight_decay == load_recipe("query2label").optim.weight_decay
    assert {recipe.optim.ema for recipe in plain.values()} == {0.99}
    # A fifth of the recipe's epochs is warm-up, also after the change.
    assert (plain["Query2Label"].schedule.epochs, plain["Query2Label"].schedule.warmup_epochs) == (
        3,
        pytest.approx(0.6),
    )
    assert {recipe.schedule.epochs for recipe in short.values()} == {1}
    assert short["Query2Label"].schedule.warmup_epochs == pytest.approx(0.2)
    single = planned(task="singlelabel")
    assert single["IntCLIP"].method.options["loss"]["kind"] == "softmax"
    assert single["ASL (ResNet)"] == plain["ASL (ResNet)"]


def test_a_study_may_take_its_figures_from_another():
    lite, full = load_study("methods-lite"), load_study("methods")
    assert [row.name for row in lite.rows] == [row.name for row in full.rows]
    pairs = zip(lite.rows, full.rows, strict=True)
    assert all(lite.published(one, "x") == full.published(other, "x") for one, other in pairs)
    assert sum(bool(lite.published(row, "x")) for row in lite.rows) == 13


def test_papers_figures_are_those_of_the_paper():
    def of(study: str, row: str, dataset: str = "intentonomy") -> list[float]:
        chosen = load_study(study)
        return list(chosen.published(next(r for r in chosen.rows if r.name == row), dataset).values())

    full = [38.40, 50.54, 49.31, 42.66]
    assert of("table2", "Full IntCLIP") == of("table3", "HCI 11-15 words") == of("table4", "Dual, semantic") == full
    assert of("table5", "SA (paper, Eq. 4)") == of("methods", "IntCLIP") == full
    assert of("table2", "w/o HCI") == of("table3", "Consolidation") == [36.18, 47.05, 44.74, 39.81]
    assert of("table4", "Dual, all") == [6.28, 22.64, 18.89, 14.02]
    assert of("table6a", "IntCLIP", "emotionroi6") == [71.05]
    assert of("table6a", "IntCLIP", "fi8") == [78.93]
    assert of("table6a", "IntCLIP", "artphoto") == []
    assert of("table6b", "HCI") == [41.55, 52.61, 49.75]
    assert of("table-note", "Full") == [36.2]


def test_unknown_study_names_the_nearest():
    with pytest.raises(RecipeError, match=r"'tabel4'.*did you mean 'table4'"):
        load_study("tabel4")
    assert load_study("table6", "singlelabel") == load_study("table6a")
    assert load_study("table6", "multilabel") == load_study("table6b")


def test_rows_that_need_more_are_shown_and_not_run():
    assert not is_run(StudyRow(name="a"))
    assert not is_run(StudyRow(name="a", set={}, needs="fine_taxonomy"))
    assert is_run(StudyRow(name="a", set={}, needs="fine_taxonomy"), "fine.yaml")
    assert not is_run(StudyRow(name="a", recipe="unheard_of"))
    cells = plan_cells(load_study("table6b"), read_recipe("clean"), Path(), [0], fine_taxonomy="fine.yaml")
    taxonomies = {cell.row: cell.recipe.data.taxonomy for cell in cells}
    assert taxonomies == {"HCI": None, "HCI-FG": "fine.yaml", "HLEG": None, "HLEG + HCI": None}


@pytest.mark.parametrize("name", ["paper-emotion", "released-emotion", "clean-emotion"])
def test_emotions_are_trained_alike_by_the_recipe_and_by_the_table(name):
    cells = plan_cells(load_study("table6", "singlelabel"), read_recipe(name), Path(), [0], task="singlelabel")
    assert [cell.row for cell in cells] == ["ECWA", "WSEIP", "MSRCA", "CGLF-Net", "IntCLIP"]
    recipe, ours = load_recipe(name), cells[-1].recipe
    assert ours.method == recipe.method
    assert ours.model_copy(update={"name": name, "train": recipe.train}) == recipe


def test_a_run_of_another_study_with_the_same_recipe_is_taken_over(tmp_path):
    _, first = cells_of(tmp_path / "one", "Plain", "Other")
    for cell in first:
        write_text(cell.out / "recipe.yaml", dump_recipe(cell.recipe.model_dump(mode="json")))
        write_text(cell.out / "metrics.json", json.dumps(figures(0.1 * (cell.seed + 1))))
    study = Study(
        title="T",
        metrics=["mAP"],
        note="A note.",
        rows=[
            StudyRow(name="Same", set={"optim": {"lr": 0.2}, "train": {"log_every": 7}}),
            StudyRow(name="New", set={}),
        ],
    )
    cells = plan_cells(study, BASE, tmp_path / "two", [1, 2])
    assert adopt_finished(cells, tmp_path) == 1
    assert [(cell.row, cell.seed) for cell in cells if cell.finished] == [("Same", 1)]
    source = next(cell for cell in first if cell.row == "Other" and cell.seed == 1)
    assert (cells[0].out / "metrics.json").read_text() == (source.out / "metrics.json").read_text()
    assert adopt_finished(cells, tmp_path) == 0
    assert {cell.row for cell in plan_cells(study.only(["New"]), BASE, tmp_path / "two", [1, 2])} == {"New"}
    with pytest.raises(RecipeError, match=r"'Nwe'.* Same; New"):
        study.only(["Nwe"])


def test_finished_cells_are_not_run_again_and_killed_ones_go_on(tmp_path):
    study, cells = cells_of(tmp_path, "Plain", "Killed", "Fails")
    failures = run_cells(cells, jobs=2, work=fake_work, progress=False)
    assert set(failures) == {str(cell.out) for cell in cells if cell.row in ("Killed", "Fails")}
    assert failures[str(cells[4].out)] == "the disk is full"
    assert "killed" in failures[str(cells[2].out)]
    assert "memory" in failures[str(cells[2].out)]
    assert not (cells[0].out / "bundle").exists()
    before = {path: path.stat().st_mtime_ns for path in cells[0].out.iterdir()}
    failures = run_cells(cells, jobs=2, work=fake_work, progress=False)
    assert set(failures) == {str(cell.out) for cell in cells if cell.row == "Fails"}
    assert {path: path.stat().st_mtime_ns for path in cells[0].out.iterdir()} == before
    rows = collect(study, cells, "d")
    assert [(len(row.runs), len(row.failed)) for row in rows] == [(2, 0), (2, 0), (0, 2)]
    reasons = collect(study, cells, "d", failures)[2].failed
    assert reasons == {0: "the disk is full", 1: "the disk is full"}


def test_a_process_that_cannot_begin_is_one_line_and_the_same_command_goes_on(tmp_path, monkeypatch):
    _, cells = cells_of(tmp_path, "Plain")

    def start(process):
        raise EOFError("unexpected EOF")

    with monkeypatch.context() as patch:
        patch.setattr("multiprocessing.process.BaseProcess.start", start)
        with pytest.raises(TrainingError, match="row 'Plain', seed 0"):
            run_cells(cells, jobs=1, work=fake_work, progress=False)
    assert run_cells(cells, jobs=2, work=fake_work, progress=False) == {}


def fill_slowly(cells: list[Cell], threads: int) -> None:
    write_text(cells[0].out.parent / "filling", str(os.getpid()))
    time.sleep(600)


def test_the_filling_of_caches_ends_with_the_run(tmp_path, monkeypatch):
    from intclip.studies import ablation

    recipe = load_recipe("tiny")
    cells = [Cell("Plain", 0, recipe, tmp_path / "seed-0")]
    place = tmp_path / "filling"

    def interrupted(process, timeout=None):
        while not place.exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(ablation, "_fill_caches", fill_slowly)
    with monkeypatch.context() as patch:
        patch.setattr("multiprocessing.process.BaseProcess.join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_cells(cells, jobs=1, progress=False)
    number = int(place.read_text())
    deadline = time.monotonic() + 30
    while Path(f"/proc/{number}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{number}").exists()

    def start(process):
        raise EOFError("unexpected EOF")

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", start)
    with pytest.raises(TrainingError, match="feature caches"):
        run_cells(cells, jobs=1, progress=False)


def wait_for_the_end(place: Path) -> None:
    end_with_parent()
    place.write_text(str(os.getpid()))
    time.sleep(600)


def start_and_wait(place: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=wait_for_the_end, args=(place,))
    child.start()
    child.join()


def test_cells_end_with_the_study_that_is_killed(tmp_path):
    place = tmp_path / "pid"
    parent = multiprocessing.get_context("fork").Process(target=start_and_wait, args=(place,))
    parent.start()
    assert eventually(lambda: place.exists() and place.read_text() != "")
    parent.kill()
    parent.join()
    assert eventually(lambda: not Path(f"/proc/{place.read_text()}").exists())


def test_cells_leave_an_interrupt_to_the_study(tmp_path):
    place = tmp_path / "pid"
    parent = multiprocessing.get_context("fork").Process(target=start_and_wait, args=(place,))
    parent.start()
    assert eventually(lambda: place.exists() and place.read_text() != "")
    os.kill(int(place.read_text()), signal.SIGINT)
    time.sleep(0.5)
    assert Path(f"/proc/{place.read_text()}").exists()
    parent.kill()
    parent.join()


def eventually(condition) -> bool:
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_jobs_and_names():
    assert choose_jobs(3, "cpu") == 3
    assert 1 <= choose_jobs(0, "cpu") <= 8
    assert choose_jobs(0, "cuda") == 1
    assert slug("w/o SIE, SA") == "without-sie-sa"


def rows_of(*triples: tuple[str, float, float]) -> list[RowResult]:
    return [
        RowResult(name, {"mAP": paper}, {0: figures(ours), 1: figures(ours + 0.02)}) for name, paper, ours in triples
    ]


STUDY = Study(title="Title", metrics=["mAP"], note="A note.", rows=[])


def test_table_shows_both_sides_their_order_and_what_differs():
    rows = [*rows_of(("A", 40.0, 0.30), ("B", 42.0, 0.35), ("C", 41.0, 0.10)), RowResult("D", {"mAP": 39.0})]
    text = render_study(STUDY, rows, command="intclip ablate x", protocol={"backbone": "lite"})
    assert "| A | 40.00 / 31.00 ± 1.41 | 1,500 | 1.0 | 1,234 | 732 |" in text
    assert "| D | 39.00 / – | – | – | – | – |" in text
    assert "mAP: 2 of 3 pairs have the paper's order. Reversed: C over A" in text
    assert "| backbone | CLIP RN101 | lite |" in text
    assert "    intclip ablate x\n" in text


def test_csv_has_a_line_a_run_and_a_line_of_the_paper():
    lines = list(csv.reader(render_csv(STUDY, rows_of(("A", 40.0, 0.30))).splitlines()))
    costs = ["learnable_parameters", "seconds", "photos_per_second", "peak_memory_mb"]
    assert lines[0] == ["row", "source", "seed", "mAP", *costs]
    assert lines[1] == ["A", "paper", "", "40.0", "", "", "", ""]
    assert lines[2] == ["A", "ours", "0", "30.0000", "1500", "60.0", "1234.5", "730.0"]
    assert len(lines) == 4


def test_plot_and_tables_are_written(tmp_path):
    rows = [
        *rows_of(("A", 40.0, 0.30)),
        RowResult("no run", {"mAP": 10.0}),
        RowResult("failed", {}, failed={0: "too dark"}),
    ]
    paths = write_tables(tmp_path, "table9", STUDY, rows, command="c", protocol={})
    assert [path.name for path in paths] == ["table9.md", "table9.csv", "table9.png"]
    assert (tmp_path / "table9.png").read_bytes()[:4] == b"\x89PNG"
    assert "- failed, seed 0: too dark\n" in (tmp_path / "table9.md").read_text()


def test_no_plot_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert draw(tmp_path / "x.png", STUDY, rows_of(("A", 40.0, 0.30))) is False


def test_a_study_about_a_clip_takes_it_unless_another_backbone_was_chosen():
    """`table-note` is about ViT-B/16, which a summary of the paper used; Table 6b about ViT-B/32."""
    for name, clip in (("table-note", "ViT-B/16"), ("table6b", "ViT-B/32"), ("table2", "RN101")):
        study = load_study(name)
        for recipe, chosen, expected in (
            ("paper", [], clip),
            ("paper", ["backbone.name=RN101"], "RN101"),
            ("proxy-lite", [], "lite"),
        ):
            base = read_recipe(recipe, chosen)
            cells = plan_cells(study, base, Path("x"), [0], overrides=chosen)
            assert {cell.recipe.backbone.name for cell in cells} == {expected}
