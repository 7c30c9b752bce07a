"""The report in a real browser: one file, no network."""

import pytest
from PIL import Image
from playwright.sync_api import expect
from screens import PHONE, WIDE
from watched import NAMES, WatchedPredictor

from intclip.data.demo_photos import demo_photos
from intclip.inference.loading import load
from intclip.reports.report import write_folder_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(browser, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_folder_report(demo_photos(), load("proxy", engine="torch"), path)
    return path.as_uri()


@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_bars_thresholds_levels_and_evidence(report, visit, size):
    with visit(report, size) as page:
        photos = len(demo_photos())
        assert page.locator(".photo").count() == photos
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        counts = page.locator("#bars button:not(.none) .count")
        page.locator("#threshold").fill("100")
        assert set(counts.all_inner_texts()) == {"0"}
        page.locator("#threshold").fill("0")
        assert set(counts.all_inner_texts()) == {str(photos)}
        page.locator("#own").click()
        assert page.locator("#threshold-value").inner_text() == "each label's own"
        card = page.locator(".photo").first
        card.locator(".label").first.click()
        drawn = "node => node.toDataURL()"
        fused = card.locator("canvas").evaluate(drawn)
        page.get_by_role("button", name="sight").click()
        assert card.locator("canvas").evaluate(drawn) != fused
        page.locator("#levels button").nth(1).click()
        page.locator("#rest").click()
        assert page.locator("#bars button:not(.none)").count() == 9
        page.locator("#bars button").first.focus()
        page.keyboard.press("Enter")
        assert "most probable first" in page.locator("#filter").inner_text()


def test_photos_without_a_clear_intent_are_counted_and_marked(report, visit):
    unclear = [
        photo.name
        for photo, one in zip(demo_photos(), load("proxy").predict(demo_photos()), strict=True)
        if not one.clear
    ]
    with visit(report, WIDE) as page:
        marked = page.locator(".photo", has=page.locator(".unclear")).locator("h3")
        assert unclear
        assert marked.all_inner_texts() == unclear
        none = page.locator("#bars .none")
        assert none.locator(".count").inner_text() == str(len(unclear))
        none.click()
        assert page.locator(".photo h3").all_inner_texts() == unclear
        page.locator("#threshold").fill("0")
        expect(none.locator(".count")).to_have_text("0")  # it stays where it is chosen
        expect(page.locator(".photo")).to_have_count(0)
        none.click()
        expect(none).to_have_count(0)
        expect(page.locator(".photo .unclear")).to_have_count(0)


def test_labels_without_photos_are_shown_on_demand(report, visit):
    found = {name for one in load("proxy").predict(demo_photos()) for name in one.labels}
    with visit(report, WIDE) as page:
        names = page.locator("#bars button:not(.none) .name")
        assert set(names.all_inner_texts()) == found
        page.locator("#rest").click()
        assert set(names.all_inner_texts()) == set(load("proxy").taxonomy.names)
        page.locator("#rest").click()
        assert set(names.all_inner_texts()) == found


@pytest.mark.parametrize("chosen", ["#bars button", "#levels button", "#branches button"])
def test_the_keyboard_stays_where_it_chose(report, visit, chosen):
    with visit(report, WIDE) as page:
        page.locator(chosen).nth(1).focus()
        page.keyboard.press("Enter")
        expect(page.locator(chosen).nth(1)).to_be_focused()
        expect(page.locator(chosen).nth(1)).to_have_attribute("aria-pressed", "true")


def test_a_button_that_goes_away_hands_the_keyboard_on(report, visit):
    with visit(report, WIDE) as page:
        page.locator("#threshold").fill("70")
        page.locator("#own").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#own")).to_be_hidden()
        expect(page.locator("#threshold")).to_be_focused()
        page.evaluate("state.shown = 3; drawPhotos()")
        page.locator("#more").focus()
        page.keyboard.press("Enter")
        expect(page.locator(".photo")).to_have_count(len(demo_photos()))
        expect(page.locator(".photo").nth(3).locator("button").first).to_be_focused()


@pytest.fixture(scope="module")
def watched(browser, tmp_path_factory):
    """A report of one photo with 100, 49.8, 50.2 and 25 percent; the thresholds are at 50."""
    folder = tmp_path_factory.mktemp("watched")
    Image.new("RGB", (8, 8), (255, 127, 128)).save(folder / "a.png")
    write_folder_report(folder, WatchedPredictor(), folder / "report.html")
    return (folder / "report.html").as_uri()


def test_the_figures_of_a_photo_stand_on_one_line(watched, visit):
    with visit(watched, WIDE) as page:
        assert len({row.bounding_box()["height"] for row in page.locator(".photo .label").all()}) == 1


def test_a_label_that_misses_its_threshold_never_looks_as_if_it_reached_it(watched, visit):
    with visit(watched, WIDE) as page:
        assert page.locator(".photo .label .value").all_inner_texts() == ["100 %", "50 %", "49.8 %", "25 %"]
        assert page.locator(".photo .label.below .value").all_inner_texts() == ["49.8 %", "25 %"]


def test_long_names_and_paths_stay_within_a_phone(visit, tmp_path):
    long = "long" * 40
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "a.png")
    (tmp_path / f"{long}.png").write_text("no photo")
    report = tmp_path / "report.html"
    write_folder_report(tmp_path, WatchedPredictor(long), report, title=long)
    report.write_text(report.read_text().replace(NAMES[0], long))
    with visit(report.as_uri(), PHONE) as page:
        page.locator("#bars button").first.click()
        expect(page.locator("#filter")).to_contain_text("most probable first")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]


def test_without_scripts_the_page_tells_why_it_shows_nothing(report, browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report)
    expect(page.locator("noscript p")).to_be_visible()
    context.close()
