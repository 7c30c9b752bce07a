"""Change the numerical core one operator or number at a time (cosmic-ray's operators) and count what the tests notice.

    pip install cosmic-ray
    python -m benchmarks.mutants [--modules losses metrics …] [--seconds 600] [--out FILE]

Every mutant runs its module's tests in a process forked from one that has imported the libraries, which takes a second
or two where a fresh process takes ten. A mutant is killed when a test fails or does not end. Where the time is short,
a random sample of the mutants is run (`--seed`), and both numbers are reported.
"""

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LONGEST = 60
"""Seconds after which a mutant that does not end counts as killed; the tests take a few."""
MODULES: dict[str, tuple[str, ...]] = {
    "losses": ("tests/test_losses.py",),
    "metrics": ("tests/test_metrics.py",),
    "thresholds": ("tests/test_thresholds.py",),
    "evaluation.calibration": ("tests/evaluation/test_calibration.py",),
    "methods.aggregation": ("tests/methods/test_shared_parts.py",),
    "methods.prompts": ("tests/methods/test_shared_parts.py",),
    "methods.region_pooling": ("tests/methods/test_shared_parts.py",),
}
"""Module of intclip to the tests that are its own."""
OPERATORS = (
    *(f"core/ReplaceBinaryOperator_{pair}" for pair in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "Pow_Mul")),
    *(f"core/ReplaceComparisonOperator_{pair}" for pair in ("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Eq_NotEq")),
    *(f"core/ReplaceComparisonOperator_{pair}" for pair in ("Lt_GtE", "LtE_Gt", "Gt_LtE", "GtE_Lt", "Is_IsNot")),
    *("core/ReplaceUnaryOperator_Delete_USub", "core/ReplaceUnaryOperator_Delete_Not", "core/NumberReplacer"),
    *("core/ReplaceUnaryOperator_Delete_Invert", "core/ReplaceTrueWithFalse", "core/ReplaceFalseWithTrue"),
    *("core/ReplaceAndWithOr", "core/ReplaceOrWithAnd", "core/AddNot", "core/ReplaceBreakWithContinue"),
)
"""One or two changes for each kind of operator: the whole table of replacements repeats them."""


@dataclass(frozen=True)
class Mutant:
    """A changed source.

    Attributes:
        operator: What was done.
        line: The first line that differs.
        before: That line as it was.
        after: As it is.
        source: The whole module.
    """

    operator: str
    line: int
    before: str
    after: str
    source: str


class Changed(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Loads one module from another source."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self._name, self._path, self._source = name, path, source

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Of the one module."""
        if fullname != self._name:
            return None
        return importlib.util.spec_from_file_location(fullname, self._path, loader=self)  # type: ignore[arg-type]

    def get_filename(self, fullname: str) -> str:
        """Of the source that was changed."""
        return str(self._path)

    def get_data(self, path: str | bytes) -> bytes:
        """The changed source."""
        return self._source.encode()


def mutants(path: Path) -> Iterator[Mutant]:
    """All that the operators make of a file."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = path.read_text(encoding="utf-8")
    seen = set()
    for name in OPERATORS:
        number = 0
        while (changed := mutate_code(source, get_operator(name)(), number)) is not None:
            number += 1
            pairs = zip(source.splitlines(), changed.splitlines(), strict=False)
            line = next((i for i, (a, b) in enumerate(pairs, 1) if a != b), None)
            if changed in seen or line is None:
                continue
            seen.add(changed)
            before, after = (text.splitlines()[line - 1].strip() for text in (source, changed))
            yield Mutant(name.removeprefix("core/"), line, before, after, changed)


def is_killed(name: str, path: Path, source: str, tests: tuple[str, ...]) -> bool:
    """Whether the tests notice, in a forked process."""
    child = os.fork()
    if child == 0:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        sys.meta_path.insert(0, Changed(name, path, source))
        code = 1
        try:
            import pytest

            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *tests]))
        finally:
            os._exit(code)
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status != 0
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def run(short: str, seconds: float, seed: int) -> dict[str, Any]:
    """Mutants of one module, as many as the time allows."""
    name, path = f"intclip.{short}", ROOT / "src/intclip" / f"{short.replace('.', '/')}.py"
    tests = tuple(str(ROOT / test) for test in MODULES[short])
    if is_killed(name, path, path.read_text(encoding="utf-8"), tests):
        raise SystemExit(f"the tests of {name} fail without any change: {' '.join(tests)}")
    every = list(mutants(path))
    random.Random(seed).shuffle(every)
    start, killed, lived = time.monotonic(), 0, []
    for mutant in every:
        if time.monotonic() - start > seconds:
            break
        if is_killed(name, path, mutant.source, tests):
            killed += 1
        else:
            lived.append({"line": mutant.line, "before": mutant.before, "after": mutant.after})
            print(f"{short}:{mutant.line}: {mutant.before}  →  {mutant.after}", file=sys.stderr, flush=True)
    tried = killed + len(lived)
    spent = round(time.monotonic() - start, 1)
    return {"mutants": len(every), "tried": tried, "killed": killed, "seconds": spent, "lived": lived}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--modules", nargs="+", default=list(MODULES), choices=list(MODULES))
    options.add_argument("--seconds", type=float, default=600, help="for each module")
    options.add_argument("--seed", type=int, default=0, help="of the sample")
    options.add_argument("--out", type=Path, help="write the report here as JSON, beside the other modules' figures")
    asked = options.parse_args()
    if importlib.util.find_spec("cosmic_ray") is None:
        raise SystemExit("cosmic-ray is not installed; install it with: pip install cosmic-ray")
    for library in ("numpy", "pydantic", "scipy.optimize", "sklearn.metrics", "sklearn.isotonic", "torch", "pytest"):
        importlib.import_module(library)
    from benchmarks.machine import write_report

    for library in [each for each in sys.modules if each == "intclip" or each.startswith("intclip.")]:
        del sys.modules[library]
    earlier = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out and asked.out.exists() else {}
    results: dict[str, Any] = earlier.get("modules", {})
    for name in asked.modules:
        results[name] = run(name, asked.seconds, asked.seed)
        write_report(asked.out, {"modules": results})


if __name__ == "__main__":
    main()
