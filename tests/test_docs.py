"""The documentation: links lead somewhere, the site builds, commands are those there are, every message is listed."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import distindex
from distindex import cli, settings
from jobs.pipeline import PipelineConfig
from tests import messages
from tests.pages import LANGUAGES, PROGRAMS, REPOSITORY, RUN, blocks, commands

PAGES = sorted(
    REPOSITORY / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout.split()
    if (REPOSITORY / name).is_file()
)  # fmt: skip
GUIDES = [page for page in PAGES if "benchmarks" not in page.parts and page.name != "CHANGELOG.md"]


BLOCKS = [block for page in GUIDES for block in blocks(page)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        count = found.get(name, 0)
        found[name] = count + 1
        names.add(f"{name}-{count}" if count else name)
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            wrong.append(target)
    assert not wrong


@pytest.mark.slow
def test_the_site_builds_and_a_link_that_leads_nowhere_fails_it(tmp_path: Path) -> None:
    """One build, with one link that leads nowhere: that is all that it complains of."""
    pages = tmp_path / "pages"
    subprocess.run([sys.executable, "docs/lay_out.py", pages], cwd=REPOSITORY, check=True, timeout=60)
    with (pages / "docs/cli.md").open("a") as page:
        page.write("\n[nowhere](nowhere.md)\n")
    config = (REPOSITORY / "mkdocs.yml").read_text()
    config = config.replace("build/pages", str(pages)).replace("build/site", str(tmp_path / "site"))
    (tmp_path / "mkdocs.yml").write_text(config.replace("paths: [.]", f"paths: ['{REPOSITORY}']"))
    built = subprocess.run(
        [Path(sys.executable).with_name("mkdocs"), "build", "--strict", "--config-file", tmp_path / "mkdocs.yml"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    warnings = [line for line in built.stderr.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 1, built.stderr
    assert "docs/cli.md" in warnings[0]
    assert "nowhere.md" in warnings[0]
    assert built.returncode == 1
    api = (tmp_path / "site/docs/python/index.html").read_text()
    assert "distindex.index.index.Index.search" in api, "docstrings are on the page"


def test_every_page_is_in_the_navigation_and_in_the_index() -> None:
    nav = re.findall(r"- (\S+\.md)$", (REPOSITORY / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = {str(page.relative_to(REPOSITORY)) for page in PAGES if "results" not in page.parts}
    assert set(nav) == pages - {"tests/data/README.md"}
    assert len(nav) == len(set(nav))
    index = (REPOSITORY / "docs/index.md").read_text()
    missing = [name for name in nav if name.startswith("docs/") and f"]({Path(name).name})" not in index]
    assert missing == ["docs/index.md"]


def test_every_message_is_listed() -> None:
    expected = messages.page()
    assert expected.count("\n- ") > 300, "the search for messages finds them"
    assert messages.PAGE.read_text() == expected, "run `python -m tests.messages`"


def test_the_python_page_has_every_public_name() -> None:
    page = (REPOSITORY / "docs/python.md").read_text()
    missing = [
        name for name in distindex.__all__ if not name.startswith("__") and not re.search(rf"\b{name}\b", page)
    ]
    assert not missing


@pytest.fixture(scope="module")
def parser() -> Any:
    """The command line's, made once."""
    return cli.make_parser()


def placeholders(words: list[str]) -> bool:
    """Whether a command stands for others: `VERB`, `...`."""
    return any("..." in word or word.isupper() or word == "…" for word in words[1:3])


COMMANDS = [
    pytest.param(words, id=f"{block}-{number}")
    for block in BLOCKS
    if block.language == "bash"
    for number, words in enumerate(commands(block))
    if words[0] in ("distindex", "python", "ray") and not placeholders(words)
]


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_have_options_that_there_are(words: list[str], parser: Any) -> None:
    """Also of those that need a cloud, whose paths are made up."""
    words = words[: next((i for i, word in enumerate(words) if word in ("|", "&", "&&", ">", ";")), len(words))]
    if words[:3] == ["ray", "job", "submit"]:
        words = words[words.index("--") + 1 :]
    if words[0] == "distindex":
        if words[1].startswith("--"):
            assert words[1:] in (["--version"], ["--help"])
        elif "--help" not in words and "--config" not in "".join(words):
            parser.parse_args(words[1:])
        else:
            assert words[1] in cli.VERBS
    elif words[0] == "python" and words[1].startswith("jobs/"):
        name = Path(words[1]).stem
        config_class = PipelineConfig if name == "pipeline" else cli.VERBS[name].config_class
        if "--config" not in words and "..." not in words:
            settings.load(config_class, overrides=words[2:])
    elif words[:2] == ["python", "-m"]:
        module = words[2].replace(".", "/")
        known = [REPOSITORY / f"{module}.py", REPOSITORY / module / "__main__.py"]
        assert any(path.is_file() for path in known) or words[2] in ("venv", "pytest")


def test_python_blocks_are_python_and_import_what_there_is() -> None:
    found = [block for block in BLOCKS if block.language == "python"]
    assert len(found) >= 5
    for block in found:
        for node in ast.walk(ast.parse(block.text, str(block))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("distindex"):
                module: Any = __import__(node.module or "", fromlist=["*"])
                assert all(hasattr(module, name.name) for name in node.names), str(block)


def test_yaml_blocks_are_yaml() -> None:
    for block in BLOCKS:
        if block.language == "yaml":
            yaml.safe_load(block.text)


def test_every_program_on_a_page_is_run_or_says_what_it_needs() -> None:
    for page in GUIDES:
        prose = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        indented = re.search(r"^[^\s*-].*\n\n {4}(.*)", prose, re.MULTILINE)
        assert indented is None, f"{page.name}: {indented[1]!r} belongs between ``` with its language"
    for block in BLOCKS:
        assert block.language in LANGUAGES, f"{block}: say what it is: {', '.join(LANGUAGES)}"
        assert block.language in PROGRAMS or not block.needs + block.run_by, f"{block}: nothing is run here"
        assert not block.run_by or (REPOSITORY / block.run_by).is_file(), f"{block}: there is no {block.run_by}"
    programs = [block for block in BLOCKS if block.language in PROGRAMS and not block.needs and not block.run_by]
    assert {str(block.page.relative_to(REPOSITORY)) for block in programs} == set(RUN)
