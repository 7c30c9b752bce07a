"""Descriptions of photos by a vision-language model at any OpenAI-compatible endpoint.

By default the prompt contains no labels: descriptions written with the labels in
view cannot be used to evaluate them.
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

from intclip.data.images import data_url, read_image
from intclip.errors import ImageError, IntclipError, LanguageModelError
from intclip.labels.llm import Answer, ChatClient, Message

_PROMPTS = Path(__file__).parent / "prompts"
MAX_SIDE = 768
"""Longer photos are downscaled before sending, to save tokens and reveal no more than needed."""
TOKENS_A_PHOTO = 1200
"""Tokens of prompt and photo, for the initial cost estimate."""
MAX_TOKENS = 300
MOST_FAILURES = 3
"""Consecutive failures of the endpoint that stop a run."""
_QUALITY = 88


@dataclass(frozen=True)
class Described:
    """Result for one photo.

    Attributes:
        photo: Its path.
        text: The description, one paragraph; empty on error.
        answer: Provenance; None on error.
        error: Why there is no description.
        endpoint_failed: Whether it was the endpoint, and not the photo or the cost cap.
    """

    photo: str
    text: str
    answer: Answer | None = None
    error: str | None = None
    endpoint_failed: bool = False


@dataclass(frozen=True)
class Price:
    """Prices of an endpoint and a spending limit.

    Attributes:
        per_photo: Maximum price of a photo; 0 if free.
        cap: Maximum cost of a run; None for no limit.
    """

    per_photo: float = 0.0
    cap: float | None = None

    @classmethod
    def from_tokens(cls, prompt: float, answer: float, cap: float | None) -> "Price":
        """Return the maximum price of a photo from prices per million tokens of prompt and answer."""
        return cls((TOKENS_A_PHOTO * prompt + MAX_TOKENS * answer) / 1e6, cap)


def photo_prompt(labels: Sequence[str] = ()) -> str:
    """Return the prompt for a photo, with label names only if given."""
    text = (_PROMPTS / "photo.txt").read_text(encoding="utf-8").strip()
    if labels:
        more = Template((_PROMPTS / "photo_labels.txt").read_text(encoding="utf-8").strip())
        text += " " + more.substitute(labels="; ".join(labels))
    return text


def photo_message(photo: str | Path, prompt: str) -> Message:
    """Return a message with a photo, re-encoded without location, camera or time.

    Raises:
        ImageError: The photo cannot be read.
    """
    url = data_url(read_image(photo, min_side=MAX_SIDE), MAX_SIDE, quality=_QUALITY)
    parts = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": url}}]
    return {"role": "user", "content": parts}


def describe_photos(
    photos: Sequence[str | Path],
    client: ChatClient,
    *,
    prompt: str | None = None,
    workers: int = 4,
    price: Price | None = None,
) -> Iterator[Described]:
    """Describe photos, in order, with at most `workers` parallel requests and twice as many photos in memory.

    A photo that cannot be read or described gives a result with an error, and the others continue;
    three consecutive failures of the endpoint stop the run. Answers from the client's cache cost nothing.

    Args:
        photos: Paths.
        client: A client of the endpoint.
        prompt: The prompt; default: `photo_prompt()`.
        workers: Parallel requests.
        price: Cost limit; photos beyond it get an error.

    Raises:
        LanguageModelError: The endpoint failed three times in a row.
    """
    if workers < 1:
        raise IntclipError(f"workers must be at least 1, not {workers}")
    words = prompt or photo_prompt()
    budget = _Budget(price or Price())
    waiting: dict[int, Future[Described]] = {}
    failures = 0
    with ThreadPoolExecutor(workers) as pool:
        try:
            sent = 0
            for position in range(len(photos)):
                while sent < len(photos) and sent - position < 2 * workers:
                    waiting[sent] = pool.submit(_describe, photos[sent], client, words, budget)
                    sent += 1
                wait([waiting[position]], return_when=FIRST_COMPLETED)
                found = waiting.pop(position).result()
                yield found
                failures = failures + 1 if found.endpoint_failed else 0
                if failures == MOST_FAILURES:
                    raise LanguageModelError(str(found.error))
        finally:
            for future in waiting.values():
                future.cancel()


def is_local(base_url: str) -> bool:
    """Return whether an endpoint runs on this machine, so that no photo leaves it."""
    host = urlsplit(base_url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def privacy_statement(count: int, endpoint: str, model: str) -> str:
    """Return the notice shown before photos are sent."""
    where = endpoint or "https://api.openai.com"
    return (
        f"{count} photos will be sent to {where} (model {model}), reduced to {MAX_SIDE} pixels and "
        "without metadata (location, camera, time). The server's operator can see and keep them. People in the photos "
        "may not have agreed to that."
    )


class _Budget:
    """Tracks spending over all threads: reserved before a request, released if it fails."""

    def __init__(self, price: Price) -> None:
        self._price = price
        self._spent = 0.0
        self._lock = threading.Lock()

    def take(self) -> bool:
        with self._lock:
            if self._price.cap is not None and self._spent + self._price.per_photo > self._price.cap + 1e-12:
                return False
            self._spent += self._price.per_photo
            return True

    def give_back(self) -> None:
        with self._lock:
            self._spent -= self._price.per_photo


def _describe(photo: str | Path, client: ChatClient, prompt: str, budget: _Budget) -> Described:
    name = str(photo)
    try:
        message = photo_message(photo, prompt)
    except ImageError as error:
        return Described(name, "", error=str(error))
    known = client.recall([message], max_tokens=MAX_TOKENS)
    if known is None and not budget.take():
        return Described(name, "", error=f"{name}: cost limit reached; raise --max-cost and run again to continue")
    try:
        answer = known or client.ask([message], max_tokens=MAX_TOKENS)
    except LanguageModelError as error:
        budget.give_back()
        return Described(name, "", error=str(error), endpoint_failed=True)
    return Described(name, " ".join(answer.text.split()), answer)
