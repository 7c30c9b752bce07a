"""The app in a real browser: a visitor's actions, and training a model on downloaded answers."""

import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect
from screens import PHONE, WIDE

from intclip.data.demo_photos import demo_photos
from intclip.data.tabular import load_table
from intclip.inference.loading import load
from intclip.serving.app.own_labels import make_taxonomy
from intclip.serving.app.routes import create_app

pytestmark = pytest.mark.browser

LINE = "<img src=x onerror=alert(1)> ${value} {{value}}"
"""An intent that would run or vanish unless the page treats it as text."""


@pytest.fixture(scope="module")
def address(browser, tmp_path_factory):
    models = {"lite": load("lite", engine="torch"), "proxy": load("proxy", engine="torch")}
    folder = tmp_path_factory.mktemp("models")
    app = create_app(models, demo_photos(), models_folder=folder, examples=True)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not (server.started and server.servers):
        assert thread.is_alive()
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join(timeout=30)


def scored(page):
    page.wait_for_function("() => state.photos.every((photo) => photo.answers.has(reader().key))")
    page.wait_for_function("() => document.querySelector('#notice').innerText.startsWith('Reading') === false")
    page.wait_for_timeout(200)  # the grid is drawn shortly after the last answer


@pytest.fixture
def opened(address, visit):
    """The page at a size, once its photos are scored."""

    @contextmanager
    def open_app(size: tuple[int, int]):
        with visit(address, size) as page:
            page.locator("body[data-ready]").wait_for()
            scored(page)
            yield page

    return open_app


@pytest.mark.parametrize("background", [False, True])
def test_ctrl_c_ends_the_app_while_its_page_is_open(browser, tmp_path, background):
    """A script's background job ignores SIGINT, so uvicorn re-raises it without effect."""
    told = tmp_path / "told"
    with told.open("w") as stream:
        command = [sys.executable, "-m", "intclip.cli", "app", "--port", "0"]
        if background:
            command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]
        app = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 120
        while not (found := re.search(r"http://localhost:\d+", told.read_text())):
            assert app.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        page = browser.new_page()
        page.goto(found[0])
        page.locator("#all summary").wait_for(timeout=60_000)
        app.send_signal(signal.SIGINT)
        assert app.wait(120) == 130
        page.close()
    finally:
        app.kill()
        app.wait()
    lines = told.read_text().splitlines()
    # The first start on a machine prepares both models, with a line for each; later they come from the cache.
    assert all(line.startswith("converting ") for line in lines[:-2]), lines
    assert [line[:12] for line in lines[-2:]] == ["intclip app:", "intclip: int"], lines


@pytest.fixture
def folder(tmp_path):
    """A user's folder: two photos, one that the browser cannot decode, a damaged one, and a text file."""
    home = tmp_path / "trip"
    (home / "day 2").mkdir(parents=True)
    Image.linear_gradient("L").convert("RGB").save(home / "a.png")
    Image.new("RGB", (300, 200), (30, 90, 200)).save(home / "day 2" / "b.jpg")
    (home / "notes.txt").write_text("no photo")
    return home


def bars(page) -> dict[str, int]:
    """Return the values of the bars, in percent."""
    if not page.locator("#bars").is_visible():
        page.locator("#all summary").click()
    cells = page.locator("#bars button").all_inner_texts()
    return {name: int(float(value.split()[0])) for name, value in (cell.strip().rsplit("\n", 1) for cell in cells)}


def overlay(page) -> str:
    page.wait_for_function("() => !document.querySelector('#overlay').hidden")
    return page.locator("#overlay").evaluate("node => node.toDataURL()")


def overlay_changed(page, before) -> str:
    page.wait_for_function("before => document.querySelector('#overlay').toDataURL() !== before", arg=before)
    return overlay(page)


