"""Makes the benchmark scripts importable: they hold the list of parsers, and are no part of the package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
