"""What a release is made of: a wheel that works without this checkout, and an interface that stays."""

from __future__ import annotations

import inspect
import subprocess
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import distindex
from tests.release import LOOK, REPOSITORY, build_wheel, extras

GOLDEN = REPOSITORY / "tests/data/public_api.txt"


def public_api() -> str:
    """One line for each public name, with its parameters; for a class, its public methods and attributes too."""
    lines = []
    for name in distindex.__all__:
        thing = getattr(distindex, name)
        if inspect.isclass(thing):
            lines.append(f"class {name}")
            for member, value in sorted(vars(thing).items()):
                if member.startswith("_") and member not in ("__init__", "__iter__", "__len__", "__getitem__"):
                    continue
                function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
                is_function = inspect.isfunction(function)
                lines.append(f"{name}.{member}{parameters(function) if is_function else ''}")
        elif callable(thing):
            lines.append(f"{name}{parameters(thing)}")
        else:
            lines.append(name)
    return "\n".join(lines) + "\n"


def parameters(function: object) -> str:
    """Names, kinds and defaults; annotations may become more precise."""
    signature = inspect.signature(function)  # type: ignore[arg-type]
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def test_the_public_interface_is_that_which_programs_use() -> None:
    expected, found = GOLDEN.read_text().splitlines(), public_api().splitlines()
    gone, new = [line for line in expected if line not in found], [line for line in found if line not in expected]
    assert not gone, f"programs may use what is gone: {gone}; keep it, or say so in CHANGELOG.md"
    assert not new, f"new: {new}; run `python -m tests.test_release` to add it to {GOLDEN.name}"


def test_one_version_everywhere() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["version"] == distindex.__version__
    assert {"cpu", "gpu", "s3", "gcs", "azure", "cluster", "docs", "dev"} <= set(extras())


def test_the_wheel_works_where_nothing_of_this_checkout_is(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path / "built")
    names = zipfile.ZipFile(wheel).namelist()
    sources = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "distindex").rglob("*.py")}
    pages = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "distindex").glob("*/page/*")}
    assert sources | pages | {"distindex/py.typed"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "docs/", "benchmarks/"))]

    venv.create(tmp_path / "venv", symlinks=True, with_pip=False)
    python = tmp_path / "venv/bin/python"
    site = Path(
        sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")})
    )
    zipfile.ZipFile(wheel).extractall(site)
    # Its dependencies are those of the tests; the project itself, installed there in editable mode, is not seen.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    ran = subprocess.run([python, "-c", LOOK], cwd=tmp_path, env={}, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout) == (0, f"{distindex.__version__}\n"), ran.stderr
    entry = "from distindex.cli import run; run()"
    said = subprocess.run(
        [python, "-c", entry, "--version"], cwd=tmp_path, env={}, capture_output=True, text=True, timeout=120
    )
    assert said.stdout == f"distindex {distindex.__version__}\n"
    scripts = (site / f"distindex-{distindex.__version__}.dist-info/entry_points.txt").read_text()
    assert "distindex = distindex.cli:run" in scripts


if __name__ == "__main__":
    GOLDEN.write_text(public_api())
