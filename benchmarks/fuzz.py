"""Fuzz the parsers of external data with atheris, each in its own process.

    pip install atheris
    python -m benchmarks.fuzz [--seconds 60] [--parsers image CSV …] [--folder FOLDER] [--out FILE]

Reports for each parser: executions, crashes (anything but a result or a one-line error), hangs (inputs that take over
ten seconds), and seconds. The folder keeps the corpus, from which a later run continues, and inputs that crashed or
hung.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HANG_SECONDS = 10
MEMORY_MB = 4096


def fuzz_one(name: str, arguments: list[str]) -> None:
    """Fuzz one parser; never returns, because libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["intclip", "yaml", "tarfile", "csv", "json"]):
        from benchmarks.fuzz_targets import PARSERS, attempt
    parser = PARSERS[name]
    folder = Path(tempfile.mkdtemp(prefix="intclip-fuzz-"))
    atheris.Setup([sys.argv[0], *arguments], lambda data: attempt(parser, data, folder) and None)
    atheris.Fuzz()


def run(name: str, seconds: int, folder: Path) -> dict[str, Any]:
    """Fuzz one parser in its own process."""
    from benchmarks.fuzz_targets import PARSERS

    corpus, found = folder / "corpus", folder / "found"
    corpus.mkdir(parents=True, exist_ok=True)
    found.mkdir(exist_ok=True)
    before = set(found.iterdir())
    parser = PARSERS[name]
    for number, seed in enumerate(parser.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = "\n".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"' for word in parser.words)
    (folder / "words").write_text(words + "\n", encoding="utf-8")
    options = [
        f"-max_total_time={seconds}",
        f"-timeout={HANG_SECONDS}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-artifact_prefix={found}/",
        f"-dict={folder / 'words'}",
        "-print_final_stats=1",
        "-seed=1",
    ]
    start = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.fuzz", "--one", name, "--", *options, str(corpus)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    stated = re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)
    seen = re.findall(r"^#(\d+)\s", done.stderr, re.MULTILINE)
    kinds = [path.name.partition("-")[0] for path in set(found.iterdir()) - before]
    result: dict[str, Any] = {
        "executions": int(stated[1]) if stated else int(seen[-1]) if seen else 0,
        "crashes": sum(kind in ("crash", "oom") for kind in kinds),
        "hangs": kinds.count("timeout"),
        "seconds": round(time.monotonic() - start, 1),
    }
    if done.returncode != 0:
        result["said"] = [line for line in done.stderr.splitlines() if line.strip()][-30:]
    return result


def main() -> None:
    if "--one" in sys.argv:
        place = sys.argv.index("--one")
        fuzz_one(sys.argv[place + 1], sys.argv[place + 3 :])
    from benchmarks.fuzz_targets import PARSERS
    from benchmarks.machine import write_report

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=int, default=60, help="for each parser")
    options.add_argument("--parsers", nargs="+", default=list(PARSERS), choices=list(PARSERS), help="which")
    options.add_argument("--folder", type=Path, help="corpus and found inputs; a new one by default")
    options.add_argument("--out", type=Path, help="write the report here as JSON, beside the other parsers' figures")
    asked = options.parse_args()
    if find_spec("atheris") is None:
        raise SystemExit("atheris is not installed; install it with: pip install atheris")
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="intclip-fuzzing-"))
    print(f"corpus, and inputs that crash or hang: {folder}", file=sys.stderr)
    earlier = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out and asked.out.exists() else {}
    results: dict[str, Any] = earlier.get("parsers", {})
    for name in asked.parsers:
        results[name] = run(name, asked.seconds, folder / re.sub(r"\W+", "-", name))
        write_report(asked.out, {"parsers": results})


if __name__ == "__main__":
    main()
