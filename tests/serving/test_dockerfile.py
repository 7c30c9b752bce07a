"""The Dockerfile matches this project; hadolint (`make lint`) checks only the language."""

import inspect
import re
import shlex
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

from intclip.cli.serve import PORT, serve
from intclip.serving.client import Client

HOME = Path(__file__).parents[2]
TEXT = re.sub(
    r"\\\n\s*", "", re.sub(r"^#.*\n", "", (HOME / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
)
STEPS = [(line.split()[0], line.split(maxsplit=1)[1]) for line in TEXT.splitlines() if line.strip()]
STAGES = {words.split()[2] for step, words in STEPS if step == "FROM" and " AS " in words}


def told(step: str) -> list[str]:
    return [words for name, words in STEPS if name == step]


def test_what_it_copies_is_in_the_repository_and_in_the_context():
    sources = [word for words in told("COPY") if "--from" not in words for word in words.split()[:-1]]
    let_in = {line[1:] for line in (HOME / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
    assert {"constraints.txt", "pyproject.toml", "src"} <= set(sources)
    assert set(sources) <= let_in
    assert all((HOME / source).exists() for source in sources)
    project = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["readme"] in sources  # else the package cannot be built
    for words in told("COPY"):
        if "--from" in words:
            assert words.split()[0].removeprefix("--from=") in STAGES


def test_what_it_installs_is_pinned_and_enough_to_serve():
    installs = [part for words in told("RUN") for part in words.split("&&") if "pip install" in part]
    assert installs
    assert all("--constraint constraints.txt" in part for part in installs)
    extras = set(re.search(r"'\.\[(.*?)\]'", installs[-1]).group(1).split(","))
    declared = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert {"app"} <= extras <= set(declared)


def test_it_runs_without_root_and_listens_where_it_says():
    last = [name for name, _ in STEPS[max(i for i, (name, _) in enumerate(STEPS) if name == "FROM") :]]
    (user,) = told("USER")
    assert user.isdigit()
    assert int(user) > 0
    assert "USER" in last
    options = inspect.signature(serve).parameters
    entry = [word.strip('",') for word in told("ENTRYPOINT")[0].strip("[]").split()]
    command = [word.strip('",') for word in told("CMD")[0].strip("[]").split()]
    assert entry[:2] == ["intclip", "serve"]
    assert "--port" not in entry + command
    assert {word[2:].replace("-", "_") for word in entry + command if word.startswith("--")} <= set(options)
    (port,) = told("EXPOSE")
    assert int(port) == PORT
    address = inspect.signature(Client).parameters["url"].default  # the address of the health check
    assert urlsplit(address).port == int(port)


def test_its_python_is_python():
    health = told("HEALTHCHECK")[0]
    code = shlex.split(health.partition("CMD [")[2].rstrip("]").replace(",", " "))[2]
    compile(code, "HEALTHCHECK", "exec")
    assert "Client(timeout=4).ready()" in code
    for words in told("RUN"):
        for code in re.findall(r'python -c "(.*?)"', words):
            compile(code, "RUN", "exec")
