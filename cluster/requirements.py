"""Print what pyproject.toml asks for, to be installed before the sources are there: `requirements.py cpu,s3`."""

import sys
import tomllib
from pathlib import Path


def requirements(project: Path, extras: list[str]) -> list[str]:
    """The dependencies of the project, and those of some of its extras.

    Raises:
        SystemExit: there is no such extra.
    """
    table = tomllib.loads(project.read_text())["project"]
    known = table["optional-dependencies"]
    unknown = sorted(set(extras) - set(known))
    if unknown:
        raise SystemExit(f"no extra {', '.join(unknown)} in {project}; there are {', '.join(known)}")
    return [*table["dependencies"], *(line for extra in extras for line in known[extra])]


if __name__ == "__main__":
    wanted = [extra for extra in sys.argv[1].split(",") if extra]
    print("\n".join(requirements(Path("pyproject.toml"), wanted)))
