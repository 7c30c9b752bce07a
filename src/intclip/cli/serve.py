"""`intclip serve`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intclip.cli.app import MODULES, AllowHost
from intclip.cli.options import Checkpoint, Device, EngineOption, Labels, PrecisionOption, Sentences

if TYPE_CHECKING:
    from intclip.inference.predictor import Predictor
    from intclip.serving.settings import Settings

KEY_VARIABLE = "INTCLIP_API_KEY"
DAY = 86_400


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A model as `predict --model` takes it, or NAME=MODEL; may be repeated."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to serve at; 0.0.0.0 for all networks.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help=f"File that holds the key clients must show; or set {KEY_VARIABLE}.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Web pages from this origin may ask (CORS); may be repeated.")
    ] = None,
    allow_host: AllowHost = None,
    page: Annotated[
        bool,
        typer.Option("--page", help="With the page of `intclip app` at /app, over the same queue; it asks no key."),
    ] = False,
    capacity: Annotated[int, typer.Option(min=2, help="Photos inside at once; more are refused with 429.")] = 256,
    max_batch: Annotated[int, typer.Option(min=1, help="Photos computed at once.")] = 32,
    max_photos: Annotated[int, typer.Option(min=1, help="Photos of one request.")] = 32,
    max_megapixels: Annotated[float, typer.Option(min=0.01, max=178, help="Million pixels of a photo.")] = 50,
    max_characters: Annotated[int, typer.Option(min=1, help="Characters of a post's text.")] = 5000,
    max_request_mb: Annotated[float, typer.Option(min=0.01, max=512, help="Million bytes of a request.")] = 32,
    upload_seconds: Annotated[float, typer.Option(min=0.1, max=DAY, help="A request must have come in by then.")] = 30,
    answer_seconds: Annotated[float, typer.Option(min=0.1, max=DAY, help="It is given up after this long.")] = 60,
    connections: Annotated[int, typer.Option(min=2, help="Connections at once; further ones get 503.")] = 1024,
    taxonomy: Labels = None,
    sentences: Sentences = "11-15",
    checkpoint: Checkpoint = None,
    engine: EngineOption = "auto",
    device: Device = "auto",
    precision: PrecisionOption = "f32",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to compute with; all cores by default.")] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Serve models over HTTP until Ctrl-C, which finishes what was taken. /docs describes the API.

    Photos of all clients share one queue and are computed together. Nothing is fetched from addresses, and neither logs
    nor metrics hold anything of a photo.

    intclip serve

    intclip serve --model lite --model mine=runs/my-model --port 9000

    curl -F images=@photo.jpg http://127.0.0.1:8000/v1/predict
    """
    # Read when torch loads: threads that wait for work sleep, and leave their core to those that decode and answer.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from intclip.cli.common import name_models
    from intclip.errors import IntclipError
    from intclip.extras import require

    for module in MODULES:
        require(module, "app")
    from intclip.inference.loading import load
    from intclip.serving.api import create_api
    from intclip.serving.hosts import allowed_hosts
    from intclip.serving.observe import LEVELS, configure_logs
    from intclip.serving.server import bind, run

    if log_level not in LEVELS:
        raise IntclipError(f"--log-level {log_level}: choose one of {', '.join(LEVELS)}")
    specs = name_models(model or ["lite"])
    settings = _settings(
        capacity=capacity,
        max_batch=max_batch,
        max_photos=max_photos,
        max_pixels=round(1e6 * max_megapixels),
        max_characters=max_characters,
        max_body_bytes=round(1e6 * max_request_mb),
        upload_seconds=upload_seconds,
        answer_seconds=answer_seconds,
        api_key=_read_key(api_key_file),
        cors_origins=tuple(allow_origin or ()),
    )
    if page and settings.api_key is not None:
        raise IntclipError("--page asks no key: serve it without one, or on its own with `intclip app`")
    with bind(host, port) as bound:
        configure_logs(log_level)
        guarded, numeric = settings.api_key is not None, bound.getsockname()[0]
        hosts = allowed_hosts(host, numeric, guarded=guarded, extra=allow_host or ())
        models: dict[str, Predictor] = {
            name: load(
                spec,
                taxonomy=taxonomy,
                sentences=sentences,
                checkpoint=checkpoint,
                engine=engine,
                device=device,
                precision=precision,
                threads=threads,
            )
            for name, spec in specs.items()
        }
        settings = settings.model_copy(update={"hosts": hosts})
        if page:
            from intclip.serving.app.routes import create_app

            api = create_app(models, settings=settings)
        else:
            api = create_api(models, settings)
        run(
            api,
            bound,
            connections=connections,
            grace_seconds=settings.upload_seconds + settings.answer_seconds,
        )


def _read_key(file: Path | None) -> str | None:
    from intclip.errors import IntclipError

    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise IntclipError(
            f"cannot read the API key from {file}: {getattr(error, 'strerror', None) or error}"
        ) from error
    if not key:
        raise IntclipError(f"{file} holds no API key; write one line into it")
    return key


def _settings(**values: object) -> "Settings":
    """Valid settings, or one line that does not show the key."""
    from pydantic import ValidationError

    from intclip.errors import IntclipError
    from intclip.serving.settings import Settings

    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise IntclipError(f"{place}{': ' if place else ''}{first['msg'].removeprefix('Value error, ')}") from None
