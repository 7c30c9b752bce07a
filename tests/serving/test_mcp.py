"""`intclip mcp`: an assistant's calls, and no access outside the allowed folders."""

import base64
import io
import os
import shutil
import sys
from pathlib import Path

import anyio
import pytest
from mcp import Client, StdioServerParameters
from PIL import Image

import intclip
from intclip.cli.mcp import MOST_PHOTOS, AllowedFolders, make_server
from intclip.cli.options import ModelChoice
from intclip.data.demo_photos import demo_photos
from intclip.errors import ImageError, StorageError

CHOICE = ModelChoice(engine="torch")


@pytest.fixture(scope="module")
def model():
    return CHOICE.load()


@pytest.fixture
def home(tmp_path):
    """An allowed folder with photos and traps, next to a folder with a secret photo."""
    allowed, secret = tmp_path / "allowed", tmp_path / "secret"
    (allowed / "trip").mkdir(parents=True)
    secret.mkdir()
    for name, path in (("cat.png", "chelsea"), ("trip/cup.png", "coffee"), ("astronaut.png", "astronaut")):
        source = next(photo for photo in demo_photos() if path in photo.name)
        shutil.copy(source, allowed / name)
    shutil.copy(allowed / "cat.png", secret / "secret.png")
    (allowed / "link.png").symlink_to(secret / "secret.png")
    (allowed / "folder").symlink_to(secret)
    (allowed / "inside.png").symlink_to(allowed / "cat.png")
    (allowed / "loop").symlink_to(allowed)
    (tmp_path / "allowed-too").mkdir()
    shutil.copy(allowed / "cat.png", tmp_path / "allowed-too" / "near.png")
    (allowed / "notes.txt").write_text("not a photo")
    return tmp_path


OUTSIDE = [
    "../secret/secret.png",
    "trip/../../secret/secret.png",
    "link.png",
    "folder/secret.png",
    "loop/loop/../../secret/secret.png",
    "../allowed-too/near.png",
    "/etc/passwd",
    "/proc/self/environ",
    "missing.png",
    "",
    ".",
    "trip",
    "cat.png\0",
    "~/cat.png",
    "file:///etc/passwd",
    "x" * 5000,
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_outside_is_found_and_all_refusals_sound_alike(home, path):
    folders = AllowedFolders([home / "allowed"])
    with pytest.raises(ImageError) as refused:
        folders.read(path)
    assert str(refused.value) == f"no photo {path!r} in the allowed folders; list_photos lists the photos"


def test_absolute_paths_outside_are_refused_too(home):
    folders = AllowedFolders([home / "allowed"])
    for path in (home / "secret" / "secret.png", home / "allowed" / ".." / "secret" / "secret.png"):
        with pytest.raises(ImageError):
            folders.read(str(path))
    assert folders.read(str(home / "allowed" / "cat.png")) == (home / "allowed" / "cat.png").read_bytes()
    assert folders.read("trip/../cat.png") == folders.read("inside.png") == folders.read("cat.png")


def test_a_link_that_takes_a_photo_s_place_is_not_followed(home, monkeypatch):
    folders = AllowedFolders([home / "allowed"])
    path = home / "allowed" / "cat.png"
    find = folders.find

    def swapped(asked):
        real = find(asked)
        path.unlink()
        path.symlink_to(home / "secret" / "secret.png")
        return real

    monkeypatch.setattr(folders, "find", swapped)
    with pytest.raises(ImageError):
        folders.read("cat.png")


def test_the_list_has_what_is_inside(home):
    inside = {path.relative_to(home / "allowed").as_posix() for path in AllowedFolders([home / "allowed"]).photos()}
    assert inside == {"cat.png", "trip/cup.png", "astronaut.png"}


def test_folders_that_are_none_are_refused(home):
    for wrong in (home / "nothing", home / "allowed" / "cat.png"):
        with pytest.raises(StorageError, match=wrong.name):
            AllowedFolders([wrong])


def ask(server, tool, **arguments):
    async def run():
        async with Client(server) as client:
            return await client.call_tool(tool, arguments)

    return anyio.run(run)


@pytest.fixture
def server(home, model):
    return make_server(AllowedFolders([home / "allowed"]), model, CHOICE, home / "index")


def test_predictions_are_those_of_the_model(home, model, server):
    found = ask(server, "predict", photos=["cat.png", "link.png", "notes.txt"]).structured_content["result"]
    expected = model.predict(home / "allowed" / "cat.png")[0]
    assert found[0]["labels"] == expected.labels
    assert found[0]["scores"] == {name: round(value, 3) for name, value in expected.top(5)}
    assert "allowed folders" in found[1]["error"]
    assert found[2]["error"].startswith("notes.txt")
    many = ask(server, "predict", photos=["cat.png"] * (MOST_PHOTOS + 1))
    assert many.is_error
    assert str(MOST_PHOTOS) in many.content[0].text


def test_evidence_is_a_picture_of_the_photo(model, server):
    label = model.taxonomy.names[0]
    text, picture = ask(server, "explain", photo="cat.png", label=label).content
    assert label in text.text
    drawn = Image.open(io.BytesIO(base64.b64decode(picture.data)))
    assert drawn.size == Image.open(next(photo for photo in demo_photos() if "chelsea" in photo.name)).size
    for wrong, named in (
        ({"photo": "link.png", "label": label}, "link.png"),
        ({"photo": "cat.png", "label": "x y"}, "x y"),
    ):
        refused = ask(server, "explain", **wrong)
        assert refused.is_error
        assert named in refused.content[0].text


def test_a_search_finds_what_is_inside_alone(home, server):
    found = ask(server, "search_photos", text="a cup of coffee on a table", count=10).structured_content["result"]
    assert found[0]["photo"] == str(home / "allowed" / "trip" / "cup.png")
    assert len(found) == 3
    (home / "allowed" / "trip" / "cup.png").unlink()
    found = ask(server, "search_photos", text="a cup of coffee on a table").structured_content["result"]
    assert len(found) == 2


def test_photos_and_labels_are_named(home, model, server):
    found = ask(server, "list_photos", contains="CUP").structured_content
    assert found == {"count": 1, "photos": [str(home / "allowed" / "trip" / "cup.png")]}
    labels = ask(server, "list_labels").structured_content
    assert list(labels["labels"]) == list(model.taxonomy.names)
    assert labels["note"] == model.note


@pytest.mark.slow
def test_the_command_speaks_the_protocol_over_its_streams(home):
    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "intclip.cli", "mcp", str(home / "allowed"), "--engine", "torch"],
        env=dict(os.environ) | {"INTCLIP_CACHE": "off", "PYTHONPATH": str(Path(intclip.__file__).parents[1])},
    )

    async def run():
        async with Client(command) as client:
            tools = {tool.name for tool in (await client.list_tools()).tools}
            return tools, await client.call_tool("predict", {"photos": ["cat.png", "../secret/secret.png"]})

    tools, found = anyio.run(run)
    assert tools == {"list_photos", "list_labels", "predict", "explain", "search_photos"}
    good, outside = found.structured_content["result"]
    assert good["scores"]
    assert "allowed folders" in outside["error"]
