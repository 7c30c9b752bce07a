"""`intclip app`."""

from pathlib import Path
from typing import Annotated

import typer

LOOPBACK = "127.0.0.1"
MODULES = ("fastapi", "fastapi_offline", "uvicorn", "python_multipart", "structlog", "prometheus_client", "cachetools")
"""What the service needs from the extra `app`."""
AllowHost = Annotated[
    list[str] | None,
    typer.Option(help="Answer to this host name too, such as one of a proxy; may be repeated. See docs/api.md."),
]


def app(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="lite, zero-shot:RN101, proxy, a bundle's folder, an exported file, or NAME=MODEL; may be repeated, "
            "the first is chosen when the page opens. lite and proxy by default.",
        ),
    ] = None,
    taxonomy: Annotated[str | None, typer.Option(help="Labels of the zero-shot models: a name or a YAML file.")] = None,
    photos: Annotated[
        list[str] | None, typer.Option(help="Photos the page opens with, in place of the examples. May be repeated.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 lets the network in, without login.")
    ] = LOOPBACK,
    allow_host: AllowHost = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 7860,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Look at photos, their intents and the evidence in the browser; correct labels and take them along.

    Nothing leaves this machine. See docs/app.md.

    intclip app

    intclip app --model models/mine --model lite --port 8000

    intclip app --photos holiday/ --open
    """
    from intclip.cli.common import name_models
    from intclip.data.demo_photos import demo_photos
    from intclip.data.images import find_images
    from intclip.errors import MissingExtraError
    from intclip.extras import require
    from intclip.inference.loading import is_zero_shot, load
    from intclip.inference.predictor import Predictor

    for module in MODULES:
        require(module, "app")
    from intclip.serving.hosts import allowed_hosts
    from intclip.serving.observe import configure_logs
    from intclip.serving.server import address, bind, run
    from intclip.serving.settings import Settings

    with bind(host, port) as listener:
        models: dict[str, Predictor] = {}
        for name, spec in name_models(model or ["lite", "proxy"]).items():
            models[name] = load(spec, taxonomy=taxonomy if is_zero_shot(spec) else None)
        if photos:
            shown = find_images(photos)
        else:
            try:
                shown = demo_photos()
            except MissingExtraError:
                shown = list[Path]()  # the page says how to begin

        from intclip.serving.app.routes import create_app

        hosts = allowed_hosts(host, listener.getsockname()[0], guarded=False, extra=allow_host or ())
        page = create_app(models, shown, Settings(hosts=hosts), models_folder=Path("models"), examples=not photos)
        near = host in (LOOPBACK, "::1", "localhost")
        url = f"http://localhost:{listener.getsockname()[1]}" if near else address(listener)
        listener.listen()  # who comes before the page is ready waits for it
        print(f"intclip app: {url}  (models: {', '.join(models)}; Ctrl-C ends it)", flush=True)
        if not near:
            print("intclip app: anybody who reaches this address may use it; there is no login", flush=True)
        if open_page:
            import webbrowser

            webbrowser.open(url)
        configure_logs("error")
        if run(page, listener, connections=1024, grace_seconds=30):
            raise KeyboardInterrupt
