"""A bill of materials of the installed environment, and an audit of the pinned versions for known vulnerabilities.

    python .ci/supply_chain.py sbom     # build/sbom.cdx.json, CycloneDX
    python .ci/supply_chain.py audit    # exit code 1 where a pinned version has a known vulnerability

Both use tools in an environment of their own. Where a tool cannot be installed, or the list of vulnerabilities not be
reached, one line says so and the exit code is 0: a machine without a network is no finding.
"""

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / ".venv" / "tools"
PINNED = {"cyclonedx-py": "cyclonedx-bom==7.5.0", "pip-audit": "pip-audit==2.10.1"}
PROBE = "packaging"
"""Asked about first: where nothing is known of it, nothing is known of anything."""


def tool(name: str) -> Path | None:
    """The path of a tool, installed at first need; None where it cannot be."""
    path = TOOLS / "bin" / name
    if not path.exists():
        venv.create(TOOLS, with_pip=True)
        pip = [str(TOOLS / "bin" / "pip"), "install", "--quiet", "--retries", "0", "--timeout", "5", PINNED[name]]
        if subprocess.run(pip, capture_output=True, check=False).returncode != 0:
            return None
    return path


def sbom() -> int:
    """Write the bill of materials."""
    program = tool("cyclonedx-py")
    if program is None:
        print(f"sbom skipped: {PINNED['cyclonedx-py']} cannot be installed here (no network?)")
        return 0
    out = ROOT / "build" / "sbom.cdx.json"
    out.parent.mkdir(exist_ok=True)
    command = [str(program), "environment", sys.executable, "--pyproject", str(ROOT / "pyproject.toml")]
    done = subprocess.run([*command, "--output-reproducible", "--of", "JSON", "-o", str(out)], check=False)
    if done.returncode == 0:
        found = json.loads(out.read_text(encoding="utf-8"))
        print(f"{out.relative_to(ROOT)}: {len(found['components'])} components, CycloneDX {found['specVersion']}")
    return done.returncode


def audit() -> int:
    """Ask about every pinned version."""
    program = tool("pip-audit")
    if program is None:
        print(f"audit skipped: {PINNED['pip-audit']} cannot be installed here (no network?)")
        return 0
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    probe = [line for line in lines if line.startswith(f"{PROBE}==")]
    first = ask(program, probe)
    if first is None or any("skip_reason" in found for found in first):
        print("audit skipped: the list of known vulnerabilities cannot be reached from here")
        return 0
    found = ask(program, [line for line in lines if line and not line.startswith("#")])
    if found is None:
        print("audit skipped: the list of known vulnerabilities went out of reach")
        return 0
    code, told = judge(found)
    print("\n".join(told))
    return code


def ask(program: Path, requirements: list[str]) -> list[dict[str, Any]] | None:
    """What pip-audit knows of some pinned versions; None where it cannot ask."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(requirements) + "\n")
        file.flush()
        options = ["-r", file.name, "--no-deps", "--disable-pip", "-f", "json", "--progress-spinner", "off"]
        done = subprocess.run([str(program), *options, "--timeout", "10"], capture_output=True, text=True, check=False)
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return None
    return found


def judge(found: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """Exit code and lines of a report: 1 where a vulnerability is known."""
    bad = [
        f"{item['name']} {item['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'no version'}"
        for item in found
        for flaw in item.get("vulns", ())
    ]
    unknown = [item["name"] for item in found if "skip_reason" in item]
    told = [f"audit: {len(found) - len(unknown)} pinned versions, {len(bad)} known vulnerabilities", *bad]
    if unknown:
        told.append(f"nothing is known of: {', '.join(unknown)}")
    return int(bool(bad)), told


if __name__ == "__main__":
    actions = {"sbom": sbom, "audit": audit}
    if len(sys.argv) != 2 or sys.argv[1] not in actions:
        raise SystemExit("usage: supply_chain.py sbom|audit")
    sys.exit(actions[sys.argv[1]]())
