"""What a release must pass, besides the tests: `make release-check`.

Builds the wheel, resolves it with each extra as a user's pip would, installs it into an empty environment, and takes
the steps of cluster/Dockerfile in another: this asks the package registry, and takes minutes. TORCH_INDEX_URL in the
environment is that of the Dockerfile; empty takes what pip is configured with.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
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


def look_at(binaries: Path, directory: Path) -> None:
    """Run what is installed, from a directory that has no sources."""
    for command in ([binaries / "distindex", "--version"], [binaries / "python", "-c", LOOK]):
        subprocess.run(command, check=True, cwd=directory, timeout=120)


def build_image(directory: Path) -> Path:
    """Take what cluster/Dockerfile copies and runs, but for the system's packages, in a new environment; its bin/.

    Raises:
        CalledProcessError: a step fails, as it would in the image.
    """
    venv.create(directory / "venv", with_pip=True)
    binaries, home = directory / "venv/bin", directory / "image"
    home.mkdir()
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}"}
    text = re.sub(r"^#.*\n", "", (REPOSITORY / "cluster/Dockerfile").read_text(), flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        instruction, _, rest = line.partition(" ")
        if instruction == "ARG":
            name, _, value = rest.partition("=")
            environment.setdefault(name, value)
        elif instruction == "COPY":
            *sources, target = rest.split()
            for source in sources:
                path = REPOSITORY / source
                if path.is_dir():
                    shutil.copytree(path, home / target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(path, home / target)
        elif instruction == "RUN" and "apt-get" not in rest:
            subprocess.run(["bash", "-c", rest], cwd=home, env=environment, check=True, timeout=1800)
    return binaries


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
        look_at(root / "venv/bin", root)
        shutil.rmtree(root / "venv")
        look_at(build_image(root), root)
        subprocess.run([root / "venv/bin/ray", "--version"], check=True, cwd=root, timeout=120)
    print("release: built, resolved, installed, and installed as in the image")


if __name__ == "__main__":
    main()
