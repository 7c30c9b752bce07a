"""A client of the service, typed.

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

from intclip.errors import IntclipError
from intclip.serving.answers import Branch, Explanation, ModelInfo, PredictAnswer, TaxonomyInfo, check_key
from intclip.version import __version__

Photo = str | os.PathLike[str] | bytes
"""A file's path, or its bytes."""
Answer = TypeVar("Answer")
_File = tuple[str, tuple[str | None, bytes, str]]

_UNREACHED = (httpx2.RequestError, httpx2.InvalidURL, UnicodeError)
"""What httpx raises where no answer came; the last of a host's name that cannot be looked up."""
_LATER = (429, 503)
_LONGEST_WAIT = 60.0


class ServiceError(IntclipError):
    """The service refused a request, or cannot be reached.

    Args:
        message: Its own words, in one line.
        status: The HTTP status; None where there was no answer.
        retry_after: Seconds after which it asks to come again.
    """

    def __init__(self, message: str, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class Client:
    """Asks a service; it may be shared by threads.

    Args:
        url: Where the service is.
        api_key: If it wants one.
        timeout: Seconds to wait for an answer.
        attempts: How often to ask where the service is busy (429, 503), each time after as long as it says and a little
            more.

    Raises:
        ServiceError: The address is none.
        IntclipError: The key cannot travel in a header.
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
        photos: Photo | Sequence[Photo | None] = (),
        *,
        texts: str | Sequence[str | None] = (),
        model: str | None = None,
        threshold: float | None = None,
        level: str | None = None,
    ) -> PredictAnswer:
        """Results in the order of the posts; one whose photo cannot be read has an `error`.

        Args:
            photos: One or many; None for a post without one.
            texts: One a photo, None where a post has none; or without any photo, for a model that reads words alone.
            model: Its name; the service's first by default.
            threshold: A label holds from this probability on.
            level: Read the scores at this level of the taxonomy.

        Raises:
            ServiceError: The request is refused, or no photo of it can be read.
            IntclipError: A file cannot be read, or there is neither a photo nor a text.
        """
        several = [photos] if isinstance(photos, str | os.PathLike | bytes) else photos
        words = [texts] if isinstance(texts, str) else texts
        fields = {"model": model, "threshold": threshold, "level": level}
        if not len(several) and not len(words):
            raise IntclipError("there is no photo to ask about; give one or many, or texts")
        files = [_file("images", photo, place) for place, photo in enumerate(several, start=1)]
        return self._send("/v1/predict", files, fields | {"texts": [text or "" for text in words]}, PredictAnswer)

    def explain(
        self,
        photo: Photo,
        label: str,
        *,
        model: str | None = None,
        picture: bool = False,
        branch: Branch = "fused",
        fine: bool = False,
    ) -> Explanation:
        """Where in a photo the evidence of a label lies.

        Args:
            photo: The photo.
            label: Name or alias of a label.
            model: Its name; the service's first by default.
            picture: With the photo and the map over it.
            branch: Which map is drawn.
            fine: A finer map, by ten passes in place of one.

        Raises:
            ServiceError: The request is refused, or the photo cannot be read.
            IntclipError: The file cannot be read.
        """
        switches = {name: "true" for name, on in {"picture": picture, "fine": fine}.items() if on}
        fields = {"label": label, "model": model, "branch": branch, **switches}
        return self._send("/v1/explain", [_file("image", photo, 1)], fields, Explanation)

    def models(self) -> list[ModelInfo]:
        """The models that are served, the default first."""
        return self._ask("GET", "/v1/models", TypeAdapter(list[ModelInfo]))

    def taxonomies(self) -> list[TaxonomyInfo]:
        """The labels of the models."""
        return self._ask("GET", "/v1/taxonomies", TypeAdapter(list[TaxonomyInfo]))

    def ready(self) -> bool:
        """Whether the service takes requests; False where it cannot be reached."""
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
            raise ServiceError(
                f"{self._url} answers, but not as intclip {__version__} does; check the address"
            ) from error

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
    """A file's name, or the words of a post, as UTF-8 can carry it."""
    return text.encode("utf-8", "replace").decode()


def _asked_wait(state: tenacity.RetryCallState) -> float:
    """As long as the service says, or ever longer; and a little more, so that not all clients come at once."""
    error = state.outcome.exception() if state.outcome else None
    asked = getattr(error, "retry_after", None)
    least: float = min(asked if asked is not None else 0.5 * 2**state.attempt_number, _LONGEST_WAIT)
    return least * random.uniform(1, 1.25)


def _file(field: str, photo: Photo | None, place: int) -> _File:
    if photo is None:
        return field, (None, b"", "text/plain")
    if isinstance(photo, bytes):
        return field, (f"image {place}", photo, "application/octet-stream")
    path = Path(photo)
    try:
        return field, (_utf8(path.name), path.read_bytes(), "application/octet-stream")
    except (OSError, ValueError) as error:
        raise IntclipError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}; check the path"
        ) from error


def _detail(response: httpx2.Response) -> str:
    """The service's own line, or what answered in its place."""
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{response.request.url.host} answered {response.status_code} {response.reason_phrase}"
