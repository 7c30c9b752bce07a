"""The API's documentation page in a real browser: it describes the service, without requests to other hosts."""

import threading
import time

import pytest
import uvicorn
from watched import WatchedPredictor

from intclip.serving.api import create_api

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(browser):
    server = uvicorn.Server(uvicorn.Config(create_api({"a": WatchedPredictor()}), port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not (server.started and server.servers):
        assert thread.is_alive()
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=30)


def test_the_docs_page_needs_no_other_host(address, visit):
    with visit(f"{address}/docs", (1280, 900)) as page:  # fails on requests to other hosts
        page.locator(".opblock-summary-path", has_text="/v1/predict").click()
        page.get_by_text("Predict the intents of one or more photos").wait_for()
        assert page.locator(".opblock").count() == 7
        page.wait_for_load_state("networkidle")
