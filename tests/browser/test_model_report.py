"""The page of an evaluation in a real browser: one file, no network, a sortable table, nothing cut off."""

import pytest
from screens import PHONE, WIDE

from intclip.data.demo_photos import demo_photos
from intclip.evaluation.saved import read_evaluation
from intclip.labels import load_taxonomy
from intclip.reports.evaluation_report import render
from scored_photos import COUNT, write_evaluation

pytestmark = pytest.mark.browser

# Elements wider than the page without a scrollable parent.
TOO_WIDE = """() => [...document.body.querySelectorAll("*")]
  .filter((node) => !node.closest(".scroll *") && node.getBoundingClientRect().right > innerWidth + 1)
  .map((node) => node.outerHTML.slice(0, 80))"""
# Content that leaves its tile, and names that leave their drawing.
CUT = """() => {
  const tiles = [...document.querySelectorAll(".tile")].filter((tile) => tile.scrollWidth > tile.clientWidth);
  const names = [...document.querySelectorAll(".chart text, .matrix text")].filter((text) => {
    const [inner, outer] = [text, text.ownerSVGElement].map((node) => node.getBoundingClientRect());
    return inner.left < outer.left - 1 || inner.top < outer.top - 1 || inner.right > outer.right + 1;
  });
  return [...tiles, ...names].map((node) => node.textContent);
}"""
# The first column of figures, next to names that stay fixed when the table is scrolled.
SEEN = """() => [...document.querySelectorAll("#classes tbody tr")].every((row) => {
  const [name, figure] = [row.cells[0], row.cells[1]].map((cell) => cell.getBoundingClientRect());
  return figure.left >= name.right - 1 && figure.left + 50 <= innerWidth;
})"""


@pytest.fixture(scope="module")
def report(browser, tmp_path_factory):
    """Two models with 28 labels with long names; a fifth of the photos are missing."""
    folder = tmp_path_factory.mktemp("evaluation")
    taxonomy = load_taxonomy("intentonomy")
    better = write_evaluation(folder / "better", taxonomy=taxonomy, quality=0.35)
    worse = write_evaluation(folder / "worse", taxonomy=taxonomy, seed=1, quality=0.2)
    photos = demo_photos()
    there = {f"photo {n}": photos[n % len(photos)] for n in range(COUNT) if n % 5}
    path = folder / "report.html"
    path.write_text(render(read_evaluation(better), against=read_evaluation(worse), find_photo=there.get))
    return path.as_uri()


def column(page, number: int) -> list[float]:
    return [float(cell.get_attribute("data-value")) for cell in page.locator(f"#classes td:nth-child({number})").all()]


@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_it_fits_the_screen_and_its_table_sorts(report, visit, size):
    with visit(report, size) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert page.evaluate(TOO_WIDE) == []
        assert page.evaluate(CUT) == []
        assert page.evaluate(SEEN)
        assert page.locator("img").count() > 10
        assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")

        names = page.locator("#classes tbody th").all_inner_texts()
        by_score = page.get_by_role("button", name="AP", exact=True)
        by_score.click()
        scores = column(page, 2)
        assert len(scores) == 28
        assert scores == sorted(scores, reverse=True)
        assert page.locator("#classes th[aria-sort]").all_inner_texts() == ["AP"]
        by_score.focus()
        page.keyboard.press("Enter")
        assert column(page, 2) == sorted(scores)
        # Missing values come last in both directions.
        page.evaluate("document.querySelector('#classes tbody').rows[5].cells[1].dataset.value = 'nan'")
        for _ in range(2):
            by_score.click()
            assert page.locator("#classes tbody tr:last-child td").first.get_attribute("data-value") == "nan"
        page.get_by_role("button", name="Label", exact=True).click()
        assert page.locator("#classes tbody th").all_inner_texts() == sorted(names)
        assert page.locator("#classes th[aria-sort]").get_attribute("aria-sort") == "ascending"


@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_long_names_leave_room_for_the_figures(visit, tmp_path, size):
    names = ["long" * 40, "a name of many words " * 8, "b", "c", "d"]
    models = [read_evaluation(write_evaluation(tmp_path / (letter * 120), names=names)) for letter in "xy"]
    (tmp_path / "report.html").write_text(render(models[0], against=models[1]))
    with visit((tmp_path / "report.html").as_uri(), size) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert page.evaluate(TOO_WIDE) == []
        assert page.evaluate(SEEN)
