"""Parse requests (JSON with base64, or forms with files) within limits of size and time, off the event loop."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn, TypeVar, get_origin

from fastapi import HTTPException
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as StarletteError
from starlette.requests import Request
from starlette.types import Message

from intclip.errors import IntclipError, first_problem
from intclip.serving.settings import Settings

Asked = TypeVar("Asked", bound=BaseModel)

JSON, FORM = "application/json", "multipart/form-data"
_CLOSE = {"Connection": "close"}  # the rest of a rejected body is not read
_NAME = 120


class Uploads:
    """Counts the bytes of requests in progress.

    Args:
        most: Maximum bytes of one request; larger ones get 413, from the header if possible.
        most_together: Maximum bytes of all requests; more get 429.

    Attributes:
        bytes: Current count; changed only on the event loop's thread.
    """

    def __init__(self, most: int, most_together: int) -> None:
        self.bytes = 0
        self._most, self._most_together = most, most_together

    @contextmanager
    def counted(self, request: Request) -> Iterator[Request]:
        """Count the request's bytes until the block ends."""
        held = 0
        length = request.headers.get("content-length", "")
        self._check(int(length) if length.isdecimal() else 0)

        async def receive() -> Message:
            nonlocal held
            message = await request.receive()
            size = len(message.get("body", b""))
            held += size
            self.bytes += size
            self._check(held)
            return message

        try:
            yield Request(request.scope, receive)
        finally:
            self.bytes -= held

    def _check(self, size: int) -> None:
        if size > self._most:
            large = f"the request is larger than {self._most / 1e6:g} MB; send fewer or smaller photos"
            raise HTTPException(413, large, _CLOSE)
        if self.bytes > self._most_together:
            raise HTTPException(429, "too many uploads at once; try again in 2 s", {"Retry-After": "2"} | _CLOSE)


async def read_body(request: Request, kind: type[Asked], settings: Settings) -> tuple[Asked, list[str | None]]:
    """Parse a request of either media type; return it and the names of its files, one per photo.

    Raises:
        HTTPException: 408 too slow, 413 too large, 415 unsupported media type, 400 malformed form, 422 fields in the
            URL, where they would be ignored.
        IntclipError: The fields are invalid.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.query_params:
        field = next(iter(request.query_params))[:_NAME]
        raise HTTPException(422, f"{field!r} is in the URL's query; send it as a field of the body", _CLOSE)
    if media not in (JSON, FORM):
        raise HTTPException(415, f"send {FORM} or {JSON}, not {media[:80] or 'an unnamed type'}", _CLOSE)
    try:
        async with asyncio.timeout(settings.upload_seconds):
            if media == FORM:
                return await _read_form(request, kind, settings)
            body = await request.body()
    except TimeoutError:
        slow = f"the request took longer than {settings.upload_seconds:g} s to arrive; send smaller photos"
        raise HTTPException(408, slow, _CLOSE) from None
    except StarletteError as error:
        if error.status_code != 400:
            raise
        what, most = error.detail.rstrip("."), settings.max_photos
        hint = f"let curl -F or a library build the form and its Content-Type, with at most {most} photos"
        raise HTTPException(400, f"{what[0].lower()}{what[1:]}; {hint}", _CLOSE) from None
    return await run_in_threadpool(partial(_parse_json, kind, body)), []


def _parse_json(kind: type[Asked], body: bytes) -> Asked:
    try:
        return kind.model_validate_json(body, strict=True)
    except ValidationError as error:
        _refuse(error)


async def _read_form(request: Request, kind: type[Asked], settings: Settings) -> tuple[Asked, list[str | None]]:
    # A photo may come as base64 in a plain field, so a field may be as large as the request.
    limits = {"max_files": settings.max_photos, "max_fields": 2 * settings.max_photos + 80}
    async with request.form(**limits, max_part_size=settings.max_body_bytes) as form:
        lists = {name for name, field in kind.model_fields.items() if get_origin(field.annotation) is list}
        found: dict[str, Any] = {}
        names: list[str | None] = []
        for key, value in form.multi_items():
            content = await value.read() if isinstance(value, UploadFile) else value
            if key in ("images", "image"):
                names.append(_base_name(value.filename) if isinstance(value, UploadFile) else None)
            if key in lists:
                blank = not content and not isinstance(value, UploadFile)
                found.setdefault(key, []).append(None if blank else content)
            elif key in found:
                raise IntclipError(f"{key} is given twice")
            else:
                found[key] = content
    if any(isinstance(photo, str) for photo in (*found.get("images", ()), found.get("image"))):
        return await run_in_threadpool(partial(_parse_form, kind, found)), names  # base64 is slow
    return _parse_form(kind, found), names


def _parse_form(kind: type[Asked], found: dict[str, Any]) -> Asked:
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        _refuse(error)


def _base_name(name: str | None) -> str | None:
    """Return a file's name without folders, shortened."""
    return (name or "").replace("\\", "/").rpartition("/")[2][:_NAME] or None


def _refuse(error: ValidationError) -> NoReturn:
    """Return an error that names the field but quotes nothing of the request."""
    first = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(map(str, first["loc"][:2]))[:_NAME]
    message = first_problem(error)[1]
    if first["type"] == "extra_forbidden":
        raise IntclipError(f"unknown field {place!r}; /docs lists the fields") from None
    raise IntclipError(f"{place}: {message}" if place else message) from None
