"""`intclip app`."""

from pathlib import Path
from typing import Annotated

import typer

LOOPBACK = "127.0.0.1"
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
    import logging

    from intclip.cli.common import name_models
    from intclip.data.demo_photos import demo_photos
    from intclip.data.images import find_images
    from intclip.errors import MissingExtraError
    from intclip.extras import require
    from intclip.inference.loading import is_zero_shot, load
    from intclip.inference.predictor import Predictor

    uvicorn = require("uvicorn", "app")
    from intclip.serving.hosts import allowed_hosts
    from intclip.serving.server import Server, address, bind

    listener = bind(host, port)
    models: dict[str, Predictor] = {}
    for name, spec in name_models(model or ["lite", "proxy"]).items():
        models[name] = load(spec, taxonomy=taxonomy if is_zero_shot(spec) else None)
    if photos:
        examples = find_images(photos)
    else:
        try:
            examples = demo_photos()
        except MissingExtraError:
            examples = list[Path]()  # the page says how to begin

    from intclip.serving.app.server import create_app

    names = allowed_hosts(host, listener.getsockname()[0], guarded=False, extra=allow_host or ())
    page = create_app(models, examples, hosts=names)
    near = host in (LOOPBACK, "::1", "localhost")
    shown = f"http://localhost:{listener.getsockname()[1]}" if near else address(listener)
    print(f"intclip app: {shown}  (models: {', '.join(models)}; Ctrl-C ends it)", flush=True)
    if not near:
        print("intclip app: anybody who reaches this address may use it; there is no login", flush=True)
    if open_page:
        import webbrowser

        webbrowser.open(shown)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    server = Server(uvicorn.Config(page, log_level="warning"))
    server.run(sockets=[listener])
    if server.interrupted:
        raise KeyboardInterrupt
