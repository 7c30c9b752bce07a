"""A local hub: the few requests of `huggingface_hub` for one file, and failures."""

import hashlib
import threading
from contextlib import ExitStack

from local_server import LocalServer, QuietHandler, running

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves `files` ("owner/name/path" → content) at one commit.

    Attributes:
        requests: (method, path, Range header) of each request.
        break_after: Interrupt the next download after this number of bytes.
        stall_after: Stop the next download after this number of bytes, and keep the connection.
        corrupt: Serve other content than announced.
    """

    def __init__(self, files):
        self.files = files
        self.requests = []
        self.break_after = None
        self.stall_after = None
        self.stopped = threading.Event()
        self.corrupt = False
        hub = self

        class Handler(QuietHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                hub.answer(self, body=False)

            def do_GET(self):
                hub.answer(self, body=True)

        self.server = LocalServer(Handler)
        self.life = ExitStack()

    @property
    def address(self):
        return self.server.url

    def __enter__(self):
        self.life.enter_context(running(self.server))
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.life.close()

    def answer(self, request, body):
        self.requests.append((request.command, request.path, request.headers.get("Range")))
        owner, name, _, revision, path = request.path.strip("/").split("/", 4)
        repository = f"{owner}/{name}"
        if not any(key.startswith(f"{repository}/") for key in self.files):
            return self.refuse(request, "RepoNotFound")
        if revision not in ("main", COMMIT):
            return self.refuse(request, "RevisionNotFound")
        if f"{repository}/{path}" not in self.files:
            return self.refuse(request, "EntryNotFound")
        content = self.files[f"{repository}/{path}"]
        etag = hashlib.sha256(content).hexdigest()
        if self.corrupt:
            content = bytes(len(content))
        start = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        part = content[start:]
        request.send_response(206 if start else 200)
        request.send_header("ETag", f'"{etag}"')
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("Accept-Ranges", "bytes")
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", str(len(part)))
        request.end_headers()
        if not body:
            return None
        if self.break_after is not None:
            part, self.break_after = part[: self.break_after], None
            request.close_connection = True
        if self.stall_after is not None:
            request.wfile.write(part[: self.stall_after])
            self.stall_after = None
            self.stopped.wait(60)
            return None
        request.wfile.write(part)
        return None

    @staticmethod
    def refuse(request, code):
        request.send_response(404)
        request.send_header("X-Error-Code", code)
        if code == "EntryNotFound":
            request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("Content-Length", "0")
        request.end_headers()
