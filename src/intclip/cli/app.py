"""`intclip app`."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from intclip.cli.options import Labels, with_options

LOOPBACK = "127.0.0.1"
MODULES = ("fastapi", "fastapi_offline", "uvicorn", "python_multipart", "structlog", "prometheus_client", "cachetools")
"""Modules that the service needs from the extra `app`."""
MODELS = Path("models")
"""Default folder for models trained in the app."""


@dataclass(frozen=True)
class Address:
    """Address of a service, and the host names it answers to."""

    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all networks, without a login.")] = (
        LOOPBACK
    )
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0 picks a free one; default: 8000 (serve), 7860 (app).")
    ] = None
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Also answer to this host name, such as a proxy's; may be repeated. See docs/api.md."),
    ] = None

    def bind(self, port: int) -> socket.socket:
        """A bound socket.

        Args:
            port: Default port.

        Raises:
            IntclipError: The address is invalid, not on this machine, or in use.
        """
        from intclip.serving.server import bind

        return bind(self.host, port if self.port is None else self.port)

    def hosts(self, bound: socket.socket, *, guarded: bool) -> tuple[str, ...]:
        """Host names that the service answers to; see `intclip.serving.hosts.allowed_hosts`."""
        from intclip.serving.hosts import allowed_hosts

        return allowed_hosts(self.host, bound.getsockname()[0], guarded=guarded, extra=self.allow_host or ())


@with_options
def app(
    address: Address,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="lite, zero-shot:RN101, proxy, a bundle's folder, an exported file, or NAME=MODEL; may be repeated, "
            "the first is selected when the page opens. Default: lite and proxy.",
        ),
    ] = None,
    taxonomy: Labels = None,
    photos: Annotated[
        list[str] | None, typer.Option(help="Photos to open instead of the examples; may be repeated.")
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """View photos, intents and evidence in the browser.

    Correct labels and train a model on your corrections. Nothing leaves this machine. See docs/app.md.

    intclip app

    intclip app --model models/mine --model lite --port 8000

    intclip app --photos holiday/ --open
    """
    from intclip.cli.common import name_models
    from intclip.data.demo_photos import demo_photos
    from intclip.data.images import find_images
    from intclip.errors import IntclipError, MissingExtraError
    from intclip.extras import require
    from intclip.inference.loading import is_zero_shot, load

    for module in MODULES:
        require(module, "app")
    from intclip.serving.observe import configure_logs
    from intclip.serving.server import address as address_of
    from intclip.serving.server import run
    from intclip.serving.settings import Settings

    with address.bind(7860) as listener:
        specs = name_models(model or ["lite", "proxy"])
        if taxonomy is not None and not any(map(is_zero_shot, specs.values())):
            raise IntclipError(f"--taxonomy {taxonomy}: {', '.join(specs)} have their own labels; add --model lite")
        models = {name: load(spec, taxonomy=taxonomy if is_zero_shot(spec) else None) for name, spec in specs.items()}
        if photos:
            shown = find_images(photos)
        else:
            try:
                shown = demo_photos()
            except MissingExtraError:
                shown = []  # the page explains how to begin

        from intclip.serving.app.routes import create_app

        settings = Settings(hosts=address.hosts(listener, guarded=False))
        page = create_app(models, shown, settings, models_folder=MODELS, examples=not photos)
        near = address.host in (LOOPBACK, "::1", "localhost")
        url = f"http://localhost:{listener.getsockname()[1]}" if near else address_of(listener)
        listener.listen()  # early connections wait until the page is ready
        print(f"intclip app: {url}  (models: {', '.join(models)}; Ctrl-C to stop)", flush=True)
        if not near:
            print("intclip app: anyone who can reach this address can use it; there is no login", flush=True)
        if open_page:
            import webbrowser

            webbrowser.open(url)
        configure_logs("error")
        if run(page, listener, connections=1024, grace_seconds=30):
            raise KeyboardInterrupt
