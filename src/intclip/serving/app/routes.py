"""The page of `intclip app`: static files on top of the REST API, and routes that only the page needs."""

import io
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from intclip.data.images import read_image
from intclip.data.ocr import read_words
from intclip.errors import ImageError, IntclipError
from intclip.evidence.heat import LEGEND, colors
from intclip.inference.loading import zero_shot_threshold
from intclip.inference.predictor import Predictor, untrained_note
from intclip.serving.answers import Base64Photo, ExplainRequest, Explanation, PredictAnswer, PredictRequest
from intclip.serving.api import answer_all, answer_one, create_api, explain_one, predict_posts
from intclip.serving.app.own_labels import MOST_LABELS, OWN_BACKBONE, OwnLabels, make_taxonomy
from intclip.serving.app.training import MOST_ROWS, BackgroundTrainer, CorrectedPhoto, Training, photo_file
from intclip.serving.batcher import Batcher
from intclip.serving.bodies import Uploads, read_body
from intclip.serving.replies import make_explanation, make_posts, make_results, make_sources
from intclip.serving.settings import Settings

PATH = "/app"
STATIC = Path(__file__).parent / "static"
LEAST_ROWS = 20
PREVIEW_SIDE = 1600
"""Longer side, in pixels, of the preview of a photo that the browser cannot decode."""
LARGEST_TRAINING = 4_000_000_000
"""Maximum bytes of the photos for training; they are stored on disk."""
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""Headers: the page loads nothing from other hosts, and other pages cannot frame it or embed its photos."""


class PagePredictRequest(PredictRequest):
    """`PredictRequest` with optional labels that replace the model's."""

    labels: list[str] = Field(default_factory=list)


class PageExplainRequest(ExplainRequest):
    """`ExplainRequest` with the visitor's own labels, if any."""

    labels: list[str] = Field(default_factory=list)


class ReadTextRequest(BaseModel):
    """A picture whose text is read."""

    model_config = ConfigDict(extra="forbid")

    image: Base64Photo


class _Static(StaticFiles):
    """Static files with security headers."""

    def file_response(self, full_path: Any, stat_result: os.stat_result, scope: Scope, status_code: int = 200) -> Any:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(_HEADERS)
        return response


