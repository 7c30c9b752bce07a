"""Wait on an event loop for futures that other threads finish in batches."""

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary


async def all_done(futures: Sequence[Future[Any]]) -> None:
    """Return once all futures are done, successfully or not.

    `asyncio.wrap_future` wakes the loop with a system call per future, which makes the
    finishing thread release the interpreter lock; here the loop is woken once per batch.
    """
    if not futures:
        return
    loop = asyncio.get_running_loop()
    bell = _bells.setdefault(loop, _Doorbell())
    waiter, done, wanted = loop.create_future(), count(1), len(futures)

    def told(_: Future[Any]) -> None:  # must not reference the futures: a cycle would keep their photos alive
        if next(done) == wanted:
            bell.ring(waiter)

    for future in futures:
        future.add_done_callback(told)
    await waiter


class _Doorbell:
    """Finished waiters of one loop, and whether it has been notified."""

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
        self._rung = False  # first: later waiters ring again
        while self._ready:
            waiter = self._ready.popleft()
            if not waiter.done():
                waiter.set_result(None)


_bells: WeakKeyDictionary[asyncio.AbstractEventLoop, _Doorbell] = WeakKeyDictionary()
