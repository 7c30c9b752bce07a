"""A real browser: Chromium through Playwright, with checks of errors and network requests."""

import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect, sync_playwright

sys.path.append(str(Path(__file__).parents[1] / "serving"))  # its fake model

PATIENCE = 60_000
"""Milliseconds; generous, for two busy cores."""
expect.set_options(timeout=PATIENCE)
NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")  # not longer: while it lives its event loop runs, and no other test can run one
def browser():
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        reason = f"no browser for the page's tests: install chromium (looked for {', '.join(NAMES)})"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as running:
        # Chromium has no sandbox as root in a container; the pages are our own.
        chromium = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser):
    """Open an address at a size; at the end, check for errors and for requests to other hosts."""

    @contextmanager
    def open_page(address: str, size: tuple[int, int]):
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, accept_downloads=True)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        problems = []
        home = urlsplit(address).netloc

        def watch_request(request):
            parts = urlsplit(request.url)
            if parts.scheme in ("http", "https", "ws", "wss") and parts.netloc != home:
                problems.append(f"asked {request.url}")

        page.on("request", watch_request)
        page.on("response", lambda answer: answer.status >= 400 and problems.append(f"{answer.status} {answer.url}"))
        page.on("pageerror", lambda error: problems.append(f"error {error}"))
        page.on("console", lambda said: said.type in ("error", "warning") and problems.append(f"console: {said.text}"))
        page.goto(address)
        yield page
        context.close()
        assert problems == []

    return open_page
