"""One table for every place that prints figures: the command line, reports and benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

MISSING = "-"


def format_table(rows: Sequence[Mapping[str, Any]], style: Literal["text", "markdown"] = "text") -> str:
    """Rows as an aligned table, numbers to the right.

    Columns come in the order in which the rows first name them; a column without any value is left out.
    Whole numbers get thousands separators. The decimals of a column follow its largest value: four for
    shares and other values up to 1, fewer above; a column of whole values has none.
    """
    names = [
        name
        for name in dict.fromkeys(name for row in rows for name in row)
        if any(row.get(name) is not None for row in rows)
    ]
    columns = [_column([row.get(name) for row in rows]) for name in names]
    if style == "markdown":
        names = [_escape(name) for name in names]
        columns = [([_escape(cell) for cell in cells], right) for cells, right in columns]
    padded, rules = [], []
    for name, (cells, right) in zip(names, columns, strict=True):
        width = max(3, *(len(cell) for cell in (name, *cells)))
        padded.append([cell.rjust(width) if right else cell.ljust(width) for cell in (name, *cells)])
        rules.append("-" * (width - 1) + ":" if right and style == "markdown" else "-" * width)
    head, *body = zip(*padded, strict=True) if padded else [()]
    lines = [head, tuple(rules), *body]
    if style == "markdown":
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _column(values: Sequence[Any]) -> tuple[list[str], bool]:
    """The cells of one column, and whether they are numbers."""
    present = [value for value in values if value is not None]
    if not all(_is_number(value) for value in present):
        return [MISSING if value is None else _one_line(value) for value in values], False
    decimals = _decimals([float(value) for value in present if isinstance(value, float | np.floating)])
    return [MISSING if value is None else _number(value, decimals) for value in values], True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _decimals(values: Sequence[float]) -> int:
    finite = [value for value in values if np.isfinite(value)]
    largest = max(map(abs, finite), default=0.0)
    if largest <= 1:
        return 4
    if all(value == int(value) for value in finite):
        return 0
    return max(0, 3 - int(np.log10(largest)))


def _number(value: Any, decimals: int) -> str:
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    return f"{value:,.{decimals}f}"


def _one_line(value: Any) -> str:
    return " ".join(str(value).split())


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|")
