"""A local chat endpoint that answers as configured: correctly, wrongly, late, or not at all."""

import json
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

from local_server import LocalServer, QuietHandler, running

Reply = Callable[["Handler", dict[str, Any]], None]
"""Answers a request, given its JSON."""


class Handler(QuietHandler):
    server: "Server"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(request)
            self.server.keys.append(self.headers.get("Authorization", ""))
            reply = self.server.script.pop(0) if self.server.script else self.server.otherwise
        with suppress(OSError):  # the client may have gone
            reply(self, request)

    def reply(self, content: bytes, status: int = 200, kind: str | None = "application/json", **headers: str) -> None:
        super().reply(content, status, kind, **headers)


class Server(LocalServer):
    def __init__(self, otherwise: Reply) -> None:
        super().__init__(Handler)
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.script: list[Reply] = []
        self.otherwise = otherwise

    @property
    def url(self) -> str:
        return f"{super().url}/v1"


def serving(otherwise: Reply | None = None) -> AbstractContextManager[Server]:
    return running(Server(otherwise or good))


def completion(text: str | None, finish: str = "stop") -> bytes:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return json.dumps(
        {"id": "1", "object": "chat.completion", "created": 1, "model": "fake-1", "choices": [choice]}
    ).encode()


def says(text: str | None, finish: str = "stop") -> Reply:
    return lambda handler, request: handler.reply(completion(text, finish))


def status(code: int, error: str = "no", retry_after: str | None = None, kind: str | None = None) -> Reply:
    body = json.dumps({"error": {"message": error, "code": kind}}).encode()
    headers = {} if retry_after is None else {"Retry_After": retry_after}
    return lambda handler, request: handler.reply(body, code, **headers)


def late(seconds: float) -> Reply:
    def reply(handler: Handler, request: dict[str, Any]) -> None:
        time.sleep(seconds)
        handler.reply(completion("too late"))

    return reply


def cut_off(handler: Handler, request: dict[str, Any]) -> None:
    """Announce a whole answer, send half of it, and disconnect."""
    body = completion("hello")
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.wfile.flush()
    handler.connection.close()


def half_json(handler: Handler, request: dict[str, Any]) -> None:
    body = completion("hello")
    handler.reply(body[: len(body) // 2])


def html(handler: Handler, request: dict[str, Any]) -> None:
    handler.reply(b"<html>Welcome to this hotel's network</html>", kind="text/html")


def no_choices(handler: Handler, request: dict[str, Any]) -> None:
    handler.reply(b'{"id": "1", "object": "chat.completion", "created": 1, "model": "fake-1", "choices": []}')


def asked_names(request: dict[str, Any]) -> list[str]:
    """Return the class names that the last turn requires as keys."""
    text = request["messages"][-1]["content"]
    return re.findall(r"^- (.+)$", text.rpartition(":\n")[2], flags=re.MULTILINE)


def word_range(request: dict[str, Any]) -> tuple[int, int] | None:
    """Return the word range in the prompt of stage 2; None in stage 1."""
    found = re.search(r"at least (\d+) and at most (\d+) words", request["messages"][0]["content"])
    return (int(found[1]), int(found[2])) if found else None


def sentence(name: str, words: int) -> str:
    tail = "shown in a photo that people took because they like it so very much today and again tomorrow"
    return " ".join([name.replace(" ", "-"), *tail.split()][:words])


def answers(request: dict[str, Any], words: int | None = None) -> dict[str, str]:
    wanted = word_range(request)
    count = words if words is not None else wanted[0] + 1 if wanted else 3
    return {name: sentence(name, count) for name in asked_names(request)}


def good(handler: Handler, request: dict[str, Any]) -> None:
    """Return valid texts for all names, in a code fence after a greeting, as models do."""
    handler.reply(completion(f"Sure!\n```json\n{json.dumps(answers(request))}\n```"))


def edited(change: Callable[[dict[str, str], dict[str, Any]], Any]) -> Reply:
    """Return valid texts with a change."""

    def reply(handler: Handler, request: dict[str, Any]) -> None:
        texts: Any = answers(request)
        changed = change(texts, request)
        handler.reply(completion(json.dumps(texts if changed is None else changed)))

    return reply