@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_it_opens_with_the_answer_in_the_first_screen(opened, size):
    with opened(size) as page:
        assert page.locator("#grid li").count() == len(demo_photos())
        expected = load("lite", engine="torch").predict(demo_photos()[0])[0]
        headline = page.locator("#headline")
        (first, value), *_ = expected.top(1)
        if expected.clear:
            assert f"Probably: {first} {value:.2f}" in headline.inner_text()
        else:
            assert headline.inner_text() == "No clear intent"
            assert f"{first} {value:.2f}" in page.locator("#doubt").inner_text()
        box = headline.bounding_box()
        assert box["y"] + box["height"] <= size[1]
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        expect(page.locator("#overlay")).to_be_hidden()  # the true photo first
        assert bars(page) == {name: percent(share) for name, share in expected.scores.items()}
        below = page.locator("#bars button:not(.below) > span:first-child").all_inner_texts()
        assert set(below) == set(expected.labels)


def percent(share: float) -> int:
    return int(100 * share + 0.5)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_no_accessibility_violations(opened, size, scheme):
    with opened(size) as page:
        page.emulate_media(color_scheme=scheme)

        def check():
            found = Axe().run(page).response["violations"]
            assert [(one["id"], [node["target"] for node in one["nodes"]]) for one in found] == []

        check()
        page.locator("#show-evidence").click()
        overlay(page)
        page.locator("#all summary").click()
        page.locator("#own-box summary").click()
        page.locator("#order").select_option("group")
        page.locator("#select-all").click()
        check()
        for opening, closing in (("#help", "#help-close"), ("#full", "#full-close")):
            page.locator(opening).click()
            check()
            page.locator(closing).click()


