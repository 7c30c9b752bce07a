"""A local endpoint of a language model, and a client."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_llm import Server, serving

from intclip.labels.llm import ChatClient, Retries


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture
def make_client(server: Server, tmp_path: Any) -> Iterator[Callable[..., ChatClient]]:
    made = []

    def make(attempts: int = 4, longest: float = 0.05, **options: Any) -> ChatClient:
        settings = {"base_url": server.url, "cache": tmp_path / "answers", "timeout": 5}
        client = ChatClient("fake", retries=Retries(attempts, 0.01, longest), **{**settings, **options})
        made.append(client)
        return client

    yield make
    for client in made:
        client.close()
