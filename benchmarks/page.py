"""Speed of the app's page with many photos, in Chromium.

python -m benchmarks.page --folder $INTCLIP_DATA/flickr8k/images --photos 1000
"""

import argparse
import json
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from benchmarks.pictures import WIDE, app, find_browser

STEPS = {
    "draw the grid anew": "drawGrid()",
    "filter by an intent and back": "state.filter = reader().names[20]; drawGrid(); state.filter = ''; drawGrid()",
    "sort by certainty and back": "state.sort = 'unsure'; drawGrid(); state.sort = 'added'; drawGrid()",
    "switch an intent": "switchLabel(state.chips[3])",
    "keep an answer": "keep()",
    "next photo": "step(1)",
}
"""Code of each step in the page; each is timed together with the layout after it."""
_TIMED = "() => { const start = performance.now(); %s; document.body.offsetHeight; return performance.now() - start; }"

_SCROLL = """async () => {
  const frames = [];
  let last = performance.now();
  for (let top = 0; top < document.documentElement.scrollHeight; top += 400) {
    scrollTo(0, top);
    await new Promise(requestAnimationFrame);
    frames.push(performance.now() - last);
    last = performance.now();
  }
  return frames;
}"""
"""Scrolls from top to bottom, 400 pixels per frame; returns the milliseconds of each frame."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder with JPEG photos")
    parser.add_argument("--photos", type=int, default=1000, help="how many of them")
    asked = parser.parse_args()
    photos = sorted(asked.folder.glob("*.jpg"))[: asked.photos]
    with sync_playwright() as running, app() as address:
        browser = running.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDE, "height": 900})
        requested: list[str] = []
        problems: list[str] = []
        page.on("request", lambda request: requested.append(request.url))
        page.on("console", lambda message: problems.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address)
        page.locator("body[data-ready]").wait_for()
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        files = "performance.getEntriesByType('resource').filter((one) => /[.](js|css|svg)$/.test(one.name))"
        weight = page.evaluate(f"{files}.reduce((sum, one) => sum + one.encodedBodySize, 0)")
        start = time.perf_counter()
        page.set_input_files("#files", photos)
        listed = (
            f"state.photos.length === {len(photos)} && document.querySelectorAll('#grid li').length === {len(photos)}"
        )
        page.wait_for_function(f"() => {listed}")
        seconds_listed = time.perf_counter() - start
        scored = (
            f"state.photos.length === {len(photos)} && state.photos.every((photo) => photo.answers.has(reader().key))"
        )
        page.wait_for_function(f"() => {scored}", timeout=1_200_000)
        seconds = time.perf_counter() - start
        steps = {name: round(page.evaluate(_TIMED % code), 1) for name, code in STEPS.items()}
        scrolls = {name: sorted(page.evaluate(_SCROLL)) for name in ("thumbnails_load", "thumbnails_there")}
        browser.close()
    elsewhere = [url for url in requested if not url.startswith((address, "blob:", "data:"))]
    found = {
        "photos": len(photos),
        "first_paint_ms": round(paint),
        "bytes": weight,
        "all_listed_s": round(seconds_listed, 1),
        "all_scored_s": round(seconds, 1),
        "steps_ms": steps,
        "scroll_frames_ms": {
            name: {"median": round(frames[len(frames) // 2], 1), "longest": round(frames[-1], 1)}
            for name, frames in scrolls.items()
        },
        "requests_to_other_hosts": elsewhere,
        "console_messages": problems,
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
