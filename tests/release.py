"""What a release must pass, besides the tests: `make release-check`.

Builds the wheel, resolves it with each extra as a user's pip would, and installs it into an empty environment: this
asks the package registry, and takes minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
# A look at what needs no package of the project's: the first thing that a wheel without a file would fail.
LOOK = "import distindex, distindex.cli; distindex.cli.make_parser(); print(distindex.__version__)"


def build_wheel(directory: Path) -> Path:
    """The wheel of this checkout, built without touching it and without a network."""
    source = directory / "source"
    subprocess.run(
        [sys.executable, "docs/lay_out.py", source], cwd=REPOSITORY, check=True, capture_output=True, timeout=60
    )
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--no-build-isolation", "--wheel-dir", directory, source),
        ],
        check=True,
        timeout=300,
    )
    (wheel,) = directory.glob("*.whl")
    return wheel


def extras() -> list[str]:
    """The extras that pyproject.toml has."""
    return list(tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def resolved(pip: Path, wheel: Path, extra: str, report: Path) -> int:
    """How many packages the wheel with an extra would bring; raises CalledProcessError where they do not agree."""
    subprocess.run(
        [
            *(pip, "install", "--quiet", "--disable-pip-version-check", "--dry-run", "--ignore-installed"),
            *("-c", REPOSITORY / "constraints.txt", "--report", report, f"{wheel}[{extra}]"),
        ],
        check=True,
        timeout=1800,
    )
    return len(json.loads(report.read_text())["install"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extras", nargs="*", default=extras(), help="extras to resolve; default: all")
    wanted = parser.parse_args().extras
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        wheel = build_wheel(root)
        print(f"{wheel.name}: {wheel.stat().st_size:,} bytes", flush=True)
        venv.create(root / "venv", with_pip=True)
        pip = root / "venv/bin/pip"
        for extra in wanted:
            print(f"[{extra}]: {resolved(pip, wheel, extra, root / 'report.json')} packages", flush=True)
        subprocess.run([pip, "install", "--quiet", "-c", REPOSITORY / "constraints.txt", f"{wheel}[cpu]"], check=True)
        for command in ([root / "venv/bin/distindex", "--version"], [root / "venv/bin/python", "-c", LOOK]):
            subprocess.run(command, check=True, cwd=root, timeout=120)
    print("release: built, installed and resolved")


if __name__ == "__main__":
    main()