def create_app(
    models: Mapping[str, Predictor],
    photos: Sequence[Path] = (),
    settings: Settings | None = None,
    *,
    models_folder: Path | None = None,
    examples: bool = False,
) -> FastAPI:
    """Create the API with the page.

    Args:
        models: Name to model; the first is selected when the page opens.
        photos: Photos that the page opens with; visitors can read them.
        settings: Limits of the API.
        models_folder: Folder for models that visitors train; None disables training.
        examples: Whether `photos` are examples, which the visitor's own photos replace.
    """
    api = create_api(models, settings)
    state = api.state
    trainer = None if models_folder is None else BackgroundTrainer(state.batcher, models_folder)
    if trainer is not None:
        state.ends.append(trainer.close)
    page = APIRouter(prefix=PATH, include_in_schema=False)
    settings = state.settings
    facts = {
        "photos": [photo.name for photo in photos] if examples else photo_names(photos),
        "examples": examples,
        "training": trainer is not None,
        "reads_text": find_spec("rapidocr") is not None,
        "max_photos": min(settings.max_photos, settings.capacity // 2),
        "max_bytes": 0.9 * settings.max_body_bytes,  # leaves room for the form's overhead
        "least_rows": LEAST_ROWS,
        "most_rows": MOST_ROWS,
        "most_labels": MOST_LABELS,
        "own_threshold": zero_shot_threshold(OWN_BACKBONE),
        "own_note": untrained_note(OWN_BACKBONE),
        "palette": colors(np.linspace(0, 1, 256)).round().astype(int).tolist(),
        "legend": LEGEND,
    }

    @page.get("/facts")
    async def read_facts() -> dict[str, Any]:
        """Configuration of the page besides `/v1/models` and `/v1/taxonomies`."""
        return facts

    _add_photos(page, photos, state)
    _add_answers(page, state)
    _add_reading(page, state)
    if trainer is not None:
        _add_training(page, trainer, state)
    api.include_router(page)
    api.mount(PATH, _Static(directory=STATIC, packages=[("intclip.reports", "templates")], html=True))
    for path, target in (("/", "app/"), ("/favicon.ico", "app/icon.svg")):  # browsers ask for the icon at the root
        api.router.add_route(path, partial(_redirect, target), include_in_schema=False)
    return api


async def _redirect(target: str, request: Request) -> Response:
    return RedirectResponse(target)


def photo_names(photos: Sequence[Path]) -> list[str]:
    """Name local photos by their paths relative to the working folder, or else to their common folder."""
    if not photos:
        return []
    absolute = [Path(os.path.abspath(photo)) for photo in photos]  # noqa: PTH100 (links keep their names)
    home = Path.cwd()
    if not all(photo.is_relative_to(home) for photo in absolute):
        home = Path(os.path.commonpath([photo.parent for photo in absolute]))
    return [photo.relative_to(home).as_posix() for photo in absolute]


def _add_photos(page: APIRouter, photos: Sequence[Path], state: Any) -> None:
    @page.get("/photos/{place}")
    async def photo(place: int) -> Response:
        """Return a photo that the page opens with, unchanged."""
        if not (0 <= place < len(photos) and photos[place].is_file()):
            raise HTTPException(404, "no such photo")
        # A browser must never interpret a file as a page.
        return FileResponse(photos[place], media_type="application/octet-stream", headers=_HEADERS)

    @page.post("/preview")
    async def preview(request: Request) -> Response:
        """Return a JPEG of a photo that the browser cannot decode; X-Photo-Size has its full size."""
        with state.uploads.counted(request) as counted:
            content = await counted.body()
            draw = partial(_preview, content, state.settings.max_pixels)
            try:
                picture, size = await answer_one(state.batcher.run(draw), "the photo", state.settings)
            except ImageError:  # an error status would appear in the browser's console
                return Response(status_code=204)
        return Response(picture, media_type="image/jpeg", headers={"X-Photo-Size": f"{size[0]}x{size[1]}"})


def _preview(content: bytes, max_pixels: int) -> tuple[bytes, tuple[int, int]]:
    photo = read_image(content, max_pixels=max_pixels)
    size = photo.size
    photo.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    stream = io.BytesIO()
    photo.save(stream, "JPEG", quality=88)
    return stream.getvalue(), size


def _add_answers(page: APIRouter, state: Any) -> None:
    own = OwnLabels(max_pixels=state.settings.max_pixels)
    batcher: Batcher = state.batcher

    @page.post("/predict")
    async def predict(request: Request) -> PredictAnswer:
        """Like `/v1/predict`, also for the visitor's own labels; succeeds even if no photo can be read."""
        with state.uploads.counted(request) as counted:
            asked, names = await read_body(counted, PagePredictRequest, state.settings)
            if not asked.labels:
                return (await predict_posts(batcher, asked, names, state.settings))[0]
            labels = make_taxonomy(asked.labels)
            posts = make_posts(asked, state.settings.max_photos)
            futures = [batcher.run(partial(own.predict, _photo_of(image), labels)) for image, _ in posts]
            found = await answer_all(futures, state.settings.answer_seconds)
        results = make_results(found, make_sources(posts, names), 0)
        return PredictAnswer(model=own.backbone_name, taxonomy=labels.name, level="label", results=results)

    @page.post("/explain")
    async def explain(request: Request) -> Explanation:
        """Like `/v1/explain`, also for the visitor's own labels."""
        with state.uploads.counted(request) as counted:
            asked, names = await read_body(counted, PageExplainRequest, state.settings)
            if not asked.labels:
                return await explain_one(batcher, asked, names, state.settings)
            labels = make_taxonomy(asked.labels)
            work = partial(own.explain, _photo_of(asked.image), labels, asked.label, kind=asked.kind)
            evidence = await answer_one(batcher.run(work), "the photo", state.settings)
        return make_explanation(own.backbone_name, evidence)


def _photo_of(image: Any) -> bytes:
    if not isinstance(image, bytes):
        raise IntclipError("your own labels need a photo; send one")
    return image


def _add_reading(page: APIRouter, state: Any) -> None:
    @page.post("/read-text")
    async def read_text(request: Request) -> dict[str, str]:
        """Return the text in a picture; empty if it cannot be read."""
        with state.uploads.counted(request) as counted:
            asked, _ = await read_body(counted, ReadTextRequest, state.settings)
            work = partial(read_words, asked.image, max_pixels=state.settings.max_pixels)
            try:
                return {"text": await answer_one(state.batcher.run(work), "the photo", state.settings)}
            except ImageError:
                return {"text": ""}


async def _from_page(x_intclip_page: Annotated[str, Header()] = "") -> None:
    """Reject requests from other sites: without CORS they cannot add a custom header."""
    if x_intclip_page != "1":
        raise HTTPException(403, "only the app's page can use this")


def _add_training(page: APIRouter, trainer: BackgroundTrainer, state: Any) -> None:
    uploads = Uploads(LARGEST_TRAINING, LARGEST_TRAINING)
    rows_of = TypeAdapter(list[CorrectedPhoto])

    @page.get("/training")
    async def status() -> Training:
        """Return the progress of the training."""
        return trainer.status

    @page.post("/training", dependencies=[Depends(_from_page)])
    async def start(request: Request) -> Training:
        """Start training on corrected photos: fields name, model (whose labels are used) and rows, files images."""
        with uploads.counted(request) as counted:
            async with counted.form(max_files=MOST_ROWS, max_fields=8, max_part_size=10_000_000) as form:
                try:
                    rows = rows_of.validate_json(str(form.get("rows", "[]")))
                except ValidationError as error:
                    raise IntclipError("rows: not a list of corrected photos") from error
                files = [file for file in form.getlist("images") if not isinstance(file, str)]
                if len(files) != len(rows):
                    raise IntclipError(f"{len(rows)} rows and {len(files)} photos; send one photo for each row")
                model, name = str(form.get("model", "")), str(form.get("name", ""))
                taxonomy = state.batcher.find(model)[1].taxonomy if model else None
                photos = await run_in_threadpool(_write_photos, files)
        return trainer.start(rows, photos, taxonomy, name)


def _write_photos(files: Sequence[UploadFile]) -> "tempfile.TemporaryDirectory[str]":
    folder = tempfile.TemporaryDirectory(prefix="intclip-")
    for number, file in enumerate(files):
        with (Path(folder.name) / photo_file(number)).open("wb") as stream:
            shutil.copyfileobj(file.file, stream)
    return folder
