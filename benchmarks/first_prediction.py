"""First prediction by `lite` after installation, and with a new label file: CPU and wall-clock seconds.

    python -m benchmarks.first_prediction [--out docs/figures/first_prediction.json]

Each runs in its own process, with a common cache that is initially empty: the package's labels twice, then labels of a
file twice. CPU seconds depend less on other load. To measure another working tree, put its `src` on PYTHONPATH.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.machine import write_report

LABELS = "- joy\n- sorrow\n- a day at the beach\n"
CODE = """
import json, sys, time
import intclip
model = intclip.load("lite", engine="openvino", taxonomy=sys.argv[2] if len(sys.argv) > 2 else None)
model.predict(sys.argv[1])
print(json.dumps({"cpu_s": round(time.process_time(), 2)}))
"""


def predict(cache: Path, *arguments: str) -> dict[str, float]:
    """Return the seconds of a whole process."""
    run = subprocess.run(
        [sys.executable, "-c", CODE, *arguments],
        env=os.environ | {"INTCLIP_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(run.stdout)
    return found


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        photo, labels = str(home / "photo.jpg"), home / "labels.yaml"
        noise = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
        Image.fromarray(noise).save(photo)
        labels.write_text(LABELS)
        report = {
            "first": predict(home / "cache", photo),
            "again": predict(home / "cache", photo),
            "new_labels": predict(home / "cache", photo, str(labels)),
            "new_labels_again": predict(home / "cache", photo, str(labels)),
        }
    write_report(arguments.out, report)


if __name__ == "__main__":
    main()
