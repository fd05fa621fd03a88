"""Which room may import what, and who may open paths: read from the sources, not from what happens to run."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import distindex

PACKAGE = Path(__file__).resolve().parents[1] / "distindex"

# What each room may import of the others. Every module may import the single modules of the package's root
# (errors, storage, config, codes, codeset, progress); `runtime` starts Ray and is for the Ray rooms.
ROOMS = {
    "corpus": set(),
    "hashing": {"corpus"},
    "index": set(),
    "evaluation": {"corpus", "hashing"},
    "labeling": {"corpus"},
    "training": {"corpus", "hashing", "evaluation"},
    "encoding": {"corpus", "hashing"},
    "building": {"index"},
    "serving": {"index", "hashing"},
    "rounds": {"corpus", "hashing", "labeling", "training", "evaluation"},
    "annotation": {"corpus", "serving"},
    "quickstart": {"evaluation", "index", "training", "encoding", "building", "serving"},
}
PURE = {"corpus", "hashing", "index", "evaluation", "labeling"}
MAY_IMPORT_RAY = {"training", "encoding", "building", "serving", "rounds", "quickstart", "runtime"}
MAY_IMPORT_TORCH = {"hashing", "training", "encoding", "serving"}
# They put the rooms together; what they import, they import by name and late.
TOP = {"__init__", "cli", "inspection", "job"}

# (module, what it does): why it may.
OPENS_PATHS = {
    ("filesystems.py", "fsspec"): "makes the file systems of Storage; opens none of their paths",
    ("index/files.py", ".open(mode)"): "hashes a file that Storage.fetch has brought to this machine",
    ("index/files.py", ".unlink"): "drops a damaged copy from the cache of Storage.fetch",
    ("index/files.py", "memory_map"): "maps a file that Storage.fetch has brought to this machine",
    ("quickstart/data.py", ".rglob"): "finds the sources of installed packages",
    ("quickstart/data.py", ".read_bytes()"): "reads the sources of installed packages",
    ("runtime.py", "tempfile"): "holds what Ray's native code prints at its start, in a file without a name",
    ("serving/web.py", ".read_bytes()"): "reads the web pages, which are part of the package",
    ("training/loop.py", "tempfile"): "Ray Train takes checkpoints as local directories; Storage writes in them",
}
FILE_METHODS = {
    "write_text", "read_text", "mkdir", "unlink", "touch", "rmdir", "iterdir", "rglob", "symlink_to", "hardlink_to"
}  # fmt: skip
FILE_MODULES = {"shutil", "tempfile", "fsspec", "s3fs", "gcsfs"}
FILE_FUNCTIONS = {"memory_map", "OSFile", "LocalFileSystem"}
OS_FUNCTIONS = {
    "open", "fdopen", "remove", "unlink", "rename", "replace", "link", "mkdir", "makedirs", "rmdir", "listdir",
    "scandir", "walk",
}  # fmt: skip


class Import(NamedTuple):
    module: str
    line: int


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[Import]:
    """Every import statement, also inside functions; those for type checkers alone do not count."""
    if isinstance(tree, ast.If) and ast.unparse(tree.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        return
    if isinstance(tree, ast.Import):
        for name in tree.names:
            yield Import(name.name, tree.lineno)
    elif isinstance(tree, ast.ImportFrom):
        assert tree.level == 0, "imports are absolute in this package"
        for name in tree.names:
            yield Import(f"{tree.module}.{name.name}", tree.lineno)
    for child in ast.iter_child_nodes(tree):
        yield from imports(child)


def room_of(module: str) -> str | None:
    """The room, or the single module of the package's root, that `distindex.x.y` belongs to."""
    parts = module.split(".")
    return parts[1] if parts[0] == "distindex" and len(parts) > 1 else None


def imports_of(path: Path) -> list[Import]:
    return list(imports(ast.parse(path.read_text())))


def home_of(path: Path) -> str:
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def opened(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """What in a module opens, makes or removes paths, each with its line."""
    for module, line in imports(tree):
        top = module.split(".")[0]
        if top in FILE_MODULES:
            yield top, line
        if module.startswith("pyarrow.fs"):
            yield "pyarrow.fs", line
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name) and function.id == "open":
            yield "open", node.lineno
        if not isinstance(function, ast.Attribute):
            continue
        name, owner = function.attr, ast.unparse(function.value)
        modes = [a for a in [*node.args, *(k.value for k in node.keywords)] if isinstance(a, ast.Constant)]
        if owner in ("os", "io") and name in OS_FUNCTIONS:
            yield f"{owner}.{name}", node.lineno
        elif name in FILE_FUNCTIONS:
            yield name, node.lineno
        elif name in FILE_METHODS:
            yield f".{name}", node.lineno
        elif name == "open" and any(mode.value in ("r", "rb", "w", "wb", "a", "ab", "x", "xb") for mode in modes):
            yield ".open(mode)", node.lineno
        elif name == "read_bytes" and not node.args:
            # Path's takes nothing, Storage's the path inside it.
            yield ".read_bytes()", node.lineno
        elif name == "write_bytes" and len(node.args) + len(node.keywords) == 1:
            yield ".write_bytes(data)", node.lineno


