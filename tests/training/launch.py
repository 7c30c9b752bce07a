"""Start several processes of one run, like torchrun."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

from intclip.studies.ablation import PRELOAD

WAIT = 120


def _one(rank: int, world: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    work(rank, *arguments)


def together(world: int, work: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Call `work(rank, *arguments)` in `world` processes; return exit codes, negative for signals, None if hanging."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOAD, "toy_method", "accelerate"])
    children = [context.Process(target=_one, args=(rank, world, port, work, arguments)) for rank in range(world)]
    for child in children:
        child.start()
    for child in children:
        child.join(WAIT)
    codes = [child.exitcode for child in children]
    for child in children:
        child.kill()
    return codes
