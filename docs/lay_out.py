"""Lay out the pages of the site as they lie in the repository: `python docs/lay_out.py DIRECTORY`; see mkdocs.yml."""

import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
LEFT_OUT = ("tests/", ".ci/")


def lay_out(target: Path) -> int:
    """Copy what git knows, so that every link of a page to another file leads somewhere; the number of files."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    names = [name for name in listed if not name.startswith(LEFT_OUT) and (REPOSITORY / name).is_file()]
    shutil.rmtree(target, ignore_errors=True)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, target / name)
    return len(names)


if __name__ == "__main__":
    print(f"{lay_out(Path(sys.argv[1]))} files")
