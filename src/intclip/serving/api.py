"""The REST API: reads requests, puts photos in the queue and waits without blocking the event loop."""

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from intclip.errors import ImageError, IntclipError
from intclip.inference.predictor import Predictor
from intclip.serving.answers import (
    ExplainRequest,
    Explanation,
    ModelInfo,
    PredictAnswer,
    PredictRequest,
    State,
    TaxonomyInfo,
)
from intclip.serving.batcher import Batcher, Busy, Closed, ModelFailure, Post
from intclip.serving.bodies import Uploads, read_body
from intclip.serving.doorbell import all_done
from intclip.serving.hosts import Hosts
from intclip.serving.observe import Metrics, Observer, make_log
from intclip.serving.replies import (
    describe_model,
    describe_taxonomies,
    draw_evidence,
    make_explanation,
    make_posts,
    make_results,
    make_sources,
    make_word_explanation,
    reason,
)
from intclip.serving.schema import REFUSALS, UNKNOWN, explain_body, predict_body
from intclip.serving.settings import Settings
from intclip.version import __version__

Answered = TypeVar("Answered")

_LATER = {"Retry-After": "5"}


def create_api(models: Mapping[str, Predictor], settings: Settings | None = None) -> FastAPI:
    """Create the API; its queue is `api.state.batcher`.

    Args:
        models: Name to model; the first is the default.
        settings: Limits.
    """
    settings = settings or Settings()
    metrics = Metrics()
    batcher = Batcher(
        models,
        capacity=settings.capacity,
        max_batch=settings.max_batch,
        decoders=settings.decoders,
        max_pixels=settings.max_pixels,
        max_characters=settings.max_characters,
        on_batch=metrics.on_batch,
        on_failure=metrics.model_failures.inc,
    )
    metrics.watch(batcher)

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(_warm_up, batcher)
        api.openapi()  # built now: later it would block the event loop for a few hundred milliseconds
        api.state.status = "ok"
        yield
        api.state.status = "stopping"
        make_log().info("stopping", photos_inside=batcher.inside)
        for end in api.state.ends:
            await run_in_threadpool(end)
        await run_in_threadpool(batcher.close)

    api: FastAPI = FastAPIOffline(  # its page loads nothing from other hosts
        redoc_url=None,
        title="intclip",
        summary="Predicts why a photo was taken or shared.",
        version=__version__,
        lifespan=lifespan,
    )
    api.state.batcher, api.state.settings, api.state.status = batcher, settings, "starting"
    api.state.uploads = Uploads(settings.max_body_bytes, settings.max_bytes_inside)
    api.state.ends = []  # called at shutdown
    api.state.guarded = settings.api_key is not None
    api.include_router(_open_routes(api))
    guard: list[Any] = [] if settings.api_key is None else [Depends(_Key(settings.api_key.get_secret_value()))]
    guarded = _routes(batcher, settings, metrics, api.state.uploads)
    api.include_router(guarded, dependencies=guard, responses=UNKNOWN if guard else {})
    api.add_exception_handler(IntclipError, _wrong)
    if settings.cors_origins:
        api.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "X-Request-Id"],
        )
    if settings.hosts:
        api.add_middleware(Hosts, names=settings.hosts)
    api.add_middleware(Observer, metrics=metrics)
    return api


