"""`intclip mcp`: a Model Context Protocol server for photos in allowed folders."""

import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from intclip.cli.options import ModelChoice, with_options

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

    from intclip.evidence.evidence import Evidence
    from intclip.inference.predictor import Predictor

MOST_PHOTOS = 200
"""Maximum number of photos per call: answers must fit an assistant's context."""
LABELS_SHOWN = 5
PICTURE_SIDE = 1024
INSTRUCTIONS = (
    "intclip estimates why photos were taken or shared. Probabilities are a model's estimates, not facts about people. "
    "Paths are inside the folders that the user allowed; list_photos lists them."
)


class AllowedFolders:
    """Folders whose photos an assistant may use; paths and links to the outside are rejected.

    Args:
        folders: The folders.

    Raises:
        StorageError: One is not a folder.
    """

    def __init__(self, folders: Sequence[str | os.PathLike[str]]) -> None:
        from intclip.errors import StorageError

        for folder in folders:
            if not Path(folder).is_dir():
                raise StorageError(f"{folder} is not a folder; give folders whose photos the assistant may use")
        self.folders = [Path(folder).resolve(strict=True) for folder in folders]

    def find(self, path: str) -> Path:
        """Resolve a path, following links and "..".

        Raises:
            ImageError: It is outside or does not exist; the message is the same, so that it reveals
                nothing about files outside.
        """
        from intclip.errors import ImageError

        for base in self.folders:
            try:
                real = (base / path).resolve(strict=True)  # an absolute path replaces the base
            except (OSError, RuntimeError, ValueError):
                continue
            if real.is_file() and any(real.is_relative_to(folder) for folder in self.folders):
                return real
        raise ImageError(f"no photo {path!r} in the allowed folders; list_photos lists the photos")

    def read(self, path: str) -> bytes:
        """Read a photo's bytes without following a link that has replaced it in the meantime."""
        from intclip.errors import ImageError

        real = self.find(path)
        try:
            with os.fdopen(os.open(real, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as stream:
                return stream.read()
        except OSError as error:
            raise ImageError(f"{path} cannot be read: {error.strerror}") from error

    def photos(self) -> list[Path]:
        """List all photos in the folders, without links to the outside."""
        from intclip.data.images import find_images
        from intclip.errors import ImageError

        found: dict[Path, None] = {}
        for folder in self.folders:
            try:
                paths = find_images(folder)
            except ImageError:  # no photos
                continue
            for path in paths:
                try:
                    found[self.find(str(path))] = None
                except ImageError:
                    continue
        return list(found)


def make_server(folders: AllowedFolders, predictor: "Predictor", choice: ModelChoice, home: Path) -> "MCPServer":
    """Create the server with its tools.

    Args:
        folders: Allowed folders.
        predictor: The model.
        choice: How the model was chosen, for the index.
        home: Folder of the index for `search_photos`.
    """
    from mcp.server.mcpserver import Image, MCPServer
    from mcp.types import ToolAnnotations

    from intclip import __version__
    from intclip.errors import IntclipError

    server = MCPServer("intclip", instructions=INSTRUCTIONS, version=__version__, log_level="ERROR")
    reads = ToolAnnotations(read_only_hint=True, open_world_hint=False)

    @server.tool(annotations=reads)
    def list_photos(contains: str = "", first: int = 0) -> dict[str, Any]:
        """Lists photos in the allowed folders whose path has `contains`, at most 200 starting at number `first`."""
        found = [str(path) for path in folders.photos() if contains.casefold() in str(path).casefold()]
        first = max(0, first)
        return {"count": len(found), "photos": found[first : first + MOST_PHOTOS]}

    @server.tool(annotations=reads)
    def list_labels() -> dict[str, Any]:
        """Lists the labels and their definitions."""
        taxonomy = predictor.taxonomy
        labels = {name: taxonomy.definitions.get(name, "") for name in taxonomy.names}
        return {"taxonomy": taxonomy.name, "model": predictor.card.model, "note": predictor.note, "labels": labels}

    @server.tool(annotations=reads)
    @_explained()
    def predict(photos: list[str]) -> list[dict[str, Any]]:
        """Estimates why photos were taken: predicted labels and the most probable ones. At most 200 photos."""
        if len(photos) > MOST_PHOTOS:
            raise IntclipError(f"{len(photos)} photos at once; send at most {MOST_PHOTOS}")
        return [_predicted(predictor, folders, path) for path in photos]

    @server.tool(annotations=reads, structured_output=False)
    @_explained()
    def explain(photo: str, label: str) -> list[Any]:
        """Shows the evidence for a label in a photo: the photo under a map, bright where the evidence is strongest."""
        content = folders.read(photo)
        try:
            evidence = predictor.explain(content, label)
        except IntclipError as error:
            raise IntclipError(_named(error, photo)) from error
        text = f"{photo}: {evidence.label} {evidence.probability:.2f}; bright where the evidence is strongest"
        return [text, Image(data=_overlaid(content, evidence), format="jpeg")]

    @server.tool(annotations=reads)
    @_explained()
    def search_photos(text: str, count: int = 10) -> list[dict[str, Any]]:
        """Finds photos by what they show or mean, in English. The first search indexes all photos and takes a while."""
        from intclip.batch.job import JobOptions
        from intclip.search.index import update_index
        from intclip.search.query import PhotoIndex

        inside = folders.photos()
        if not inside:
            raise IntclipError("there are no photos in the allowed folders")
        update_index(home, [str(path) for path in inside], JobOptions(model=choice.options()))
        hits = PhotoIndex(home).by_text(text, top=max(1, min(count, MOST_PHOTOS)))
        return [{"photo": hit.path, "cosine": round(hit.score, 3)} for hit in hits]

    return server


@with_options
def mcp(
    folders: Annotated[list[Path], typer.Argument(help="Folders whose photos the assistant may read.")],
    *,
    choice: ModelChoice,
) -> None:
    """Let an assistant use the photos in some folders.

    It can predict, explain and search them through the Model Context Protocol (MCP). The assistant starts this
    command and communicates over standard input and output. Photos outside the folders cannot be read, not even
    through links. The search index is stored in the cache folder.

    intclip mcp ~/Pictures/holiday

    intclip mcp photos/ --model models/mine
    """
    from intclip.extras import require
    from intclip.files import cache_home

    require("mcp", "mcp")
    allowed = AllowedFolders(folders)
    predictor = choice.load()
    with tempfile.TemporaryDirectory(prefix="intclip-") as temporary:
        key = repr((sorted(map(str, allowed.folders)), choice)).encode()
        kept = cache_home()
        home = Path(temporary) / "index" if kept is None else kept / "mcp" / hashlib.sha256(key).hexdigest()[:24]
        home.parent.mkdir(parents=True, exist_ok=True)
        make_server(allowed, predictor, choice, home).run("stdio")


def _predicted(predictor: "Predictor", folders: AllowedFolders, path: str) -> dict[str, Any]:
    """Return the prediction for a photo, or why it cannot be read, as the assistant gets it."""
    from intclip.errors import IntclipError

    try:
        (found,) = predictor.predict(folders.read(path))
    except IntclipError as error:
        return {"photo": path, "error": _named(error, path)}
    scores = {name: round(value, 3) for name, value in found.top(LABELS_SHOWN)}
    return {"photo": path, "labels": found.labels, "clear": found.clear, "scores": scores}


def _overlaid(content: bytes, evidence: "Evidence") -> bytes:
    """Draw the evidence over a photo's file; return a JPEG."""
    from intclip.data.images import read_image
    from intclip.evidence.heat import overlay

    drawn = overlay(read_image(content), evidence.fused, evidence.box)
    drawn.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    stream = io.BytesIO()
    drawn.save(stream, "JPEG", quality=85)
    return stream.getvalue()


@contextmanager
def _explained() -> Iterator[None]:
    """Send the assistant an error's message; the server hides those of other exceptions than its own."""
    from mcp.server.mcpserver.exceptions import ToolError

    from intclip.errors import IntclipError

    try:
        yield
    except IntclipError as error:
        raise ToolError(str(error)) from error


def _named(error: Exception, path: str) -> str:
    """Return the error's message with the photo's path instead of the name for in-memory photos."""
    from intclip.data.images import describe

    return str(error).removeprefix("image 1: ").replace(describe(b""), path)
