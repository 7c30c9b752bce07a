"""Screenshots of the app and the report for README.md and docs/, by Chromium, with photos from packages.

python -m benchmarks.pictures --out docs/images
"""

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from playwright.sync_api import Browser, Page, sync_playwright

from intclip.data.demo_photos import demo_photos
from intclip.inference.loading import load
from intclip.inference.predictor import Predictor
from intclip.reports.report import write_folder_report

WIDE, PHONE = 1280, 390


@contextmanager
def app(models: Mapping[str, Predictor] | None = None, models_folder: Path | None = None) -> Iterator[str]:
    """Yield the app's address, as opened by `intclip app`; with lite and proxy if no models are given."""
    from intclip.serving.app.routes import create_app

    models = models or {"lite": load("lite"), "proxy": load("proxy")}
    page = create_app(models, demo_photos(), models_folder=models_folder, examples=True)
    server = uvicorn.Server(uvicorn.Config(page, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not (server.started and server.servers) and thread.is_alive():
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


def find_browser() -> str:
    """Return the path of Chromium."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        sys.exit("no browser: install chromium")
    return path


@contextmanager
def looking(browser: Browser, address: str, width: int, height: int) -> Iterator[Page]:
    """Yield a page in a window of this size."""
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    page.goto(address)
    page.wait_for_function("() => [...document.images].every(image => image.complete)")
    yield page
    context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    out = parser.parse_args().out
    with sync_playwright() as running, tempfile.TemporaryDirectory() as folder:
        browser = running.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        with app() as address:
            for name, width, height in (("app", WIDE, 900), ("app-phone", PHONE, 844)):
                with looking(browser, address, width, height) as page:
                    page.locator("body[data-ready]").wait_for()
                    page.wait_for_function("() => state.photos.every((photo) => photo.answers.has(reader().key))")
                    page.wait_for_timeout(1000)  # thumbnails load last
                    page.screenshot(path=out / f"{name}.png")
        report = Path(folder) / "report.html"
        write_folder_report(demo_photos(), load("lite"), report)
        with looking(browser, report.as_uri(), WIDE, 1100) as page:
            for card in page.locator(".photo").all()[:3]:
                card.locator(".label").first.click()
            page.screenshot(path=out / "report.png")
        browser.close()


if __name__ == "__main__":
    main()
