"""Loader speed: photos per second from JPEG files to normalised pixels, and the effect of the decoder's downscaling.

    python benchmarks/loader.py [--photos 1000] [--side 500] [--workers 2] [--json]

The photos are real ones from scikit-image and scikit-learn, resized to the given longer side and saved at quality 90 in
a temporary folder. Prints the median of five passes over cached files, and CPU time per photo, which does not depend on
other load.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import skimage.data
import sklearn.datasets
import torch
from PIL import Image

from intclip.backbones.preprocess import Preprocess
from intclip.data.images import read_image
from intclip.data.loading import normalize_into, pixel_batches, usable_cores
from intclip.data.transforms import Augment, AugmentConfig, PhotoChange

PREPROCESS = Preprocess(size=224, mean=(0.481, 0.458, 0.408), std=(0.269, 0.261, 0.276))


def real_photos() -> list[Image.Image]:
    arrays = [sklearn.datasets.load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    arrays += [getattr(skimage.data, name)() for name in ("astronaut", "coffee", "chelsea", "rocket")]
    return [Image.fromarray(array[..., :3]) for array in arrays]


def write_photos(folder: Path, number: int, side: int) -> list[Path]:
    encoded = []
    for photo in real_photos():
        scale = side / max(photo.size)
        photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.LANCZOS).save(
            folder / "photo.jpg", quality=90
        )
        encoded.append((folder / "photo.jpg").read_bytes())
    (folder / "photo.jpg").unlink()
    paths = [folder / f"{index:05d}.jpg" for index in range(number)]
    for index, path in enumerate(paths):
        path.write_bytes(encoded[index % len(encoded)])
    return paths


def timed(function: Callable[..., object], *arguments: object) -> tuple[float, float]:
    """Return wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    function(*arguments)
    return time.perf_counter() - wall, time.process_time() - cpu


def pipeline(paths: list[Path], workers: int, augment: PhotoChange | None = None) -> None:
    seen = 0
    for batch in pixel_batches(paths, PREPROCESS, 64, workers=workers, augment=augment):
        seen += len(batch.indices)
    assert seen == len(paths)


def naive(paths: list[Path]) -> None:
    """Load photos like a plain script: one thread, full decoding, one preprocess call per photo."""
    for start in range(0, len(paths), 64):
        torch.stack([PREPROCESS(Image.open(path).convert("RGB")) for path in paths[start : start + 64]])


def normalisation(photo: Path) -> dict[str, float]:
    """Return milliseconds per photo on one thread: for a batch of 64, and photo by photo in cache."""
    pixels = np.stack([PREPROCESS.resize(read_image(photo))] * 64)
    out = np.empty((64, 3, 224, 224), dtype=np.float32)
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    whole = min(timed(PREPROCESS.normalize, batch)[0] for _ in range(10)) / 64

    def one_by_one() -> None:
        for row, one in zip(out, pixels, strict=True):
            normalize_into(row, one, PREPROCESS)

    single = min(timed(one_by_one)[0] for _ in range(10))
    return {"whole batch": whole * 1e3, "photo by photo": single / 64 * 1e3}


def draft_effect(folder: Path) -> list[dict[str, float]]:
    """Measure decoding time and the change of the input (of 255) for JPEGs decoded at a fraction of their size."""
    rows = []
    for side in (500, 1000, 3000):
        paths = write_photos(folder, 6, side)
        full = [PREPROCESS.resize(read_image(path)).astype(float) for path in paths]
        for factor in (None, 1, 2, 3):
            minimum = None if factor is None else factor * PREPROCESS.size

            def read(minimum: int | None = minimum, paths: list[Path] = paths) -> list[Image.Image]:
                return [read_image(path, min_side=minimum) for path in paths]

            cost = min(timed(read)[1] for _ in range(5)) / len(paths)
            changes = [
                np.abs(PREPROCESS.resize(image) - whole).mean() for image, whole in zip(read(), full, strict=True)
            ]
            rows.append(
                {
                    "side": side,
                    "factor": factor or 0,
                    "decode_cpu_ms": cost * 1e3,
                    "mean_change": float(np.mean(changes)),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--side", type=int, default=500)
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_photos(folder, options.photos, options.side)
        augment = partial(Augment(AugmentConfig(), PREPROCESS), epoch=0)
        runs = {
            "pipeline": lambda: pipeline(paths, options.workers),
            "augmented": lambda: pipeline(paths, options.workers, augment),
            "one thread": lambda: naive(paths),
        }
        report: dict[str, object] = {"photos": options.photos, "side": options.side, "workers": options.workers}
        for label, run in runs.items():
            passes = [timed(run) for _ in range(5)]
            report[label] = {
                "photos_per_second": options.photos / statistics.median(wall for wall, _ in passes),
                "best_photos_per_second": options.photos / min(wall for wall, _ in passes),
                "cpu_ms_a_photo": statistics.median(cpu for _, cpu in passes) / options.photos * 1e3,
            }
        report["normalisation_ms"] = normalisation(paths[0])
        report["draft"] = draft_effect(folder)
    if options.json:
        print(json.dumps(report, indent=1))
        return
    for label in runs:
        figures = report[label]
        assert isinstance(figures, dict)
        print(f"{label:12} " + "  ".join(f"{key} {value:.2f}" for key, value in figures.items()))
    print("normalise, ms a photo:", report["normalisation_ms"])
    print("JPEG decoding with min_side = factor × 224 (0: whole)")
    assert isinstance(report["draft"], list)
    for row in report["draft"]:
        print("  " + "  ".join(f"{key} {value:.2f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
