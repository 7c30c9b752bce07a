"""Parallel batches, and the single call that notifies the event loop of a batch."""

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import Future

import pytest
from watched import photo

from intclip.serving.batcher import Batcher
from intclip.serving.doorbell import all_done

WAIT = 60


@pytest.fixture
def held(watched):
    """A queue whose engine is blocked."""
    engine = watched.watched
    engine.gate.clear()
    batcher = Batcher({"a": watched}, max_batch=4)
    yield batcher, engine
    engine.gate.set()
    batcher.close()


def ready(batcher: Batcher, count: int) -> None:
    end = time.monotonic() + WAIT
    while len(batcher._queue) < count:
        assert time.monotonic() < end
        time.sleep(0.002)


def test_beside_a_batch_only_a_full_one_is_begun(held):
    batcher, engine = held
    futures = [batcher.submit(photo(1))]
    assert engine.entered.wait(WAIT)
    futures += [batcher.submit(photo(2)) for _ in range(3)]
    ready(batcher, 3)
    time.sleep(0.1)
    assert engine.asked == [1]
    engine.entered.clear()
    futures.append(batcher.submit(photo(3)))
    assert engine.entered.wait(WAIT)
    assert engine.asked == [1, 4]
    engine.gate.set()
    found = [round(255 * float(future.result(WAIT).probabilities[0])) for future in futures]
    assert found == [1, 2, 2, 2, 3]


def test_what_was_ready_before_a_batch_ended_is_begun_when_it_ends(held):
    batcher, engine = held
    futures = [batcher.submit(photo(1)) for _ in range(4)]
    assert engine.entered.wait(WAIT)
    futures += [batcher.submit(photo(2)) for _ in range(6)]  # four run in parallel, two wait to fill a batch
    ready(batcher, 2)
    engine.gate.set()
    found = [round(255 * float(future.result(WAIT).probabilities[0])) for future in futures]
    assert found == [1] * 4 + [2] * 6


def test_batches_of_any_size_lie_in_memory_that_is_used_again(watched, monkeypatch):
    places: set[int] = set()
    inner = type(watched).predict_pixels

    def predict_pixels(self, pixels, texts=()):
        places.add(pixels.__array_interface__["data"][0])
        return inner(self, pixels, texts)

    monkeypatch.setattr(type(watched), "predict_pixels", predict_pixels)
    batcher = Batcher({"a": watched}, max_batch=4)
    for count in (1, 4, 2, 9, 16, 3):
        futures = [batcher.submit(photo(number)) for number in range(count)]
        found = [round(255 * float(future.result(WAIT).probabilities[0])) for future in futures]
        assert found == list(range(count))
    batcher.close()
    assert len(places) <= 2  # one per worker


def test_seconds_of_batches_beside_each_other_are_counted_once(watched):
    told: list[float] = []
    watched.watched.delay = 0.1
    start = time.perf_counter()
    batcher = Batcher({"a": watched}, max_batch=2, on_batch=lambda _, seconds: told.append(seconds))
    for future in [batcher.submit(photo(1)) for _ in range(12)]:
        future.result(WAIT)
    batcher.close()
    assert 0.1 < sum(told) <= time.perf_counter() - start


def test_the_loop_waits_for_all_of_them_however_they_end():
    futures: list[Future[int]] = [Future() for _ in range(40)]

    def end():
        for number, future in enumerate(futures):
            if number % 3 == 1:
                future.set_exception(ValueError("no"))
            elif number % 3 == 2:
                future.cancel()
            else:
                future.set_result(number)

    async def wait():
        several = [asyncio.create_task(all_done(futures[start : start + 10])) for start in range(0, 40, 10)]
        await asyncio.sleep(0)
        thread = threading.Thread(target=end)
        thread.start()
        await asyncio.wait_for(asyncio.gather(*several, all_done([])), WAIT)
        thread.join()

    asyncio.run(wait())
    assert all(future.done() for future in futures)
    asyncio.run(all_done(futures))  # on another loop, with finished futures


def test_futures_that_were_waited_for_go_without_the_collector():
    async def wait() -> "weakref.ref[Future[int]]":
        future: Future[int] = Future()
        future.set_result(1)
        await all_done([future])
        return weakref.ref(future)

    gc.disable()
    try:
        assert asyncio.run(wait())() is None
    finally:
        gc.enable()


def test_one_that_is_done_after_its_loop_has_ended_harms_nobody():
    future: Future[int] = Future()

    async def give_up():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await all_done([future])

    asyncio.run(give_up())
    future.set_result(1)
