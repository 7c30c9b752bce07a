"""Limits of the service."""

import re

from pydantic import BaseModel, Field, SecretStr, model_validator

from intclip.data.images import MAX_PIXELS
from intclip.serving.answers import check_key
from intclip.serving.batcher import MAX_CHARACTERS


class Settings(BaseModel, frozen=True, extra="forbid"):
    """What the service takes, and for how long it waits.

    Attributes:
        capacity: Most photos inside at once; more are refused with 429 and Retry-After.
        max_batch: Most photos computed at once.
        decoders: Threads that decode; as many as there are usable cores by default.
        max_photos: Most photos of a request.
        max_pixels: Most pixels of a photo.
        max_characters: Longest text of a post.
        max_body_bytes: Largest request.
        max_bytes_inside: Bytes of all requests under way together; more are refused with 429.
        upload_seconds: A request must have come in whole after this long.
        answer_seconds: A request is given up after this long in the queue.
        api_key: Clients show it as `Authorization: Bearer KEY`; None lets everybody in.
        cors_origins: Web pages from these origins may ask; none by default.
        hosts: Host names that are answered, see `intclip.serving.hosts`; all of them by default.
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
            raise ValueError(f"max_photos {self.max_photos} is above capacity {self.capacity}: it could never be taken")
        if self.max_body_bytes > self.max_bytes_inside:
            raise ValueError("max_body_bytes is above max_bytes_inside: it could never be taken")
        if self.api_key is not None:
            check_key(self.api_key.get_secret_value())
        for origin in self.cors_origins:  # it is compared letter by letter with what a browser sends
            if not re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#\sA-Z]+", origin):
                raise ValueError(f"{origin!r} is no origin; write it as https://example.org, without a path")
        return self
