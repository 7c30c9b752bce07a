"""Makes the toy training set, the tiny models and the watched service of other folders importable."""

import sys
from pathlib import Path

for room in ("training", "inference", "serving"):
    path = str(Path(__file__).parents[1] / room)
    if path not in sys.path:
        sys.path.append(path)
