"""Waiting on an event loop for futures that other threads finish, many at a time."""

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary


async def all_done(futures: Sequence[Future[Any]]) -> None:
    """Return once all of them are done, however they ended.

    `asyncio.wrap_future` wakes the loop for every future by a call of the system, at which the thread that finishes a
    batch loses the interpreter's lock; here it goes on, and the loop hears of the whole batch at once.
    """
    if not futures:
        return
    loop = asyncio.get_running_loop()
    bell = _bells.setdefault(loop, _Doorbell())
    waiter, done, wanted = loop.create_future(), count(1), len(futures)

    def told(_: Future[Any]) -> None:  # it must not hold the futures, which hold it: nobody would free their photos
        if next(done) == wanted:
            bell.ring(waiter)

    for future in futures:
        future.add_done_callback(told)
    await waiter


class _Doorbell:
    """Waiters of one loop whose futures are done, and whether it was told that there are some."""

    def __init__(self) -> None:
        self._ready: deque[asyncio.Future[None]] = deque()
        self._rung = False

    def ring(self, waiter: asyncio.Future[None]) -> None:
        """Wake a waiter, from any thread."""
        self._ready.append(waiter)
        loop = waiter.get_loop()
        if not self._rung and not loop.is_closed():
            self._rung = True
            loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._rung = False  # first: whoever comes from here on rings again
        while self._ready:
            waiter = self._ready.popleft()
            if not waiter.done():
                waiter.set_result(None)


_bells: WeakKeyDictionary[asyncio.AbstractEventLoop, _Doorbell] = WeakKeyDictionary()