def test_files_folders_and_what_is_no_photo(opened, folder):
    with opened(WIDE) as page:
        (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no photo")
        Image.new("RGB", (640, 480), (200, 30, 30)).save(folder / "c.tiff")
        page.set_input_files("#folder", folder)
        scored(page)
        names = page.locator("#grid .name").evaluate_all("nodes => nodes.map((node) => node.title)")
        assert names == ["trip/a.png", "trip/broken.jpg", "trip/c.tiff", "trip/day 2/b.jpg"]
        tops = page.locator("#grid .top").all_inner_texts()
        assert tops[1] == "cannot be read"
        assert "cannot be read" not in tops[2]
        page.locator("#grid .open").nth(2).click()  # drawn by the service
        page.wait_for_function("() => document.querySelector('#photo').naturalWidth === 640")
        page.set_input_files("#files", folder / "c.tiff")  # another name, the same bytes
        scored(page)
        expect(page.locator("#grid li")).to_have_count(5)
        page.set_input_files("#folder", folder)
        expect(page.locator("#notice")).to_contain_text("already on the page")
        expect(page.locator("#grid li")).to_have_count(5)


def test_thresholds_of_all_and_of_one(opened):
    with opened(WIDE) as page:
        scores = bars(page)
        own = page.locator("#bars button.below").count()
        page.locator("#threshold").fill("20")
        held = page.locator("#bars button:not(.below) > span:first-child").all_inner_texts()
        assert {name for name, value in scores.items() if value > 20} <= set(held)
        assert not {name for name, value in scores.items() if value < 20} & set(held)
        page.locator("#only").check()
        page.locator("#threshold").fill("100")
        expect(page.locator("#bars button[aria-pressed=true]")).to_have_class("below")
        page.locator("#reset").click()
        expect(page.locator("#bars button.below")).to_have_count(own)
        page.locator("#only").uncheck()
        page.locator("#threshold").fill("100")
        expect(page.locator("#headline")).to_have_text("No clear intent")
        expect(page.locator("#doubt")).to_contain_text("Closest")
        expect(page.locator("#grid .top").first).to_have_text("no clear intent")


def test_a_photo_without_a_caption_has_the_thresholds_of_photos_alone(opened):
    """Regression: it had those of posts with photo and text, which few photos reach."""
    with opened(WIDE) as page:
        page.evaluate("() => { reader().apart = { image: reader().names.map(() => 0) }; drawAnswer(); drawGrid(); }")
        expect(page.locator("#bars button.below")).to_have_count(0)
        page.evaluate("() => { state.photo.answers.get(reader().key).channel = 'both'; drawAnswer(); }")
        expect(page.locator("#bars button.below")).not_to_have_count(0)


def test_evidence_on_demand_follows_the_label_the_map_and_the_opacity(opened):
    with opened(WIDE) as page:
        page.keyboard.press("e")
        first = overlay(page)
        bars(page)
        page.locator("#bars button", has_text="Health").click()
        health = overlay_changed(page, first)
        page.locator("#opacity").fill("0")
        expect(page.locator("#overlay")).to_have_css("opacity", "0")
        page.locator("#fine").check()
        fine = overlay_changed(page, health)
        page.locator("#model").select_option("proxy")
        expect(page.locator("#branches button")).to_have_count(3)
        assert set(page.locator("#branches button").all_inner_texts()) == {"sight", "semantic", "fused"}
        fused = overlay_changed(page, fine)
        page.locator("#branches button", has_text="sight").click()
        overlay_changed(page, fused)
        page.locator("#show-evidence").click()
        expect(page.locator("#overlay")).to_be_hidden()


def test_the_bars_follow_the_level(opened):
    with opened(WIDE) as page:
        expected = load("lite", engine="torch").predict(demo_photos()[0])[0]
        bars(page)
        for place, level in enumerate(expected.taxonomy.levels):
            page.locator("#order").select_option("" if place == 0 else str(place))
            assert bars(page) == {name: percent(value) for name, value in expected.level(level).items()}
        page.locator("#order").select_option("group")
        tops = page.locator("#bars h3 span:first-child").all_inner_texts()
        assert set(tops) == set(expected.taxonomy.levels["super-category"])


def test_own_intents_are_scored_as_they_are_written(opened):
    with opened(WIDE) as page:
        page.locator("#own-box summary").click()
        box = page.locator("#own")
        box.press_sequentially("an astronaut\na bowl of soup\n")
        page.wait_for_function("() => reader().names.length === 2")
        scored(page)
        own = make_taxonomy(["an astronaut", "a bowl of soup"])
        expected = load("lite", taxonomy=own, engine="torch").predict(demo_photos()[0])[0]
        assert bars(page) == {name: percent(value) for name, value in expected.scores.items()}
        page.keyboard.press("Tab")
        page.locator("#show-evidence").click()
        overlay(page)
        box.fill(f"an astronaut\na bowl of soup\n{LINE}")
        page.wait_for_function("() => reader().names.length === 3")
        scored(page)
        assert LINE in bars(page)
        box.fill("\n".join(f"intent {number}" for number in range(61)))
        expect(page.locator("#own-note")).to_contain_text("at most 60")
        assert page.evaluate("reader().names.length") == 3  # existing entries stay
        box.fill("")
        page.wait_for_function("() => reader().names.length === 28")


def test_corrections_are_a_table_that_our_own_loader_reads(opened, folder, tmp_path):
    with opened(WIDE) as page:
        page.set_input_files("#folder", folder)
        scored(page)
        for wanted in (["Natural beauty", "In love, emotional intimacy"], []):
            for chip in page.locator("#chips button[aria-pressed=true]").all_inner_texts():
                page.locator("#chips button", has_text=chip.split("\n")[-1]).first.click()
            for name in wanted:
                chip = page.locator("#chips button", has_text=name)
                if chip.count():
                    chip.click()
                else:
                    page.locator("#more-labels").select_option(name)
            page.locator("#keep").click()
        expect(page.locator("#progress-text")).to_have_text("2 of 2 answered")
        with page.expect_download() as got:
            page.locator("#download").click()
        path = tmp_path / got.value.suggested_filename
        got.value.save_as(path)
    assert path.name == "corrections.csv"
    dataset = load_table(path, taxonomy="intentonomy")
    samples = {sample.image.relative_to(tmp_path).as_posix(): sample for sample in dataset.splits["train"]}
    assert set(samples) == {"trip/a.png", "trip/day 2/b.jpg"}
    names = dataset.taxonomy.names
    held = {path: {names[i] for i in sample.targets.nonzero()[0]} for path, sample in samples.items()}
    assert sorted(held.values(), key=len) == [set(), {"Natural beauty", "In love, emotional intimacy"}]


def test_answers_survive_another_model_a_reload_and_undo(opened, address):
    with opened(WIDE) as page:
        progress = page.locator("#progress-text")
        photos = len(demo_photos())
        page.keyboard.press("9")
        page.keyboard.press("Enter")
        expect(progress).to_have_text(f"1 of {photos} answered")
        expect(page.locator("#place")).to_have_text(f"2 of {photos}")
        expect(page.locator("#agreement-text")).to_contain_text("lite agrees with you on")
        page.locator("#model").select_option("proxy")
        scored(page)
        expect(progress).to_have_text(f"0 of {photos} answered")
        expect(page.locator("#agreement-text")).to_contain_text("1 answer with other labels")
        page.locator("#model").select_option("lite")
        expect(page.locator("#download")).to_be_enabled()
        page.locator("#select-all").click()
        page.locator("#bulk-accept").click()
        expect(progress).to_have_text(f"{photos} of {photos} answered")
        page.locator("#select-none").click()
        page.keyboard.press("u")
        expect(progress).to_have_text(f"1 of {photos} answered")
        page.reload()
        page.locator("body[data-ready]").wait_for()
        expect(progress).to_have_text(f"1 of {photos} answered")
        page.locator("#drop-answer").click()
        expect(progress).to_have_text(f"0 of {photos} answered")
        page.locator("#undo").click()
        expect(progress).to_have_text(f"1 of {photos} answered")


@pytest.mark.parametrize(
    "labels", [[], ["joy"], ["joy", 'a "quoted", name'], ["sun; sand"], ["[rest]", "joy"], ["joy", "[rest]"]]
)
def test_every_label_comes_back_as_it_was_kept(opened, tmp_path, labels):
    import json

    with opened(WIDE) as page:
        rows = [{"name": "trip/a, b.png", "labels": labels, "text": 'says "hi",\nand more'}]
        table = page.evaluate("rows => answersTable(rows)", rows)
    (tmp_path / "trip").mkdir()
    (tmp_path / "trip" / "a, b.png").write_bytes(b"x")
    (tmp_path / "table.csv").write_text(table, newline="")
    own = make_taxonomy(["joy", "sun; sand", "[rest]", 'a "quoted", name'])
    (sample,) = load_table(tmp_path / "table.csv", taxonomy=own).splits["train"]
    assert sample.text == json.loads(json.dumps(rows[0]["text"]))
    assert [name for name, share in zip(own.names, sample.targets, strict=True) if share == 1] == [
        name for name in own.names if name in labels
    ]


def test_filters_order_and_selection(opened):
    with opened(WIDE) as page:
        models = load("lite", engine="torch").predict(demo_photos())
        wanted = next(label for one in models for label in one.labels)
        page.locator("#filter").select_option(wanted)
        held = [photo.name for photo, one in zip(demo_photos(), models, strict=True) if wanted in one.labels]
        expect(page.locator("#grid .name")).to_have_text(held)
        page.locator("#sort").select_option("likely")
        order = sorted(zip(demo_photos(), models, strict=True), key=lambda pair: -pair[1].scores[wanted])
        expect(page.locator("#grid .name")).to_have_text([photo.name for photo, one in order if wanted in one.labels])
        page.locator("#filter").select_option("")
        boxes = page.locator("#grid input")
        boxes.nth(0).click()
        boxes.nth(3).click(modifiers=["Shift"])
        expect(page.locator("#selected")).to_have_text("4 selected")
        page.locator("#bulk-label").select_option(wanted)
        page.locator("#bulk-add").click()
        expect(page.locator("#grid .mine")).to_have_count(4)
        page.locator("#open-only").check()
        expect(page.locator("#grid li")).to_have_count(len(demo_photos()) - 4)
        page.locator("#open-only").uncheck()
        page.locator("#bulk-away").click()
        expect(page.locator("#grid li")).to_have_count(len(demo_photos()) - 4)
        page.keyboard.press("Escape")


def test_the_keyboard_is_enough(opened):
    with opened(WIDE) as page:
        page.locator("#grid .open").first.focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#grid .open").nth(1)).to_be_focused()
        expect(page.locator("#place")).to_have_text(f"2 of {len(demo_photos())}")
        chip = page.locator("#chips button").first
        before = chip.get_attribute("aria-pressed")
        page.keyboard.press("1")
        expect(chip).not_to_have_attribute("aria-pressed", before)
        page.keyboard.press("x")
        expect(page.locator("#selected")).to_have_text("1 selected")
        page.keyboard.press("Escape")
        page.keyboard.press("f")
        page.locator("#full-view[open]").wait_for()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#place")).to_have_text(f"3 of {len(demo_photos())}")
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        page.locator("#keys").uncheck()
        page.locator("#help-close").click()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#place")).to_have_text(f"3 of {len(demo_photos())}")


@pytest.mark.slow
def test_corrections_train_a_model_that_the_page_switches_to(opened, tmp_path):
    import numpy as np

    rng = np.random.default_rng(0)
    files = []
    for number in range(24):
        colour = (220, 40, 30) if number % 2 else (20, 60, 220)
        noise = (rng.normal(scale=20, size=(64, 64, 3)) + colour).clip(0, 255).astype(np.uint8)
        files.append(tmp_path / f"{number:02}.png")
        Image.fromarray(noise).save(files[-1])
    with opened(WIDE) as page:
        page.set_input_files("#files", files)
        scored(page)
        expect(page.locator("#train")).to_be_disabled()
        for parity, name in ((0, "Natural beauty"), (1, "Health")):
            page.evaluate(
                "([parity, name]) => { state.selected = new Set(state.photos.filter((_, i) => i % 2 === parity));"
                " changeSelected(() => new Set([name])); state.selected.clear(); }",
                [parity, name],
            )
        before = page.locator("#agreement-text").inner_text()
        page.locator("#train").click()
        page.wait_for_function("() => state.trained", timeout=250_000)
        expect(page.locator("#model")).to_have_value("mine")
        note = page.locator("#train-note").inner_text()
        held, lite = (int(share) for share in re.findall(r"agrees? ?d? ?(?:with you )?on ([0-9]+) ?%", note))
        assert held > 90 > lite
        assert f"{lite} %" in before
        scored(page)
        assert "Health" in page.locator("#grid .open").nth(1).locator(".top").inner_text()
        page.reload()
        page.locator("body[data-ready]").wait_for()
        expect(page.locator("#agreement-text")).not_to_contain_text("in training")
        page.locator("#model").select_option("mine")
        expect(page.locator("#agreement-text")).to_contain_text(f"in training it reached {held} % (F1, 95 % interval ")


def test_the_page_switches_only_to_a_model_that_agrees_at_least_as_well(opened):
    trained = {"state": "done", "model": "proxy", "folder": "models/mine", "photos": 8}

    def replying(answer):
        return lambda route: route.fulfill(json=answer)

    def train(page, value):
        models = page.request.get(page.url.replace("/app/", "/v1/models")).json()
        held_out = {"micro_f1": {"value": value, "low": 0, "high": 1}}
        models = [one | ({"held_out": held_out} if one["name"] == "proxy" else {}) for one in models]
        for address, answer in (("**/training", trained), ("**/v1/models", models)):
            page.unroute(address)
            page.route(address, replying(answer))
        page.evaluate("() => { state.trained = false; train(); }")
        page.wait_for_function("() => state.trained && !state.training")

    with opened(WIDE) as page:
        page.evaluate("() => { state.selected = new Set(state.photos); changeSelected((_, model) => new Set(model)); }")
        train(page, 0.5)  # the answers are lite's own: it agrees on all
        expect(page.locator("#model")).to_have_value("lite")
        expect(page.locator("#train-note")).to_contain_text("stays with lite")
        train(page, 1)
        expect(page.locator("#model")).to_have_value("proxy")
