"""`intclip` whose Ray workers report their process id at one shard and wait to be killed."""

import os
import time
from pathlib import Path
from typing import Any

from intclip.batch import run
from intclip.batch.run import RayWorker
from intclip.cli.main import main

SHARD = 5
PID, GO_ON = "pid", "go-on"
PLACE = "INTCLIP_TEST_MARKS"
WAIT = 300


class WatchedWorker(RayWorker):
    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        marks = Path(os.environ[PLACE])
        if item["shard"] == SHARD and not (marks / GO_ON).exists():
            (marks / "half").write_text(str(os.getpid()))
            (marks / "half").rename(marks / PID)
            time.sleep(WAIT)
            raise AssertionError("nobody killed this worker")
        return super().__call__(item)


def watched_main() -> None:
    run.RayWorker = WatchedWorker
    main()
