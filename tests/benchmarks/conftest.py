"""Makes the benchmark scripts importable: they are run from the repository root and are not part of the package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
