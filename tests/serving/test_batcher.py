"""The queue: every photo gets its own answer, limits hold, and no accepted photo is lost."""

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from watched import WatchedPredictor, photo

import intclip.serving.batcher as batcher_module
from intclip.errors import ImageError, IntclipError, TaxonomyError
from intclip.serving.batcher import Batcher, Busy, Closed, ModelFailure

WAIT = 60


@pytest.fixture
def make():
    opened = []

    def build(*args, **options):
        opened.append(Batcher(*args, **options))
        return opened[-1]

    yield build
    for batcher in opened:
        batcher.close()


def wait_until(condition) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_each_of_many_threads_gets_the_answer_of_its_own_photo(make, watched):
    batcher = make({"a": watched}, max_batch=7)

    def ask(level):
        return batcher.submit(photo(level, 255 - level)).result(WAIT).probabilities[:2] * 255

    with ThreadPoolExecutor(20) as pool:
        found = np.array(list(pool.map(ask, range(200))))
    np.testing.assert_allclose(found[:, 0], np.arange(200), atol=0.01)
    np.testing.assert_allclose(found[:, 1], 255 - np.arange(200), atol=0.01)
    assert sum(watched.watched.batches) == 200
    assert max(watched.watched.batches) <= 7
    assert batcher.inside == 0


def test_it_answers_as_the_predictor_itself(make, watched):
    files = [photo(30 * i, 200, 10, size=(40, 31), kind="JPEG") for i in range(6)]
    found = [future.result(WAIT) for future in make({"a": watched}).submit_all([(file, None) for file in files])]
    for one, direct in zip(found, watched.predict(files), strict=True):
        np.testing.assert_array_equal(one.probabilities, direct.probabilities)
        assert one.labels == direct.labels


def test_what_comes_while_it_computes_becomes_one_batch(make, watched):
    batcher = make({"a": watched}, max_batch=32)
    watched.watched.gate.clear()
    first = batcher.submit(photo(1))
    assert watched.watched.entered.wait(WAIT)
    rest = [batcher.submit(photo(i)) for i in range(10)]
    wait_until(lambda: len(batcher._queue) == 10)
    watched.watched.gate.set()
    for future in [first, *rest]:
        future.result(WAIT)
    assert watched.watched.batches == [1, 10]


def test_a_full_queue_refuses_by_name_and_takes_again_when_there_is_room(make, watched):
    batcher = make({"a": watched}, capacity=4)
    watched.watched.gate.clear()
    taken = batcher.submit_all([(photo(i), None) for i in range(3)])
    with pytest.raises(Busy) as refusal:  # all or none
        batcher.submit_all([(photo(9), None)] * 2)
    assert refusal.value.retry_after >= 1
    assert batcher.inside == 3
    watched.watched.gate.set()
    for future in taken:
        future.result(WAIT)
    assert batcher.submit_all([(photo(9), None)] * 4)[3].result(WAIT).scores["class 0"] == pytest.approx(9 / 255)


def test_a_bad_photo_fails_alone(make, watched):
    futures = make({"a": watched}, max_pixels=500).submit_all(
        [(photo(50), None), (b"<html>", None), (photo(60, size=(30, 30)), None), (photo(70)[:50], None)]
    )
    assert futures[0].result(WAIT).error is None
    for future, reason in zip(futures[1:], ("not a supported image", "too large", "truncated|damaged"), strict=True):
        with pytest.raises(ImageError, match=reason):
            future.result(WAIT)


def test_a_batch_that_fails_does_not_end_the_worker(make, watched):
    batcher = make({"a": watched})
    watched.watched.failing = True
    with pytest.raises(ModelFailure):
        batcher.submit(photo(1)).result(WAIT)
    watched.watched.failing = False
    assert batcher.submit(photo(51)).result(WAIT).scores["class 0"] == pytest.approx(0.2)
    assert batcher.inside == 0


def test_a_photo_that_breaks_its_batch_fails_alone(make, watched):
    batcher = make({"a": watched})
    watched.watched.poison = 6
    watched.watched.gate.clear()
    first = batcher.submit(photo(1))
    assert watched.watched.entered.wait(WAIT)
    futures = [batcher.submit(photo(level)) for level in range(10)]
    wait_until(lambda: len(batcher._queue) == 10)
    watched.watched.gate.set()
    first.result(WAIT)
    for level, future in enumerate(futures):
        if level == 6:
            with pytest.raises(ModelFailure):
                future.result(WAIT)
        else:
            assert future.result(WAIT).scores["class 0"] == pytest.approx(level / 255)
    assert sum(watched.watched.batches) == 1 + 9
    assert batcher.inside == 0


def test_a_panic_in_reading_or_computing_leaves_its_room_and_ends_nothing(make, watched, monkeypatch, caplog):
    class Panic(BaseException):  # as raised by tokenizers and safetensors
        pass

    told: list[None] = []
    batcher = make({"a": watched}, capacity=1, on_failure=lambda: told.append(None))
    for place in ("_read", "_predict"):
        with monkeypatch.context() as patch:

            def panic(*arguments):
                raise Panic("a secret word")

            patch.setattr(batcher_module, place, panic)
            with pytest.raises(ModelFailure) as failure:
                batcher.submit(photo(1)).result(WAIT)
        assert failure.value.__cause__ is failure.value.__context__ is None  # they would keep the photo in memory
        assert batcher.submit(photo(51)).result(WAIT).scores["class 0"] == pytest.approx(0.2)
    assert len(told) == len(caplog.messages) == 2
    assert all("Panic at test_batcher.py:" in line and "secret" not in line for line in caplog.messages)


