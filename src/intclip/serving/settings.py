"""Limits of the service."""

import re

from pydantic import BaseModel, Field, SecretStr, model_validator

from intclip.data.images import MAX_PIXELS
from intclip.serving.answers import check_key
from intclip.serving.batcher import MAX_CHARACTERS


class Settings(BaseModel, frozen=True, extra="forbid"):
    """Limits and timeouts of the service.

    Attributes:
        capacity: Maximum photos in progress; more get 429 and Retry-After.
        max_batch: Maximum photos per batch.
        decoders: Decoding threads; default: the number of usable cores.
        max_photos: Maximum photos per request.
        max_pixels: Maximum pixels per photo.
        max_characters: Maximum characters per text.
        max_body_bytes: Maximum bytes per request.
        max_bytes_inside: Maximum bytes of all requests in progress; more get 429.
        upload_seconds: Timeout of an upload.
        answer_seconds: Timeout of an answer.
        api_key: Key that clients send as `Authorization: Bearer KEY`; None allows everyone.
        cors_origins: Allowed origins of web pages; default: none.
        hosts: Allowed host names, see `intclip.serving.hosts`; default: all.
    """

    capacity: int = Field(default=256, ge=2)
    max_batch: int = Field(default=32, ge=1)
    decoders: int | None = Field(default=None, ge=1)
    max_photos: int = Field(default=32, ge=1)
    max_pixels: int = Field(default=50_000_000, ge=1, le=MAX_PIXELS)
    max_characters: int = Field(default=MAX_CHARACTERS, ge=1)
    max_body_bytes: int = Field(default=32_000_000, ge=1)
    max_bytes_inside: int = Field(default=512_000_000, ge=1)
    upload_seconds: float = Field(default=30, gt=0)
    answer_seconds: float = Field(default=60, gt=0)
    api_key: SecretStr | None = None
    cors_origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> "Settings":
        if self.max_photos > self.capacity:
            raise ValueError(f"max_photos {self.max_photos} is above capacity {self.capacity}: it could never be used")
        if self.max_body_bytes > self.max_bytes_inside:
            raise ValueError("max_body_bytes is above max_bytes_inside: it could never be used")
        if self.api_key is not None:
            check_key(self.api_key.get_secret_value())
        for origin in self.cors_origins:  # compared literally with what a browser sends
            if not re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#\sA-Z]+", origin):
                raise ValueError(f"{origin!r} is not an origin; write https://example.org, without a path")
        return self