class _Key:
    """Require the API key, before the body is read."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    async def __call__(
        self, given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
    ) -> None:
        if given is None or not secrets.compare_digest(given.credentials.encode(), self._key):
            wrong = "send the API key: Authorization: Bearer KEY"
            raise HTTPException(401, wrong, {"WWW-Authenticate": "Bearer", "Connection": "close"})


def _open_routes(api: FastAPI) -> APIRouter:
    router = APIRouter(tags=["state"])

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz")
    async def healthz() -> State:
        """Liveness."""
        return State(status="ok")

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", responses={503: {"model": State, "description": "Starting or stopping."}})
    async def readyz(response: Response) -> State:
        """Readiness."""
        response.status_code = 200 if api.state.status == "ok" else 503
        return State(status=api.state.status)

    return router


def _routes(batcher: Batcher, settings: Settings, metrics: Metrics, uploads: Uploads) -> APIRouter:
    router = APIRouter()
    models = batcher.models

    @router.post("/v1/predict", tags=["photos"], responses=REFUSALS, openapi_extra=predict_body(models, settings))
    async def predict(request: Request) -> PredictAnswer:
        """Predict the intents of one or more photos, with their texts if the model uses text.

        A photo that cannot be read, or on which the model fails, gets a result with an error; if no
        photo succeeds, the status is 422 or 500. Photos are uploaded, never fetched from a URL.
        """
        with uploads.counted(request) as counted:
            asked, names = await read_body(counted, PredictRequest, settings)
            answer, failures = await predict_posts(batcher, asked, names, settings)
        errors = [one.error for one in answer.results if one.error is not None]
        metrics.failures.inc(len(errors) - len(failures))
        if len(errors) == len(answer.results):
            if failures:
                raise failures[0]
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            raise HTTPException(422, errors[0] + more)
        return answer

    @router.post("/v1/explain", tags=["photos"], responses=REFUSALS, openapi_extra=explain_body(models))
    async def explain(request: Request) -> Explanation:
        """Return the evidence for a label in a photo (region logits) or in the words of a text."""
        with uploads.counted(request) as counted:
            asked, names = await read_body(counted, ExplainRequest, settings)
            return await explain_one(batcher, asked, names, settings)

    @router.get("/v1/models", tags=["models"])
    async def list_models() -> list[ModelInfo]:
        """List the served models, default first."""
        return [describe_model(name, model, name == batcher.default) for name, model in models.items()]

    @router.get("/v1/taxonomies", tags=["models"])
    async def list_taxonomies() -> list[TaxonomyInfo]:
        """List the models' labels with hierarchy and thresholds."""
        return describe_taxonomies(models)

    @router.get(
        "/metrics",
        tags=["state"],
        response_class=Response,
        responses={200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}},
    )
    async def read_metrics() -> Response:
        """Counters for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router


async def predict_posts(
    batcher: Batcher, asked: PredictRequest, names: Sequence[str | None], settings: Settings
) -> tuple[PredictAnswer, list[ModelFailure]]:
    """Return a result for each post of a request, and the failures of the model.

    Args:
        batcher: The queue.
        asked: A valid request.
        names: File names, see `read_body`.
        settings: Limits of the service.
    """
    name, predictor = batcher.find(asked.model)
    taxonomy = predictor.taxonomy
    level = taxonomy.level_index(0 if asked.level is None else asked.level)
    thresholds = None if asked.threshold is None else predictor.resolve_thresholds(asked.threshold)
    posts = make_posts(asked, settings.max_photos)
    found = await answer_all(batcher.submit_all(posts, model=name), settings.answer_seconds)
    results = make_results(found, make_sources(posts, names), level, thresholds)
    answer = PredictAnswer(model=name, taxonomy=taxonomy.name, level=list(taxonomy.levels)[level], results=results)
    return answer, [one for one in found if isinstance(one, ModelFailure)]


async def explain_one(
    batcher: Batcher, asked: ExplainRequest, names: Sequence[str | None], settings: Settings
) -> Explanation:
    """Return the evidence for a label in a photo or a text; arguments as for `predict_posts`."""
    name, _ = batcher.find(asked.model)
    if asked.image is None:
        words = batcher.explain_words(asked.text or "", asked.label, model=name)
        return make_word_explanation(name, await answer_one(words, "the text", settings))
    source = next((name for name in names if name), "the photo")
    found = batcher.explain(asked.image, asked.label, model=name, kind=asked.kind)
    evidence = await answer_one(found, source, settings)
    picture = None
    if asked.picture:
        draw = partial(draw_evidence, asked.image, evidence, asked.branch, settings.max_pixels)
        picture = await answer_one(batcher.run(draw), source, settings)
    return make_explanation(name, evidence, picture)


async def answer_all(
    futures: Sequence[Future[Answered]], seconds: float
) -> list[Answered | IntclipError | ModelFailure]:
    """Wait for results or errors; on timeout cancel the futures."""
    try:
        async with asyncio.timeout(seconds):
            await all_done(futures)
    except TimeoutError:
        raise HTTPException(503, f"no answer within {seconds:g} s; try again later", _LATER) from None
    finally:
        for future in futures:
            future.cancel()  # no effect on finished ones
    answers: list[Answered | IntclipError | ModelFailure] = []
    for future in futures:
        error = future.exception()
        if error is None:
            answers.append(future.result())
        elif isinstance(error, IntclipError | ModelFailure):
            answers.append(error)
        else:
            raise error
    return answers


async def answer_one(future: Future[Answered], source: str, settings: Settings) -> Answered:
    """The one result; an error names the photo as `source`."""
    found = (await answer_all([future], settings.answer_seconds))[0]
    if isinstance(found, IntclipError):
        raise (ImageError if isinstance(found, ImageError) else IntclipError)(reason(found, source))
    if isinstance(found, ModelFailure):
        raise found
    return found


def _warm_up(batcher: Batcher) -> None:
    """Predict one photo and a pair, so that the first request does not wait for engines and decoders to load."""
    Image.init()
    blank = np.zeros((8, 8, 3), dtype=np.uint8)
    for name, model in batcher.models.items():
        post: Post = (blank, None) if "image" in model.alone else (None, "a")
        for posts in ([post], [post, post]):
            for future in batcher.submit_all(posts, model=name):
                future.result()


async def _wrong(request: Request, error: Exception) -> Response:
    """Return an error as one line with the matching status."""
    status, headers = 422, {}
    if isinstance(error, Busy):
        status, headers = 429, {"Retry-After": str(math.ceil(error.retry_after))}
    elif isinstance(error, Closed):
        status, headers = 503, _LATER
    return JSONResponse({"detail": str(error)}, status, headers)
