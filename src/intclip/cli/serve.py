"""`intclip serve`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from intclip.cli.app import MODULES, Address
from intclip.cli.options import (
    BatchSize,
    Device,
    EngineOption,
    LabelOptions,
    PrecisionOption,
    Threads,
    load_model,
    with_options,
)

if TYPE_CHECKING:
    from intclip.serving.settings import Settings

KEY_VARIABLE = "INTCLIP_API_KEY"
DAY = 86_400
PORT = 8000
Level = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True)
class Access:
    """Who has access."""

    api_key_file: Annotated[
        Path | None, typer.Option(help=f"File with the key that clients must send; or set {KEY_VARIABLE}.")
    ] = None
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Allow web pages from this origin (CORS); may be repeated.")
    ] = None


@dataclass(frozen=True)
class Limits:
    """Limits and timeouts of the service."""

    capacity: Annotated[int, typer.Option(min=2, help="Photos in progress; more get status 429.")] = 256
    batch_size: BatchSize = 32
    max_photos: Annotated[int, typer.Option(min=1, help="Photos per request.")] = 32
    max_megapixels: Annotated[float, typer.Option(min=0.01, max=178, help="Megapixels per photo.")] = 50
    max_request_mb: Annotated[float, typer.Option(min=0.01, max=512, help="Megabytes per request.")] = 32
    upload_seconds: Annotated[float, typer.Option(min=0.1, max=DAY, help="Timeout of an upload in seconds.")] = 30
    answer_seconds: Annotated[float, typer.Option(min=0.1, max=DAY, help="Timeout of an answer in seconds.")] = 60
    connections: Annotated[int, typer.Option(min=2, help="Open connections; more get status 503.")] = 1024

    def settings(self, access: Access, hosts: tuple[str, ...] = ()) -> "Settings":
        """Return the settings of the service.

        Raises:
            IntclipError: A limit contradicts another one, or a key or an origin is malformed; the key is not shown.
        """
        from pydantic import ValidationError

        from intclip.errors import IntclipError, reason
        from intclip.serving.settings import Settings

        values = {
            "capacity": self.capacity,
            "max_batch": self.batch_size,
            "max_photos": self.max_photos,
            "max_pixels": round(1e6 * self.max_megapixels),
            "max_body_bytes": round(1e6 * self.max_request_mb),
            "upload_seconds": self.upload_seconds,
            "answer_seconds": self.answer_seconds,
            "api_key": _read_key(access.api_key_file),
            "cors_origins": tuple(access.allow_origin or ()),
            "hosts": hosts,
        }
        try:
            return Settings.model_validate(values)
        except ValidationError as error:
            raise IntclipError(reason(error)) from None


@dataclass(frozen=True)
class Computing:
    """Engine of the models."""

    engine: EngineOption = "auto"
    device: Device = "auto"
    precision: PrecisionOption = "f32"
    threads: Threads = None


@with_options
def serve(
    address: Address,
    access: Access,
    limits: Limits,
    labels: LabelOptions,
    computing: Computing,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A model, as for `predict --model`, or NAME=MODEL; may be repeated."),
    ] = None,
    page: Annotated[
        bool, typer.Option("--page", help="Serve the page of `intclip app` at /app, without a key.")
    ] = False,
    log_level: Annotated[Level, typer.Option(help="Log level.")] = "info",
) -> None:
    """Serve models over HTTP until Ctrl-C. /docs describes the API.

    Photos of all clients share one queue and are computed in batches. URLs are not fetched, and logs and
    metrics contain nothing about photos.

    intclip serve

    intclip serve --model lite --model mine=runs/my-model --port 9000

    curl -F images=@photo.jpg http://127.0.0.1:8000/v1/predict
    """
    # Read when torch loads: idle threads sleep and leave their core to decoding and answering.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from intclip.cli.common import name_models
    from intclip.errors import IntclipError
    from intclip.extras import require

    for module in MODULES:
        require(module, "app")
    from intclip.serving.api import create_api
    from intclip.serving.observe import configure_logs
    from intclip.serving.server import run

    specs = name_models(model or ["lite"])
    settings = limits.settings(access)
    guarded = settings.api_key is not None
    if page and guarded:
        raise IntclipError("--page works only without a key: remove the key, or use `intclip app`")
    with address.bind(PORT) as bound:
        configure_logs(log_level)
        models = {name: load_model(spec, labels, **vars(computing)) for name, spec in specs.items()}
        settings = limits.settings(access, address.hosts(bound, guarded=guarded))
        if page:
            from intclip.serving.app.routes import create_app

            api = create_app(models, settings=settings)
        else:
            api = create_api(models, settings)
        grace = settings.upload_seconds + settings.answer_seconds
        run(api, bound, connections=limits.connections, grace_seconds=grace)


def _read_key(file: Path | None) -> str | None:
    from intclip.errors import IntclipError, reason
    from intclip.serving.answers import check_key

    if file is None:
        if not os.environ.get(KEY_VARIABLE):
            return None
        key = os.environ[KEY_VARIABLE].strip()
        if not key:
            raise IntclipError(f"{KEY_VARIABLE} is blank; set a key, or unset it")
    else:
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise IntclipError(f"cannot read the API key from {file}: {reason(error)}; check the path") from error
        if not key:
            raise IntclipError(f"{file} has no API key; write the key as its only line")
    try:
        check_key(key)
    except ValueError as error:
        raise IntclipError(f"{file or KEY_VARIABLE}: {error}") from None
    return key
