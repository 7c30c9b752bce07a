"""Complexity for a reader: functions entered, files touched and changes of file in four traced runs.

    INTCLIP_DATA=/data python -m benchmarks.walks [--walks predict explain load train] [--out docs/figures/walks.json]

predict and explain: one photo, `lite` loaded and warm. load: `proxy` with an empty cache, so that its graph is
converted. train: one epoch of an MLP probe on 64 photos, from pixels to the bundle. Only this package's code counts:
each function counts once; a change of file is a call into a different file than the previous call. Threads are traced
too. To measure another working tree, put its `src` on PYTHONPATH.
"""

import argparse
import inspect
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from PIL import Image

import intclip

HOME = str(Path(intclip.__file__).parent)


def walk(run: Callable[[], object]) -> dict[str, int]:
    """Trace this package's functions during a call."""
    entered: list[tuple[str, int]] = []

    def tell(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        # Modules and class bodies run at import and comprehensions have no name: no functions that a reader looks up.
        if (
            event == "call"
            and code.co_filename.startswith(HOME)
            and code.co_flags & inspect.CO_OPTIMIZED
            and not code.co_name.startswith("<")
        ):
            entered.append((code.co_filename, code.co_firstlineno))

    threading.setprofile(tell)
    sys.setprofile(tell)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    files = [name for name, _ in entered]
    changes = sum(before != after for before, after in pairwise(files))
    return {"functions": len(set(entered)), "files": len(set(files)), "changes_of_file": changes}


def photo() -> Image.Image:
    """Return a fixed picture of noise."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))


def walk_predict() -> dict[str, int]:
    model = intclip.load("lite", engine="openvino")
    model.predict(photo())
    return walk(lambda: model.predict(photo()))


def walk_explain() -> dict[str, int]:
    model = intclip.load("lite", engine="openvino")
    label = model.taxonomy.names[0]
    model.explain(photo(), label)
    return walk(lambda: model.explain(photo(), label))


def walk_load() -> dict[str, int]:
    return walk(lambda: intclip.load("proxy", engine="openvino"))


def walk_train() -> dict[str, int]:
    from intclip.training import load_recipe, train

    root = Path(os.environ["INTCLIP_DATA"], "flickr8k")
    changes = ["data.limit=64", "method.name=mlp_probe", "schedule.epochs=1", f"data.root={root}"]
    recipe = load_recipe("tiny", changes)
    with tempfile.TemporaryDirectory() as folder:
        return walk(lambda: train(recipe, Path(folder, "run"), progress=False))


WALKS = {"predict": walk_predict, "explain": walk_explain, "load": walk_load, "train": walk_train}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--walks", nargs="+", choices=WALKS, default=list(WALKS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["INTCLIP_CACHE"] = cache
        report = {name: WALKS[name]() for name in arguments.walks}
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
