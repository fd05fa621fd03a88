"""Finished runs: one line of JSON each, in one file per data set, only ever appended to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from benchmarks.quality.plan import Cell
from benchmarks.reporting import plain
from distindex.errors import FormatError

FORMAT_VERSION = 1


class Fingerprints(Protocol):
    """What knows the settings of the cells."""

    def fingerprint(self, cell: Cell) -> str:
        """Equal for equal settings."""
        ...


class Results:
    """The finished runs in a directory.

    A run belongs to its cell and to the fingerprint of what the plan said about that cell when it was run. Of
    several such runs the last one counts; runs under another fingerprint are kept and not used.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def append(self, cell: Cell, fingerprint: str, found: Mapping[str, Any]) -> None:
        """Keep one run. One process appends at a time: the one that was started by hand."""
        line = {"format_version": FORMAT_VERSION, **vars(cell), "fingerprint": fingerprint, **found}
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self._path(cell.dataset)
        # A process that died while it wrote has left a line without an end.
        broken = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
        with path.open("a") as stream:
            stream.write("\n" * bool(broken) + json.dumps(plain(line, "result")) + "\n")

    def read(self, plan: Fingerprints, cells: Iterable[Cell]) -> dict[Cell, dict[str, Any]]:
        """The run of each cell that has one under the plan's present fingerprint.

        Raises:
            FormatError: a line is of a format that this release does not know.
        """
        found: dict[tuple[str, str], dict[str, Any]] = {}
        cells = list(cells)
        for dataset in dict.fromkeys(cell.dataset for cell in cells):
            for line in self._lines(dataset):
                found[str(_cell(line)), line["fingerprint"]] = line
        runs = ((cell, found.get((str(cell), plan.fingerprint(cell)))) for cell in cells)
        return {cell: run for cell, run in runs if run is not None}

    def outdated(self, plan: Fingerprints, cells: Iterable[Cell]) -> set[Cell]:
        """The cells that have runs, but only of other settings."""
        cells = list(cells)
        names = {cell.dataset for cell in cells}
        kept = {str(_cell(line)) for name in names for line in self._lines(name)}
        current = self.read(plan, cells)
        return {cell for cell in cells if str(cell) in kept and cell not in current}

    def _lines(self, dataset: str) -> list[dict[str, Any]]:
        path = self._path(dataset)
        if not path.exists():
            return []
        lines = []
        for number, text in enumerate(path.read_text().splitlines(), 1):
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                # What a process that died has left; its cell counts as missing.
                continue
            if line.get("format_version") != FORMAT_VERSION:
                raise FormatError(
                    f"{path} line {number}: a result of format {line.get('format_version')}; "
                    f"this release reads format {FORMAT_VERSION}"
                )
            lines.append(line)
        return lines

    def _path(self, dataset: str) -> Path:
        return self.directory / f"{dataset}.jsonl"


def _cell(line: Mapping[str, Any]) -> Cell:
    return Cell(**{name: line[name] for name in Cell.__dataclass_fields__})