def test_a_cancelled_photo_is_not_computed_and_leaves_its_room(make, watched):
    batcher = make({"a": watched}, capacity=3)
    watched.watched.gate.clear()
    kept = batcher.submit(photo(1))
    assert watched.watched.entered.wait(WAIT)
    gone, last = batcher.submit(photo(2)), batcher.submit(photo(3))
    assert gone.cancel()
    watched.watched.gate.set()
    kept.result(WAIT)
    last.result(WAIT)
    wait_until(lambda: batcher.inside == 0)
    assert sum(watched.watched.batches) == 2


def test_close_finishes_what_it_took_and_takes_nothing_more(watched):
    batcher = Batcher({"a": watched}, max_batch=2)
    watched.watched.gate.clear()
    taken = [batcher.submit(photo(i)) for i in range(9)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    wait_until(lambda: batcher._closing)
    with pytest.raises(Closed):
        batcher.submit(photo(1))
    assert closing.is_alive()
    watched.watched.gate.set()
    closing.join(WAIT)
    assert not closing.is_alive()
    assert [round(f.result(0).scores["class 0"] * 255) for f in taken] == list(range(9))


def test_models_share_the_queue_and_never_a_batch(make):
    models = {name: WatchedPredictor(name) for name in "ab"}
    batcher = make(models)
    models["a"].watched.gate.clear()
    first = batcher.submit(photo(1))
    assert models["a"].watched.entered.wait(WAIT)
    futures = [batcher.submit(photo(i), model="ab"[i % 2]) for i in range(8)]
    wait_until(lambda: len(batcher._queue) == 8)
    models["a"].watched.gate.set()
    for future in [first, *futures]:
        future.result(WAIT)
    assert models["a"].watched.batches == [1, 4]
    assert models["b"].watched.batches == [4]


def test_evidence_sees_the_pixels_of_the_prediction_and_the_box_of_the_whole_photo(make, watched):
    batcher = make({"a": watched})
    file = photo(100, 50, 25, size=(80, 40), kind="JPEG")  # the decoder halves it for the model
    evidence = batcher.explain(file, "Class 1").result(WAIT)
    assert evidence.probability == batcher.submit(file).result(WAIT).scores["class 1"]
    assert evidence.box == (20, 0, 60, 40)
    assert evidence.fused.shape == (8, 8)
    with pytest.raises(TaxonomyError):
        batcher.explain(file, "nothing of the kind")
    with pytest.raises(ImageError):
        batcher.explain(b"no photo", "class 1").result(WAIT)
    wait_until(lambda: batcher.inside == 0)


def test_what_cannot_be_asked_is_refused_before_it_is_taken(make, watched):
    batcher = make({"a": watched})
    for ask, reason in (
        (lambda: batcher.submit(photo(1), "words"), "uses only photos"),
        (lambda: batcher.submit(None), "neither photo nor text"),
        (lambda: batcher.submit(photo(1), model="b"), "'b'.* a$"),
    ):
        with pytest.raises(IntclipError, match=reason):
            ask()
    assert batcher.inside == 0


def test_a_long_list_lets_single_photos_pass(make, watched, monkeypatch):
    read, first, go, order = batcher_module._read, threading.Event(), threading.Event(), []

    def watched_read(image, *arguments):
        first.set()
        assert go.wait(WAIT)
        order.append(image)
        return read(image, *arguments)

    monkeypatch.setattr(batcher_module, "_read", watched_read)
    batcher = make({"a": watched}, decoders=1)
    many = [photo(i) for i in range(30)]
    futures = batcher.submit_all([(file, None) for file in many])
    assert first.wait(WAIT)  # the first of the list is being decoded
    single = photo(200)
    futures.append(batcher.submit(single))
    go.set()
    for future in futures:
        future.result(WAIT)
    assert order.index(single) == 4  # arrived as number 31; place 4 of the list ranks as number 1 + 4 × 9
    assert [one for one in order if one != single] == many


def test_closing_while_others_submit_loses_nothing(watched):
    for _ in range(20):
        batcher = Batcher({"a": watched})
        taken = []

        def submit(batcher=batcher, taken=taken):
            try:
                while True:
                    taken.append(batcher.submit(photo(3)))
            except (Busy, Closed):
                pass

        threads = [threading.Thread(target=submit) for _ in range(3)]
        for thread in threads:
            thread.start()
        batcher.close()
        for thread in threads:
            thread.join(WAIT)
        assert all(future.done() and future.exception() is None for future in taken)


def test_a_process_that_ends_without_closing_finishes_what_was_taken():
    """Ending during an engine's work would abort the process."""
    code = """
import sys
sys.path.append(sys.argv[1])
from watched import WatchedPredictor, photo
from intclip.serving.batcher import Batcher
model = WatchedPredictor()
model.watched.delay = 1.0
batcher = Batcher({"tiny": model})
future = batcher.submit(photo(255))
future.add_done_callback(lambda future: print(future.result().labels, flush=True))
raise KeyboardInterrupt
"""
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (run.stdout, run.returncode) == ("['class 0']\n", -signal.SIGINT)
