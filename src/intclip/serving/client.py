"""Typed client of the service.

with Client("http://127.0.0.1:8000") as client:
client.predict(["a.jpg", "b.jpg"]).results[0].labels
"""

import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2
import tenacity
from pydantic import TypeAdapter, ValidationError

from intclip.errors import IntclipError, reason
from intclip.serving.answers import Explanation, MapKind, MapName, ModelInfo, PredictAnswer, TaxonomyInfo, check_key
from intclip.version import __version__

PhotoSource = str | os.PathLike[str] | bytes
"""A file's path, or its bytes."""
Answer = TypeVar("Answer")
_File = tuple[str, tuple[str | None, bytes, str]]

_UNREACHED = (httpx2.RequestError, httpx2.InvalidURL, UnicodeError)
"""Errors of httpx without a response; the last one for an unresolvable host name."""
_LATER = (429, 503)
_LONGEST_WAIT = 60.0


class ServiceError(IntclipError):
    """The service rejected a request or cannot be reached.

    Args:
        message: Its message, one line.
        status: The HTTP status; None without a response.
        retry_after: Seconds to wait before a retry.
    """

    def __init__(self, message: str, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class Client:
    """Client of a service; thread-safe.

    Args:
        url: URL of the service.
        api_key: Its API key, if it needs one.
        timeout: Seconds to wait for a response.
        attempts: Maximum attempts while the service is busy (429, 503), after the delay it requests and a little more.

    Raises:
        ServiceError: The URL is invalid.
        IntclipError: The key is not valid in a header.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout: float = 90.0,
        attempts: int = 5,
    ) -> None:
        headers = {}
        if api_key is not None:
            try:
                check_key(api_key)
            except ValueError as error:
                raise IntclipError(str(error)) from None
            headers["Authorization"] = f"Bearer {api_key}"
        try:
            self._http = httpx2.Client(base_url=url, headers=headers, timeout=timeout)
        except httpx2.InvalidURL as error:
            raise _unreached(url, error) from error
        self._url, self._attempts = url, attempts

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def predict(
        self,
        photos: PhotoSource | Sequence[PhotoSource | None] = (),
        *,
        texts: str | Sequence[str | None] = (),
        model: str | None = None,
        threshold: float | None = None,
        level: str | None = None,
    ) -> PredictAnswer:
        """Predict posts; results are in order, and unreadable photos have an `error`.

        Args:
            photos: One or more; None for a post without one.
            texts: One per photo, None for a post without text; or without photos, for a model that can use text alone.
            model: Model name; default: the service's first.
            threshold: Smallest probability of a predicted label.
            level: Level of the taxonomy for the scores.

        Raises:
            ServiceError: The request is rejected, or none of its photos can be read.
            IntclipError: A file cannot be read, or there is neither photo nor text.
        """
        several = [photos] if isinstance(photos, str | os.PathLike | bytes) else photos
        words = [texts] if isinstance(texts, str) else texts
        fields = {"model": model, "threshold": threshold, "level": level}
        if not len(several) and not len(words):
            raise IntclipError("no photos; give at least one, or texts")
        files = [_file("images", photo, place) for place, photo in enumerate(several, start=1)]
        return self._send("/v1/predict", files, fields | {"texts": [text or "" for text in words]}, PredictAnswer)

    def explain(
        self,
        photo: PhotoSource,
        label: str,
        *,
        model: str | None = None,
        picture: bool = False,
        branch: MapName = "fused",
        kind: MapKind = "regions",
    ) -> Explanation:
        """Return the evidence for a label in a photo.

        Args:
            photo: The photo.
            label: Name or alias of a label.
            model: Model name; default: the service's first.
            picture: Also return the photo with the map.
            branch: Map to draw.
            kind: "fine" for a finer map, ten passes instead of one.

        Raises:
            ServiceError: The request is rejected, or the photo cannot be read.
            IntclipError: The file cannot be read.
        """
        fields = {"label": label, "model": model, "picture": str(picture).lower(), "branch": branch, "kind": kind}
        return self._send("/v1/explain", [_file("image", photo, 1)], fields, Explanation)

    def models(self) -> list[ModelInfo]:
        """List the served models, default first."""
        return self._ask("GET", "/v1/models", TypeAdapter(list[ModelInfo]))

    def taxonomies(self) -> list[TaxonomyInfo]:
        """List the models' labels."""
        return self._ask("GET", "/v1/taxonomies", TypeAdapter(list[TaxonomyInfo]))

    def ready(self) -> bool:
        """Return whether the service is ready; False if it cannot be reached."""
        try:
            return self._http.get("/readyz").status_code == 200
        except _UNREACHED:
            return False

    def _send(self, path: str, files: Sequence[_File], fields: Mapping[str, object], kind: type[Answer]) -> Answer:
        parts: list[Any] = list(files)
        for name, value in fields.items():
            several = value if isinstance(value, list) else [] if value is None else [value]
            parts += [(name, (None, _utf8(str(one)))) for one in several]
        return self._ask("POST", path, TypeAdapter(kind), files=parts)

    def _ask(self, method: str, path: str, kind: TypeAdapter[Answer], **content: Any) -> Answer:
        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: getattr(error, "status", None) in _LATER),
            wait=_asked_wait,
            stop=tenacity.stop_after_attempt(self._attempts),
            reraise=True,
        )
        answer = again(self._once, method, path, **content)
        try:
            return kind.validate_json(answer)
        except ValidationError as error:
            raise ServiceError(f"{self._url} did not answer like intclip {__version__}; check the URL") from error

    def _once(self, method: str, path: str, **content: Any) -> bytes:
        try:
            response = self._http.request(method, path, **content)
        except _UNREACHED as error:
            raise _unreached(self._url, error) from error
        if response.is_success:
            return response.content
        after = response.headers.get("Retry-After", "")
        raise ServiceError(_detail(response), response.status_code, float(after) if after.isdecimal() else None)


def _unreached(url: str, error: Exception) -> ServiceError:
    told = f"no answer from {url} ({str(error) or type(error).__name__}); is `intclip serve` running there?"
    return ServiceError(" ".join(told.split()))


def _utf8(text: str) -> str:
    """Replace what UTF-8 cannot encode in a file's name or text."""
    return text.encode("utf-8", "replace").decode()


def _asked_wait(state: tenacity.RetryCallState) -> float:
    """Wait as requested by the service, or with exponential backoff, plus jitter."""
    error = state.outcome.exception() if state.outcome else None
    asked = getattr(error, "retry_after", None)
    least: float = min(asked if asked is not None else 0.5 * 2**state.attempt_number, _LONGEST_WAIT)
    return least * random.uniform(1, 1.25)


def _file(field: str, photo: PhotoSource | None, place: int) -> _File:
    if photo is None:
        return field, (None, b"", "text/plain")
    if isinstance(photo, bytes):
        return field, (f"image {place}", photo, "application/octet-stream")
    path = Path(photo)
    try:
        return field, (_utf8(path.name), path.read_bytes(), "application/octet-stream")
    except (OSError, ValueError) as error:
        raise IntclipError(f"cannot read {path}: {reason(error)}; check the path") from error


def _detail(response: httpx2.Response) -> str:
    """Return the service's message, or a summary of another response."""
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{response.request.url.host} answered {response.status_code} {response.reason_phrase}"
