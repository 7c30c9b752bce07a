"""Client of OpenAI-compatible chat endpoints, with retries and a cache that records each answer's provenance.

It is independent of the task: HCI requests sentences (`hci.py`), and messages may contain images as content
parts (`{"type": "image_url", …}`) for vision models.
"""

import hashlib
import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from intclip.errors import LanguageModelError
from intclip.extras import require
from intclip.files import write_text

Message = Mapping[str, Any]
"""A message: `role` and `content`, a text or a list of content parts."""


@dataclass(frozen=True)
class Answer:
    """A model's answer and its provenance.

    Attributes:
        text: The answer.
        finish: "stop", or "length" if the answer was cut off at `max_tokens`.
        model: The requested model.
        served_by: The model reported by the endpoint.
        endpoint: Base URL; empty for the library's default.
        prompt_hash: SHA-256 over messages, model, endpoint and sampling settings: the key of the cache.
        date: When the endpoint answered, ISO 8601 in UTC.
        cached: Whether it came from the cache.
    """

    text: str
    finish: str
    model: str
    served_by: str
    endpoint: str
    prompt_hash: str
    date: str
    cached: bool = False


@dataclass(frozen=True)
class Retries:
    """How failed requests are repeated: after 429, 5xx, lost connections and unusable answers.

    Attributes:
        attempts: Attempts per request.
        backoff: Seconds before the second attempt, doubled each time, with jitter.
        longest: Maximum delay in seconds, even if the endpoint requests a longer one.
    """

    attempts: int = 5
    backoff: float = 1
    longest: float = 60


class _Unusable(Exception):
    """The endpoint's answer was not a chat completion; a retry may help."""


