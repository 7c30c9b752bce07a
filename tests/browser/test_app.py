"""The app in a real browser: what a visitor does, and that what they take along trains a model."""

import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn
from PIL import Image
from playwright.sync_api import expect
from screens import PHONE, WIDE

from intclip.data.demo_photos import demo_photos
from intclip.data.tabular import load_table
from intclip.inference.loading import load
from intclip.serving.app.own_intents import read_intents
from intclip.serving.app.server import create_app

pytestmark = pytest.mark.browser

LINE = "<img src=x onerror=alert(1)> ${value} {{value}}"
"""An intent that would run or vanish if the page did not take it as text."""


@pytest.fixture(scope="module")
def address(browser):
    models = {"lite": load("lite", engine="torch"), "proxy": load("proxy", engine="torch")}
    server = uvicorn.Server(uvicorn.Config(create_app(models, demo_photos()), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not (server.started and server.servers):
        assert thread.is_alive()
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join(timeout=30)


@pytest.fixture
def opened(address, visit):
    """The page at a size, once every part of it is there: they come one by one, each with a script of its own."""
    parts = (".ic-row", ".ic-thumb", ".ic-frame img", "#ic-own textarea", "#ic-threshold input[type=range]")
    parts += (
        "#ic-branch label",
        "#ic-level label",
        "#ic-model input",
        "#ic-labels input",
        "#ic-keep",
        "#ic-fine input",
    )

    @contextmanager
    def open_app(size: tuple[int, int]):
        with visit(address, size) as page:
            for part in parts:
                page.locator(part).first.wait_for()
            yield page

    return open_app


@pytest.mark.parametrize("background", [False, True])
def test_ctrl_c_ends_the_app_while_its_page_is_open(browser, tmp_path, background):
    """An open page keeps a stream open, and has torch loaded in a thread; a script's background job ignores SIGINT."""
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
        page.locator(".ic-row").first.wait_for(timeout=60_000)
        app.send_signal(signal.SIGINT)
        assert app.wait(120) == 130
        page.close()
    finally:
        app.kill()
        app.wait()
    lines = told.read_text().splitlines()
    # A machine's first start makes the two models ready, each told in a line; afterwards they come from the cache.
    assert all(line.startswith("making ") for line in lines[:-2]), lines
    assert [line[:12] for line in lines[-2:]] == ["intclip app:", "intclip: int"], lines


@pytest.fixture
def folder(tmp_path):
    """Two photos and what is none, as they lie in somebody's folder."""
    home = tmp_path / "trip"
    (home / "day 2").mkdir(parents=True)
    Image.linear_gradient("L").convert("RGB").save(home / "a.png")
    Image.new("RGB", (300, 200), (30, 90, 200)).save(home / "day 2" / "b.jpg")
    (home / "broken.jpg").write_bytes(b"\xff\xd8\xff no photo")
    (home / "notes.txt").write_text("no photo")
    return home


def values(page) -> dict[str, int]:
    rows = page.locator(".ic-row")
    names, percents = rows.locator(".ic-name").all_inner_texts(), rows.locator(".ic-value").all_inner_texts()
    return {name: int(percent.split()[0]) for name, percent in zip(names, percents, strict=True)}


def picture(page) -> str:
    return page.locator(".ic-frame img").get_attribute("src")


def changed(page, selector, before):
    """Wait until the picture, or a text, is another one."""
    page.wait_for_function(
        "([selector, before]) => { const node = document.querySelector(selector);"
        " return node && (node.getAttribute('src') ?? node.innerText) !== before; }",
        arg=[selector, before],
    )


@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_it_opens_on_scored_examples_and_fits_the_screen(opened, size):
    with opened(size) as page:
        assert page.locator(".ic-thumb").count() == len(demo_photos())
        expected = load("lite", engine="torch").predict(demo_photos()[0])[0]
        assert values(page) == {name: round(100 * value) for name, value in expected.scores.items()}
        assert set(page.locator(".ic-row:not(.ic-below) .ic-name").all_inner_texts()) == set(expected.labels)
        tops = page.locator(".ic-group h3").all_inner_texts()
        assert set(tops) == set(expected.taxonomy.levels["super-category"])
        assert page.locator(".ic-row[aria-pressed=true] .ic-name").inner_text() == expected.top(1)[0][0]
        assert picture(page).startswith("data:image/jpeg")
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert len(page.locator(".ic-head p").all_inner_texts()) == 1


def test_uploads_by_button_by_folder_and_what_is_no_photo(opened, folder):
    with opened(WIDE) as page:
        page.set_input_files("#ic-files", [folder / "a.png", folder / "broken.jpg"])
        page.get_by_text("1 photo added").wait_for()
        told = page.locator(".ic-notice").inner_text()
        assert "broken.jpg" in told
        assert "/" not in told.replace("broken.jpg", "")  # no path of the server
        expect(page.locator(".ic-thumb")).to_have_count(1)  # the examples have gone
        page.set_input_files("#ic-folder", folder)
        page.get_by_text("2 photos added").wait_for()
        expect(page.locator(".ic-thumb")).to_have_count(3)
        titles = [page.locator(".ic-thumb").nth(i).get_attribute("title") for i in range(3)]
        assert titles[0] == "a.png"
        assert set(titles[1:]) == {"trip/a.png", "trip/day 2/b.jpg"}


def test_thresholds_of_all_and_of_one(opened):
    with opened(WIDE) as page:
        scores = values(page)
        slider = page.locator("#ic-threshold input[type=range]")
        slider.fill("20")
        page.locator(".ic-track b[style='left: 20.0%']").nth(len(scores) - 1).wait_for(state="attached")
        held = page.locator(".ic-row:not(.ic-below) .ic-name").all_inner_texts()
        assert {name for name, value in scores.items() if value > 20} <= set(held)
        assert not {name for name, value in scores.items() if value < 20} & set(held)
        page.locator("#ic-only input").check()
        slider.fill("100")
        page.locator(".ic-row[aria-pressed=true].ic-below").wait_for()
        expect(page.locator(".ic-track b[style='left: 20.0%']")).to_have_count(len(scores) - 1)
        page.locator("#ic-reset").click()
        page.locator(".ic-track b[style='left: 50.0%']").nth(len(scores) - 1).wait_for(state="attached")


def test_a_threshold_typed_beyond_the_ends_is_the_end(opened):
    with opened(WIDE) as page:
        box = page.locator("#ic-threshold input[type=number]")
        for typed, end in (("250", "100"), ("-5", "0")):
            box.fill(typed)
            box.press("Tab")
            expect(box).to_have_value(end)
            expect(page.locator(f".ic-track b[style='left: {end}.0%']")).to_have_count(len(values(page)))
        expect(page.locator(".toast-body")).to_have_count(0)


def test_evidence_follows_the_label_and_the_branch(opened):
    with opened(WIDE) as page:
        expect(page.locator("#ic-branch label")).to_have_text(["Photo", "Sight"])
        first = picture(page)
        page.locator(".ic-row", has_text="Health").click()
        changed(page, ".ic-frame img", first)
        lite = picture(page)
        page.locator("#ic-model input").click()
        page.get_by_role("option", name="proxy").click()
        page.locator("#ic-branch label", has_text="Fused").wait_for()
        changed(page, ".ic-frame img", lite)
        seen = {picture(page)}
        for branch in ("Sight", "Semantic", "Photo"):
            before = picture(page)
            page.locator("#ic-branch label", has_text=branch).click()
            changed(page, ".ic-frame img", before)
            seen.add(picture(page))
        assert len(seen) == 4
        expect(page.locator(".ic-legend")).to_have_count(0)  # the photo alone has nothing to read off
        expect(page.locator("#ic-fine")).not_to_be_visible()


def test_finer_evidence_of_a_model_and_of_own_intents(opened):
    with opened(WIDE) as page:
        coarse = picture(page)
        page.locator("#ic-fine input").check()
        changed(page, ".ic-frame img", coarse)
        fine = picture(page)
        page.locator("#ic-fine input").uncheck()
        changed(page, ".ic-frame img", fine)
        assert picture(page) == coarse
        page.locator("#ic-own textarea").fill("an astronaut")
        page.locator(".ic-name", has_text="an astronaut").wait_for()
        changed(page, ".ic-frame img", coarse)
        coarse = picture(page)
        page.locator("#ic-fine input").check()
        changed(page, ".ic-frame img", coarse)


def test_the_bars_follow_the_level(opened):
    with opened(WIDE) as page:
        expected = load("lite", engine="torch").predict(demo_photos()[0])[0]
        expect(page.locator("#ic-level label")).to_have_text(list(expected.taxonomy.levels))
        for place, (level, names) in enumerate(expected.taxonomy.levels.items()):
            page.locator("#ic-level label").nth(place).click()
            page.wait_for_function("count => document.querySelectorAll('.ic-row').length === count", arg=len(names))
            assert values(page) == {name: round(100 * value) for name, value in expected.level(level).items()}


def test_own_intents_are_scored_as_they_are_written(opened):
    with opened(WIDE) as page:
        box = page.locator("#ic-own textarea")
        box.press_sequentially("an astronaut\na bowl of soup\n")
        page.wait_for_function("() => document.querySelectorAll('.ic-row').length === 2")
        page.locator(".ic-name", has_text="a bowl of soup").wait_for()
        own = read_intents("an astronaut\na bowl of soup")
        expected = load("lite", taxonomy=own, engine="torch").predict(demo_photos()[0])[0]
        assert values(page) == {name: round(100 * value) for name, value in expected.scores.items()}
        box.fill(f"an astronaut\na bowl of soup\n{LINE}")  # as pasting does, without a key
        page.locator(".ic-name", has_text=LINE).wait_for()
        box.fill("x " * 200)
        page.locator("#ic-own-note", has_text="tokens").wait_for()
        expect(page.locator(".ic-row")).to_have_count(3)  # what was there stays
        box.fill("")
        page.wait_for_function("() => document.querySelectorAll('.ic-row').length === 28")


def test_corrections_are_a_table_that_our_own_loader_reads(opened, folder, tmp_path):
    with opened(WIDE) as page:
        page.set_input_files("#ic-folder", folder)
        page.get_by_text("2 photos added").wait_for()
        expect(page.locator(".ic-thumb")).to_have_count(2)
        for place, wanted in enumerate((["Natural beauty", "In love, emotional intimacy"], [])):
            page.locator(".ic-thumb").nth(place).click()
            page.locator(f".ic-thumb[data-choice='{place}'][aria-pressed=true]").wait_for()
            read = folder.parent / page.locator(".ic-thumb").nth(place).get_attribute("title")
            suggested = load("lite", engine="torch").predict(read)[0].labels
            expect(page.locator("#ic-labels .token")).to_have_text(list(suggested))
            if suggested:
                page.locator("#ic-labels .token-remove.remove-all").click()
            for name in wanted:
                page.locator("#ic-labels input").click()
                page.locator("#ic-labels input").fill(name)
                page.get_by_role("option", name=name, exact=True).click()
            page.locator("#ic-keep").click()
            page.locator(f"#ic-download:has-text('({place + 1})')").wait_for()
        expect(page.locator(".ic-tick")).to_have_count(2)
        with page.expect_download() as got:
            page.locator("#ic-download").click()
        path = tmp_path / got.value.suggested_filename
        got.value.save_as(path)
    assert path.name == "corrections.csv"
    dataset = load_table(path, taxonomy="intentonomy")
    samples = {sample.image.relative_to(tmp_path).as_posix(): sample for sample in dataset.splits["train"]}
    assert set(samples) == {"trip/a.png", "trip/day 2/b.jpg"}
    names = dataset.taxonomy.names
    held = {path: {names[i] for i in sample.targets.nonzero()[0]} for path, sample in samples.items()}
    assert sorted(held.values(), key=len) == [set(), {"Natural beauty", "In love, emotional intimacy"}]


def test_the_keyboard_is_enough(opened):
    with opened(WIDE) as page:
        page.locator(".ic-thumb").first.focus()
        before = picture(page)
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        page.locator(".ic-thumb[data-choice='1'][aria-pressed=true]").wait_for()
        changed(page, ".ic-frame img", before)
        # The focus is not lost by drawing anew.
        page.wait_for_function("() => document.activeElement.dataset.choice === '1'")
        before = picture(page)
        page.locator(".ic-row").first.focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.activeElement.getAttribute('aria-pressed') === 'true'")
        changed(page, ".ic-frame img", before)
        before = picture(page)
        page.locator("#ic-branch input:not(:checked)").focus()
        page.keyboard.press("Space")
        changed(page, ".ic-frame img", before)
