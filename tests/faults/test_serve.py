"""The service under faults: killed and restarted under load, terminated under load, and with a failing engine."""

import json
import signal
import threading
import time
from pathlib import Path

import pytest
from server_process import running
from watched import photo

from intclip.serving.client import Client, ServiceError

CLIENTS = 6
PHOTOS = 25
WAIT = 60


class Asker(threading.Thread):
    """A client that sends its photos one by one, and retries rejected requests until answered or stopped.

    Attributes:
        answered: The service's answer by level of red, in 255ths.
        refusals: Every rejection, as (status, message).
        leave: Set to stop it at the next rejection.
    """

    def __init__(self, url: str, number: int) -> None:
        super().__init__(daemon=True)
        self.levels = range(number, number + CLIENTS * PHOTOS, CLIENTS)
        self.answered: dict[int, float] = {}
        self.refusals: list[tuple[int | None, str]] = []
        self.leave = threading.Event()
        self._url = url

    def run(self) -> None:
        with Client(self._url, attempts=1) as client:
            for level in self.levels:
                while level not in self.answered:
                    try:
                        scores = client.predict(photo(level)).results[0].scores
                        self.answered[level] = 255 * scores["class 0"]
                    except ServiceError as error:
                        self.refusals.append((error.status, str(error)))
                        if self.leave.is_set():
                            return
                        time.sleep(0.2)

    @property
    def right(self) -> bool:
        return all(abs(said - level) < 0.01 for level, said in self.answered.items())


def wait_until(condition) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def answers_in(askers: list[Asker]) -> int:
    return sum(len(asker.answered) for asker in askers)


def start(url: str) -> list[Asker]:
    askers = [Asker(url, number) for number in range(CLIENTS)]
    for asker in askers:
        asker.start()
    return askers


def folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def test_killed_under_load_and_started_again_every_client_gets_its_answers(tmp_path):
    with running(folder(tmp_path, "first"), delay=0.02) as (server, url, _):
        askers = start(url)
        wait_until(lambda: answers_in(askers) > 2 * CLIENTS)
        server.send_signal(signal.SIGKILL)
        server.wait()
        before = answers_in(askers)
        wait_until(lambda: all(asker.refusals for asker in askers))
    assert before < CLIENTS * PHOTOS
    with running(folder(tmp_path, "again"), delay=0.02, port=int(url.rpartition(":")[2])):
        for asker in askers:
            asker.join(WAIT)
    assert answers_in(askers) == CLIENTS * PHOTOS
    assert all(asker.right for asker in askers)
    for status, message in {refusal for asker in askers for refusal in asker.refusals}:
        assert status in (None, 503), message
        assert status == 503 or message.startswith(f"no answer from {url} (")
        assert message.count("\n") == 0


def test_asked_to_end_under_load_it_answers_what_it_took(tmp_path):
    with running(folder(tmp_path, "log"), delay=0.05) as (server, url, log):
        askers = start(url)
        wait_until(lambda: answers_in(askers) > 2 * CLIENTS)
        for asker in askers:
            asker.leave.set()
        server.send_signal(signal.SIGTERM)
        assert server.wait(WAIT) == -signal.SIGTERM
        for asker in askers:
            asker.join(WAIT)
        told = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(asker.right for asker in askers)
    assert 2 * CLIENTS < answers_in(askers) < CLIENTS * PHOTOS
    taken = [one["status"] for one in told if one["event"] == "request" and one["route"] == "/v1/predict"]
    assert taken.count(200) == answers_in(askers)
    assert set(taken) <= {200, 503}
    assert {status for asker in askers for status, _ in asker.refusals} <= {None, 503}


def test_a_photo_that_breaks_the_engine_harms_no_other(tmp_path):
    poison = 255
    with running(folder(tmp_path, "log"), delay=0.02, poison=poison) as (_, url, log):
        askers = start(url)
        with Client(url, attempts=1) as client:
            for _ in range(5):
                with pytest.raises(ServiceError, match="internal error; see the log, request") as refusal:
                    client.predict(photo(poison))
                assert refusal.value.status == 500
            for asker in askers:
                asker.join(WAIT)
            assert client.predict(photo(7)).results[0].scores["class 0"] == pytest.approx(7 / 255)
        told = [json.loads(line) for line in log.read_text().splitlines()]
    assert answers_in(askers) == CLIENTS * PHOTOS
    assert all(asker.right and not asker.refusals for asker in askers)
    assert [one["event"] for one in told].count("failed") == 5
