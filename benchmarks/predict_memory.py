"""Memory of a long prediction of thousands of photos, with a check that none is lost.

    python -m benchmarks.predict_memory [--photos 5000] [--model lite] [--engine auto] [--out FILE]

Photos are repeated real ones of 500 and 3,000 pixels; every 97th is damaged. Prints resident memory (MB) after each
twentieth of the photos, its peak, and its growth over the second half.
"""

import argparse
import itertools
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.loader import write_photos
from benchmarks.machine import write_report

BAD_EVERY = 97


def resident() -> float:
    """Return the resident memory of this process, MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


def peak() -> float:
    """Return the peak resident memory so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def stream(folder: Path, count: int) -> Iterator[Path]:
    """Yield small photos, with every tenth large and every 97th damaged."""
    (folder / "small").mkdir()
    (folder / "large").mkdir()
    small, large = write_photos(folder / "small", 12, 500), write_photos(folder / "large", 6, 3000)
    bad = folder / "bad.jpg"
    bad.write_bytes(small[0].read_bytes()[:2000])
    good = itertools.cycle([*small[:9], large[0], *small[9:], *large[1:3]])
    return (bad if number % BAD_EVERY == 0 else next(good) for number in range(1, count + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=5000)
    parser.add_argument("--model", default="lite")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    import intclip

    predictor = intclip.load(options.model, engine=options.engine)
    with tempfile.TemporaryDirectory() as folder:
        photos = stream(Path(folder), options.photos)
        sizes, seen, bad = [], 0, 0
        start = time.perf_counter()
        for prediction in predictor.predict_iter(photos, batch_size=options.batch_size, errors="collect"):
            seen += 1
            bad += prediction.error is not None
            if seen % max(1, options.photos // 20) == 0:
                sizes.append(round(resident(), 1))
        seconds = time.perf_counter() - start
    middle = len(sizes) // 2
    write_report(
        options.out,
        {
            "model": options.model,
            "engine": predictor.engine_name,
            "batch_size": options.batch_size,
            "photos": options.photos,
            "predictions": seen,
            "errors": bad,
            "errors_expected": options.photos // BAD_EVERY,
            "photos_per_second": round(options.photos / seconds, 1),
            "resident_MB": sizes,
            "peak_MB": round(peak(), 1),
            "growth_second_half_MB": round(max(sizes[middle:]) - max(sizes[:middle]), 1),
        },
    )


if __name__ == "__main__":
    main()
