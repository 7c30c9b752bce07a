"""The page of `intclip app`: static files over the REST API, and the few routes that only the page needs."""

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
from intclip.inference.loading import ZERO_SHOT_THRESHOLD
from intclip.inference.predictor import Predictor, untrained_note
from intclip.serving.answers import ExplainRequest, Explanation, Photo, PredictAnswer, PredictRequest
from intclip.serving.api import answer_all, answer_one, create_api, explain_one, predict_posts
from intclip.serving.app.own_labels import MOST_LABELS, OWN_BACKBONE, OwnLabels, make_taxonomy
from intclip.serving.app.training import MOST_ROWS, Row, Trainer, Training, photo_file
from intclip.serving.batcher import Batcher
from intclip.serving.bodies import Uploads, read_body
from intclip.serving.replies import make_explanation, make_posts, make_results, make_sources
from intclip.serving.settings import Settings

PATH = "/app"
STATIC = Path(__file__).parent / "static"
LEAST_ROWS = 20
PREVIEW_SIDE = 1600
"""Longer side, in pixels, of the picture of a photo that the browser cannot show."""
LARGEST_TRAINING = 4_000_000_000
"""Bytes of the photos that a model is trained on; they wait on disk."""
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""The page loads nothing from elsewhere, and no other page may frame it or embed its photos."""


class PagePredictRequest(PredictRequest):
    """As `PredictRequest`; where there are labels, photos are scored against those in place of the model's own."""

    labels: list[str] = Field(default_factory=list)


class PageExplainRequest(ExplainRequest):
    """As `ExplainRequest`, and the labels that the photo was scored against, where they are the visitor's own."""

    labels: list[str] = Field(default_factory=list)


class ReadTextRequest(BaseModel):
    """A picture whose words are read."""

    model_config = ConfigDict(extra="forbid")

    image: Photo


class _Static(StaticFiles):
    """The page's files, with the headers that protect it."""

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
    """The API with the page.

    Args:
        models: Name to model; the first is chosen when the page opens.
        photos: Photos that the page opens with; visitors can read them.
        settings: Limits of the API.
        models_folder: Where models that visitors train are written; None offers no training.
        examples: Whether the visitor's own photos take the place of those.
    """
    api = create_api(models, settings)
    state = api.state
    trainer = None if models_folder is None else Trainer(state.batcher, models_folder)
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
        "max_bytes": 0.9 * settings.max_body_bytes,  # what a form adds to its files fits into the rest
        "least_rows": LEAST_ROWS,
        "most_rows": MOST_ROWS,
        "most_labels": MOST_LABELS,
        "own_threshold": ZERO_SHOT_THRESHOLD,
        "own_note": untrained_note(OWN_BACKBONE),
        "palette": colors(np.linspace(0, 1, 256)).round().astype(int).tolist(),
        "legend": LEGEND,
    }

    @page.get("/facts")
    async def read_facts() -> dict[str, Any]:
        """What the page needs to know beside `/v1/models` and `/v1/taxonomies`."""
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
    """What the page calls photos of this machine: their paths from the working folder, else from their common one."""
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
        """A photo that the page opens with, as it lies on disk."""
        if not (0 <= place < len(photos) and photos[place].is_file()):
            raise HTTPException(404, "there is no such photo")
        # A browser must never take a file for a page, whatever it holds.
        return FileResponse(photos[place], media_type="application/octet-stream", headers=_HEADERS)

    @page.post("/preview")
    async def preview(request: Request) -> Response:
        """A photo that the browser cannot decode, as a JPEG; X-Photo-Size has the size of the whole one."""
        with state.uploads.counted(request) as counted:
            content = await counted.body()
            draw = partial(_preview, content, state.settings.max_pixels)
            try:
                picture, size = await answer_one(state.batcher.run(draw), "the photo", state.settings)
            except ImageError:  # nothing to show; a refusal would stand as an error in the browser's console
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
        """As `/v1/predict`, and for the visitor's own labels; it answers too where no photo can be read."""
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
        """As `/v1/explain`, and for the visitor's own labels."""
        with state.uploads.counted(request) as counted:
            asked, names = await read_body(counted, PageExplainRequest, state.settings)
            if not asked.labels:
                return await explain_one(batcher, asked, names, state.settings)
            labels = make_taxonomy(asked.labels)
            work = partial(own.explain, _photo_of(asked.image), labels, asked.label, fine=asked.fine)
            evidence = await answer_one(batcher.run(work), "the photo", state.settings)
        return make_explanation(own.backbone_name, evidence)


def _photo_of(image: Any) -> bytes:
    if not isinstance(image, bytes):
        raise IntclipError("own labels are scored against photos; send a photo")
    return image


def _add_reading(page: APIRouter, state: Any) -> None:
    @page.post("/read-text")
    async def read_text(request: Request) -> dict[str, str]:
        """The words in a picture; none where it cannot be read."""
        with state.uploads.counted(request) as counted:
            asked, _ = await read_body(counted, ReadTextRequest, state.settings)
            work = partial(read_words, asked.image, max_pixels=state.settings.max_pixels)
            try:
                return {"text": await answer_one(state.batcher.run(work), "the photo", state.settings)}
            except ImageError:
                return {"text": ""}


async def _from_page(x_intclip_page: Annotated[str, Header()] = "") -> None:
    """Refuses what another site's page sends: without CORS a browser lets it add no header of its own."""
    if x_intclip_page != "1":
        raise HTTPException(403, "only the page of the app may ask for this")


def _add_training(page: APIRouter, trainer: Trainer, state: Any) -> None:
    uploads = Uploads(LARGEST_TRAINING, LARGEST_TRAINING)
    rows_of = TypeAdapter(list[Row])

    @page.get("/training")
    async def status() -> Training:
        """How far the training has come."""
        return trainer.status

    @page.post("/training", dependencies=[Depends(_from_page)])
    async def start(request: Request) -> Training:
        """Begin to train on corrected photos: fields name, model (whose labels they are) and rows, files images."""
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
