"""The documentation site: `make docs` builds it into build/docs, with warnings as errors."""

import re
import sys
from pathlib import Path

import typer
import typer.cli
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from intclip.version import __version__

project = "intclip"
author = copyright = "The intclip developers"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
html_theme = "furo"
html_title = "intclip"
html_static_path = ["images"]
exclude_patterns = ["figures"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_use_ivar = True
nitpicky = False


PACKAGE = Path(__file__).parents[1] / "src" / "intclip"
# Pages that lie beside the code that they describe, and where the site shows them.
BESIDE_CODE = {"methods": PACKAGE.glob("methods/*/README.md"), "models": PACKAGE.glob("backbones/weights/*.md")}


def _write_pages(app: Sphinx) -> None:
    """Write the pages that come from the code: the commands' own help, the methods' READMEs, the models' cards."""
    from intclip.cli.main import app as commands

    command = typer.main.get_command(commands)
    context = typer.Context(command, info_name="intclip")
    text = typer.cli.get_docs_for_click(obj=command, ctx=context, name="intclip", title="Commands")
    reference = Path(app.srcdir, "reference")
    _write(reference / "commands.md", text)
    for kind, sources in BESIDE_CODE.items():
        names = []
        for source in sorted(sources):
            names.append(source.parent.name if source.name == "README.md" else source.stem)
            _write(reference / kind / f"{names[-1]}.md", source.read_text(encoding="utf-8"))
        listing = "\n".join(names)
        _write(
            reference / kind / "index.md",
            f"# {kind.capitalize()}\n\n```{{toctree}}\n:maxdepth: 1\n\n{listing}\n```\n",
        )


def _write(page: Path, text: str) -> None:
    """Write a page unless it is the same already, so that Sphinx does not read it again."""
    page.parent.mkdir(exist_ok=True)
    if not page.is_file() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")


def _point_into_site(app: Sphinx, name: str, content: list[str]) -> None:
    """Let links to files of the repository lead to their pages of the site, or be plain text where there is none."""
    text = re.sub(r"\]\((?:\.\./)+(?:src/intclip/methods/)?(\w+)/README\.md", r"](/reference/methods/\1.md", content[0])
    text = re.sub(r"\]\((?:\.\./)*src/intclip/backbones/weights/([\w+]+)\.md", r"](/reference/models/\1.md", text)
    text = re.sub(r"\]\((?:\.\./)+docs/", "](/", text)
    content[0] = re.sub(r"\[([^\]]+)\]\((?:\.\./)+(?:src|benchmarks|examples|tests|[A-Z]+\.md)[^)]*\)", r"\1", text)


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("builder-inited", _write_pages)
    app.connect("source-read", _point_into_site)
