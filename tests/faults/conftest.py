"""Makes the toy training set and the tiny models of other rooms importable here."""

import sys
from pathlib import Path

for room in ("training", "inference"):
    path = str(Path(__file__).parents[1] / room)
    if path not in sys.path:
        sys.path.append(path)