def test_every_room_is_known() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == set(ROOMS), "a new room needs its line in ROOMS: what may it import?"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {module}"
        for path in sources()
        if home_of(path) == room
        for module, line in imports_of(path)
        if (other := room_of(module)) in (set(ROOMS) | TOP) - {"__init__"} and other not in ROOMS[room] | {room}
    ]
    assert not wrong, wrong


def test_single_modules_import_no_room() -> None:
    wrong = [
        f"{path.name}:{line} imports {module}"
        for path in sources()
        if path.parent == PACKAGE and home_of(path) not in TOP
        for module, line in imports_of(path)
        if room_of(module) in ROOMS
    ]
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("library", "homes"), [("ray", MAY_IMPORT_RAY), ("faiss", {"index"}), ("torch", MAY_IMPORT_TORCH)]
)
def test_libraries_stay_in_their_rooms(library: str, homes: set[str]) -> None:
    importing = {
        f"{path.relative_to(PACKAGE)}:{line}": home_of(path)
        for path in sources()
        for module, line in imports_of(path)
        if module.split(".")[0] == library
    }
    assert importing, f"nothing imports {library}: the test looks in the wrong place"
    assert set(importing.values()) <= homes, {place: home for place, home in importing.items() if home not in homes}


def test_pure_rooms_do_not_reach_ray_through_runtime() -> None:
    users = {home_of(path) for path in sources() for module, _ in imports_of(path) if room_of(module) == "runtime"}
    assert users
    assert not users & PURE


def test_nothing_is_pickled() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {module}"
        for path in sources()
        for module, line in imports_of(path)
        if module.split(".")[0] in {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    ]
    assert not wrong, wrong


def test_torch_files_are_read_as_weights_only() -> None:
    loads = [
        ast.unparse(node)
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load")
    ]
    assert loads, "checkpoints are read with torch.load"
    assert all("weights_only=True" in load for load in loads), loads


def test_only_storage_opens_paths() -> None:
    found = {
        (str(path.relative_to(PACKAGE)), what): line
        for path in sources()
        if path.name != "storage.py"
        for what, line in opened(ast.parse(path.read_text()))
    }
    wrong = {place: line for place, line in found.items() if place not in OPENS_PATHS}
    assert not wrong, f"these open paths without Storage: {wrong}"
    assert set(found) == set(OPENS_PATHS), "an exception that is no longer needed stands in OPENS_PATHS"


def test_the_search_for_opened_paths_finds_them() -> None:
    source = """
import shutil, pyarrow.fs
open("a")
os.makedirs("b")
Path("c").write_text("d")
Path("c").write_bytes(b"d")
Path("c").read_bytes()
path.open("rb")
pa.memory_map("e")
storage.read_bytes("f"); storage.write_bytes("f", b""); Index.open("g"); text.replace("a", "b")
"""
    names = {what for what, _ in opened(ast.parse(source))}
    assert names == {
        "shutil", "pyarrow.fs", "open", "os.makedirs", ".write_text", ".write_bytes(data)", ".read_bytes()",
        ".open(mode)", "memory_map",
    }  # fmt: skip


def test_every_public_name_is_there() -> None:
    assert all(getattr(distindex, name) is not None for name in distindex.__all__)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = distindex.nothing_like_it


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import distindex; distindex.__version__", "ray torch faiss sklearn pyarrow numpy fastapi matplotlib"),
        ("import distindex.cli; distindex.cli.make_parser()", "ray torch faiss sklearn fastapi matplotlib"),
        ("from distindex.serving.client import HttpSearcher; HttpSearcher('http://localhost:1')", "ray torch faiss"),
        ("from distindex import Index", "ray torch"),
        ("from distindex import Hasher", "ray faiss sklearn"),
        ("import distindex.building", "torch faiss"),
        ("import distindex.training", "faiss matplotlib"),
        ("import distindex.inspection", "ray torch faiss sklearn"),
        ("import distindex.annotation.service", "ray torch faiss sklearn matplotlib"),
    ],
    ids=[
        "package",
        "command line",
        "HTTP client",
        "index",
        "hasher",
        "building",
        "training",
        "inspection",
        "label page",
    ],
)
def test_what_an_import_loads(statement: str, heavy: str) -> None:
    check = f"import sys; {statement}; print(*[name for name in '{heavy}'.split() if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == []
