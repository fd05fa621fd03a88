"""The blocks of code in the pages of the documentation, and their commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]


class Block(NamedTuple):
    """A block of code of a page: its language ("" where it is indented), its first line, its text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The fenced and the indented blocks of a page."""
    fence, held, began, before = None, [], 0, ""
    for number, line in enumerate([*page.read_text().splitlines(), ""], 1):
        marker = re.match(r"\s*```(\w*)", line)
        if fence is not None:
            if marker:
                yield Block(page, began, fence, "\n".join(held))
                fence, held = None, []
            else:
                held.append(line)
        elif line.startswith("    ") and (held or not before.strip()):
            began = began if held else number
            held.append(line[4:])
        elif not line.strip() and held:
            held.append("")
        else:
            if held:
                yield Block(page, began, "", "\n".join(held).rstrip("\n"))
                held = []
            if marker:
                fence, began = marker[1], number + 1
        before = line
    if held:
        yield Block(page, began, "", "\n".join(held).rstrip("\n"))


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
