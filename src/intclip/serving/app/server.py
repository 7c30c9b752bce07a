"""The page on its own server, or mounted beside the REST API."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse
from starlette.routing import Mount

from intclip.inference.predictor import Predictor
from intclip.serving.app.callbacks import Callbacks
from intclip.serving.app.layout import TITLE, lay_out, make_theme, read_page_file
from intclip.serving.app.studio import Studio
from intclip.serving.batcher import Batcher
from intclip.serving.hosts import Hosts

LARGEST_FILE = "64mb"
_SESSION_SECONDS = 24 * 3600


def make_page(studio: Studio) -> Any:
    """The page as `gr.Blocks`, filled with the examples' scores."""
    with gr.Blocks(
        title=f"intclip: {TITLE}", analytics_enabled=False, fill_width=True, delete_cache=(3600, _SESSION_SECONDS)
    ) as blocks:
        callbacks = Callbacks(lay_out(list(studio.batcher.models)), studio)
        callbacks.first_fill()
        callbacks.wire()
        # Only one's own intents need torch, which takes seconds to import: it comes while the first page is looked at.
        blocks.load(studio.own_intents.begin, None, None, show_progress="hidden", api_visibility="private")
    blocks.queue(default_concurrency_limit=8)
    return blocks


def mount_page(server: FastAPI, batcher: Batcher, examples: Sequence[Path], path: str = "/") -> FastAPI:
    """Put the page under a path of a server; both ask one queue.

    Args:
        server: Such as the REST API's.
        batcher: The queue before the models.
        examples: Photos that a new page shows.
        path: Where.
    """
    studio = Studio(batcher, examples)
    mounted: FastAPI = gr.mount_gradio_app(
        server,
        make_page(studio),
        path,
        theme=make_theme(),
        css=read_page_file("page.css"),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        max_file_size=LARGEST_FILE,
    )
    if path != "/":  # a browser asks for it at the root, and tells in its console where there is none
        mounted.add_api_route("/favicon.ico", lambda: RedirectResponse(f"{path}/favicon.ico"), include_in_schema=False)
    # A page that is open somewhere keeps a stream open, by which Gradio knows that it is there.
    pages = [route.app for route in mounted.routes if isinstance(route, Mount) and isinstance(route.app, gr.routes.App)]
    mounted.state.streams = [page.stop_event.set for page in pages]
    return mounted


def create_app(models: Mapping[str, Predictor], examples: Sequence[Path] = (), *, hosts: Sequence[str] = ()) -> FastAPI:
    """The page alone, with a queue of its own.

    Args:
        models: Name to model; the first is chosen when the page opens.
        examples: Photos that a new page shows.
        hosts: Host names that are answered; all of them by default.
    """
    batcher = Batcher(models)

    @asynccontextmanager
    async def lifespan(server: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(batcher.close)

    server = FastAPI(lifespan=lifespan, openapi_url=None)
    if hosts:
        server.add_middleware(Hosts, names=hosts)
    return mount_page(server, batcher, examples)
