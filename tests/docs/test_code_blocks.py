"""Code blocks of the documents: commands parse with today's options, Python blocks run.

For Python blocks that need the reader's weights, data or service, only imports are checked.
"""

import ast
import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer.main
from PIL import Image

from intclip.cli.main import app

HOME = Path(__file__).parents[2]
PAGES = [HOME / "README.md", *sorted((HOME / "docs").glob("*.md")), *sorted((HOME / "docs" / "tutorials").glob("*.md"))]
ROOT = typer.main.get_command(app)

BEFORE = {
    "README.md": "",
    "docs/evidence.md": "import intclip",
    "docs/taxonomies.md": "import numpy as np\nprobabilities = np.full((2, 28), 0.5, dtype=np.float32)",
    "docs/api.md": "",
}
"""Pages whose blocks run, with the preceding steps; other pages' blocks need data or weights."""


def blocks(page: Path, *languages: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return [
        code for language, code in re.findall(r"^```(\w+)[^\n]*\n(.*?)^```", text, re.M | re.S) if language in languages
    ]


def commands(page: Path) -> list[list[str]]:
    """Return the arguments of every `intclip` command in the page's shell blocks and inline code."""
    text = page.read_text(encoding="utf-8")
    lines = [line for code in blocks(page, "sh", "console", "bash") for line in code.replace("\\\n", " ").splitlines()]
    lines += [code for code in re.findall(r"`([^`\n]+)`", text) if code.startswith("intclip ")]
    found = []
    for line in lines:
        if match := re.search(r"(?:^|[;&|]\s*|bin/)intclip\s+(.*)", line.split(" #")[0]):
            found.append(shlex.split(re.split(r"\s[|>&]|;", match[1])[0]))
    return found


def parse(words: list[str]) -> None:
    """Parse like the command line, without running anything."""
    command = ROOT
    while hasattr(command, "commands"):
        if not words or words[0].startswith("-"):
            return
        name, *words = words
        assert name in command.commands, f"no command {name}"
        command = command.commands[name]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if re.match(r"--?[a-z]", word):
            assert word.split("=")[0] in options | {"--help"}, f"{command.name} has no option {word}"


PARSED = [(page.relative_to(HOME).as_posix(), words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(("page", "words"), PARSED, ids=[f"{page}: {' '.join(words)}"[:90] for page, words in PARSED])
def test_commands_parse(page, words):
    parse(words)


PYTHON = [(page, code) for page in PAGES for code in blocks(page, "python")]


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=[page.relative_to(HOME).as_posix() for page, _ in PYTHON])
def test_imports_of_python_blocks_resolve(page, code):
    if code.startswith(" "):
        return  # a line of a larger literal
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("intclip"):
            module = importlib.import_module(node.module)
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []


RUN = [(page, code) for page, code in PYTHON if page.relative_to(HOME).as_posix() in BEFORE and "Client(" not in code]


@pytest.mark.parametrize(("page", "code"), RUN, ids=[page.relative_to(HOME).as_posix() for page, _ in RUN])
def test_python_blocks_run(page, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number, name in enumerate(("a.jpg", "b.jpg", "photo.jpg", "photos/c.jpg", "photos/d.jpg")):
        pixels = np.random.default_rng(number).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    exec(compile(BEFORE[page.relative_to(HOME).as_posix()] + "\n" + code, str(page), "exec"), {})
