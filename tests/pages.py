"""The blocks of code in the pages of the documentation, and their commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]


# The pages with programs, as tests/test_docs_run.py runs them: the tutorial for itself, the others one after another.
RUN = (
    "docs/tutorial.md",
    "README.md",
    "docs/cli.md",
    "docs/grpc.md",
    "docs/http.md",
    "docs/kinds.md",
    "docs/inputs.md",
    "docs/how-to.md",
    "docs/encoding.md",
    "docs/labeling.md",
    "docs/serving.md",
)
# Of these a block is run, unless the line before it says what it needs or which file runs it.
PROGRAMS = ("bash", "python")
LANGUAGES = (*PROGRAMS, "yaml", "json", "text")
_MARK = re.compile(r"\s*<!-- (needs|run by): (.+) -->")


class Block(NamedTuple):
    """A block of code of a page: its language, its first line, its text, and the mark on the line before.

    Attributes:
        needs: what it needs that a test does not have; "" where nothing.
        run_by: the file that runs it in place of tests/test_docs_run.py; "" where none.
    """

    page: Path
    line: int
    language: str
    text: str
    needs: str
    run_by: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    language, held, began, mark = None, [], 0, {}
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = re.match(r"\s*```(\w*)", line)
        if language is None:
            if fence:
                language, held, began = fence[1], [], number + 1
            else:
                found = _MARK.match(line)
                mark = {found[1]: found[2]} if found else {}
        elif fence:
            yield Block(page, began, language, "\n".join(held), mark.get("needs", ""), mark.get("run by", ""))
            language, mark = None, {}
        else:
            held.append(line)


def commands(block: Block) -> Iterator[list[str]]:
    """The commands of a block, as a shell would split them: continued lines joined, comments left out."""
    for line in block.text.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue
        while words and (re.fullmatch(r"\w+=\S*", words[0]) or words[0] in ("$", "#")):
            words = words[1:]
        if words:
            yield words