class ChatClient:
    """Client for one model at one endpoint.

    Args:
        model: Name of the model at the endpoint.
        base_url: Such as http://localhost:11434/v1 (Ollama), http://localhost:8000/v1 (vLLM);
            default: `$OPENAI_BASE_URL`, else OpenAI.
        api_key: Default: `$OPENAI_API_KEY`; local servers need none.
        cache: Folder of answers, one JSON file each; None disables it.
        timeout: Timeout of a request in seconds.
        retries: How failed requests are repeated.
        temperature: Sampling temperature; 0 is greedy.

    Raises:
        MissingExtraError: The extra `llm` is not installed.
        LanguageModelError: The endpoint needs a key and there is none.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        cache: str | os.PathLike[str] | None = None,
        timeout: float = 60,
        retries: Retries = Retries(),
        temperature: float = 0,
    ) -> None:
        self._openai = require("openai", "llm")
        self._tenacity = require("tenacity", "llm")
        self.model = model
        self.endpoint = base_url or os.environ.get("OPENAI_BASE_URL") or ""
        self.cache = None if cache is None else Path(cache)
        self.temperature = temperature
        self._retries = retries
        key = api_key or os.environ.get("OPENAI_API_KEY")
        if not key and not self.endpoint:
            raise LanguageModelError(
                "no API key; set OPENAI_API_KEY, or name your own server with --base-url http://…/v1"
            )
        self._client = self._openai.OpenAI(
            base_url=self.endpoint or None, api_key=key or "none", timeout=timeout, max_retries=0
        )

    def ask(self, messages: Sequence[Message], *, max_tokens: int = 1024) -> Answer:
        """Return the model's answer to a conversation, from the cache if available.

        Raises:
            LanguageModelError: The endpoint rejects the request (wrong key, model or URL), or all attempts failed.
            StorageError: The cache cannot be written.
        """
        request, digest = self._request(messages, max_tokens)
        if (known := self._recall(digest)) is not None:
            return known
        completion = self._complete(request)
        choice = completion.choices[0]
        answer = Answer(
            text=choice.message.content,
            finish=str(choice.finish_reason or "stop"),
            model=self.model,
            served_by=str(completion.model or self.model),
            endpoint=self.endpoint,
            prompt_hash=digest,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        if self.cache is not None:
            record = asdict(answer) | {"temperature": self.temperature, "max_tokens": max_tokens}
            del record["cached"]
            record["messages"] = [_without_images(message) for message in messages]
            write_text(self._path(digest), json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        return answer

    def recall(self, messages: Sequence[Message], *, max_tokens: int = 1024) -> Answer | None:
        """Return the cached answer that `ask` would use; None if it would send a request."""
        return self._recall(self._request(messages, max_tokens)[1])

    def forget(self, answer: Answer) -> None:
        """Remove a useless answer from the cache, so that it is requested again next time."""
        if self.cache is not None:
            self._path(answer.prompt_hash).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _request(self, messages: Sequence[Message], max_tokens: int) -> tuple[dict[str, Any], str]:
        """Return the request, and the cache key of its answer."""
        request = {"model": self.model, "messages": list(messages), "temperature": self.temperature}
        request["max_tokens"] = max_tokens
        return request, hashlib.sha256(_canonical({**request, "endpoint": self.endpoint}).encode()).hexdigest()

    def _path(self, digest: str) -> Path:
        assert self.cache is not None
        return self.cache / f"{digest}.json"

    def _recall(self, digest: str) -> Answer | None:
        """Read a cached answer; damaged or foreign files count as missing and are overwritten."""
        if self.cache is None:
            return None
        try:
            record = json.loads(self._path(digest).read_text(encoding="utf-8"))
            fields = {name: record[name] for name in Answer.__dataclass_fields__ if name != "cached"}
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if fields["prompt_hash"] != digest or not all(isinstance(value, str) for value in fields.values()):
            return None
        return Answer(**fields, cached=True)

    def _complete(self, request: Mapping[str, Any]) -> Any:
        """Request a chat completion with text, with up to `Retries.attempts` attempts."""
        tenacity = self._tenacity
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._retries.attempts),
            retry=tenacity.retry_if_exception(self._worth_another_try),
            wait=self._pause,
            reraise=True,
        )
        try:
            return retrying(self._complete_once, request)
        except (self._openai.OpenAIError, _Unusable, ValueError) as error:
            raise self._explain(error) from error

    def _complete_once(self, request: Mapping[str, Any]) -> Any:
        completion = self._client.chat.completions.create(**request)
        choices = getattr(completion, "choices", None)
        if not choices:
            raise _Unusable(f"an answer without choices: {str(completion)[:60]!r}")
        message = choices[0].message
        if message is None or not isinstance(message.content, str) or not message.content.strip():
            raise _Unusable("an empty answer")
        return completion

    def _worth_another_try(self, error: BaseException) -> bool:
        openai = self._openai
        if isinstance(error, openai.RateLimitError):
            return bool(error.code != "insufficient_quota")
        if isinstance(error, openai.APIStatusError):
            return error.status_code >= 500 or error.status_code in (408, 409)
        # The client library raises ValueError for a body that is not JSON.
        return isinstance(error, openai.APIConnectionError | openai.APIResponseValidationError | _Unusable | ValueError)

    def _pause(self, state: Any) -> float:
        """Return the delay before the next attempt: Retry-After, else exponential with jitter; at most `longest`."""
        error = state.outcome.exception()
        asked = str(error.response.headers.get("retry-after", "")) if hasattr(error, "response") else ""
        growing = self._retries.backoff * 2.0 ** (int(state.attempt_number) - 1) * (1 + random.random() / 4)
        return min(max(growing, float(asked) if asked.isdecimal() else 0.0), self._retries.longest)

    def _explain(self, error: Exception) -> LanguageModelError:
        openai = self._openai
        where = self.endpoint or "OpenAI"
        if isinstance(error, openai.APITimeoutError):
            return LanguageModelError(f"{where} did not answer in time; raise --timeout or use a smaller model")
        if isinstance(error, openai.APIConnectionError):
            return LanguageModelError(f"{where} cannot be reached; is the server running at this --base-url?")
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return LanguageModelError(f"{where} rejects the API key; set OPENAI_API_KEY to a valid one")
        if isinstance(error, openai.NotFoundError):
            return LanguageModelError(
                f"{where} has no model {self.model!r} (or no /chat/completions); check --model and --base-url"
            )
        if isinstance(error, openai.APIStatusError):
            reason = f"HTTP {error.status_code}: {' '.join(str(error.message).split())[:200]}"
            return LanguageModelError(f"{where} failed with {reason}; try again later or check the request")
        what = " ".join(str(error).split())[:120]
        return LanguageModelError(f"{where} gave no usable answer ({what}); is --base-url OpenAI-compatible?")


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _without_images(message: Message) -> dict[str, Any]:
    """Return the message for the cache, with embedded images replaced by their digests."""
    content = message["content"]
    if isinstance(content, list):
        content = [_shortened(part) for part in content]
    return {**message, "content": content}


def _shortened(part: Any) -> Any:
    if isinstance(part, Mapping) and part.get("type") == "image_url":
        url = str(part["image_url"]["url"])
        if url.startswith("data:"):
            kind, _, data = url.partition(",")
            return {"type": "image_url", "sha256": hashlib.sha256(data.encode()).hexdigest(), "kind": kind}
    return part
