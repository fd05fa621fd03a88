"""Filters on payload columns: `label == "sport" and 2020 <= year < 2024`, parsed, never run as code.

The grammar is a part of Python's: comparisons (`== != < <= > >= in`, `not in`) of a column with constants, joined by
`and`, `or`, `not` and parentheses. A column is its name, or `column("its name")`. Constants are texts, numbers,
`True`, `False`, times as texts in ISO 8601, and `None`, which stands for null in `==` and `!=`. A comparison with a
null is neither true nor false (as in SQL), and only rows for which the whole is true pass.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from distindex.errors import InputError

LONGEST = 20_000
_COMPARISONS = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.In: "in",
    ast.NotIn: "not in",
}  # fmt: skip
_FUNCTIONS = {
    "==": "equal", "!=": "not_equal", "<": "less", "<=": "less_equal", ">": "greater", ">=": "greater_equal",
}  # fmt: skip
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One column against a constant, or against a list of them with `in`."""

    column: str
    operator: str
    value: Any


@dataclasses.dataclass(frozen=True)
class Junction:
    """`and` or `or` of several conditions, or `not` of one."""

    operator: str
    parts: tuple[Comparison | Junction, ...]


Condition = Comparison | Junction


class Filter:
    """A parsed filter.

    Attributes:
        text: as it was given.
        columns: the payload columns that it reads, in the order of their first use.

    Raises:
        InputError: the text is not a filter; says what is wrong.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        if not isinstance(text, str) or not text.strip():
            raise InputError("filter: is empty; leave it out, or compare a column, as in year >= 2020")
        if len(text) > LONGEST:
            raise InputError(f"filter: {len(text)} characters, but at most {LONGEST} are read")
        try:
            self._condition = _condition(ast.parse(text.strip(), mode="eval").body)
        except SyntaxError as error:
            place = f" at character {error.offset}" if error.offset else ""
            raise InputError(
                f'filter: {error.msg}{place}; write for instance label == "a" and year > 2020'
            ) from error
        except (RecursionError, MemoryError, ValueError) as error:
            raise InputError("filter: is nested too deeply or holds what no filter can") from error
        self.columns: tuple[str, ...] = tuple(dict.fromkeys(_columns_of(self._condition)))

    def check(self, known: Sequence[str]) -> None:
        """Refuse a filter that reads other columns than these.

        Raises:
            InputError: naming the column.
        """
        for column in self.columns:
            if column not in known:
                has = f"its payload columns are {', '.join(known)}" if known else "it has no payload columns"
                raise InputError(f'filter: the index has no column "{column}"; {has}')

    def mask(self, payload: pa.Table) -> npt.NDArray[np.bool_]:
        """Which rows pass.

        Args:
            payload: holds the filter's columns.

        Raises:
            InputError: a column is missing, or its type cannot be compared with the constant.
        """
        self.check(payload.column_names)
        passed = pc.fill_null(_evaluate(self._condition, payload), False)
        return np.asarray(passed.to_numpy(), bool) if payload.num_rows else np.zeros(0, bool)


def _condition(node: ast.expr) -> Condition:
    if isinstance(node, ast.BoolOp):
        operator = "and" if isinstance(node.op, ast.And) else "or"
        return Junction(operator, tuple(_condition(value) for value in node.values))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return Junction("not", (_condition(node.operand),))
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        parts = [_comparison(a, op, b) for a, op, b in zip(sides, node.ops, sides[1:], strict=False)]
        return parts[0] if len(parts) == 1 else Junction("and", tuple(parts))
    column = _column(node)
    if column is not None:
        return Comparison(column, "==", True)
    raise _refused(node)


def _comparison(left: ast.expr, operation: ast.cmpop, right: ast.expr) -> Comparison:
    operator = _COMPARISONS.get(type(operation))
    if operator is None:
        raise InputError("filter: is and is not are not known; use == None and != None")
    column, other = _column(left), _column(right)
    if column is not None and other is not None:
        raise InputError(f"filter: compares column {column} with column {other}; compare a column with a constant")
    if operator in ("in", "not in"):
        if column is None or not isinstance(right, ast.List | ast.Tuple | ast.Set):
            raise InputError("filter: in takes a column and a list, as in label in [1, 2]")
        values = [_constant(item) for item in right.elts]
        if None in values:
            raise InputError(f"filter: None stands in the list for {column}; use {column} == None")
        return Comparison(column, operator, tuple(values))
    if column is None and other is not None:
        column, operator, right = other, _MIRRORED[operator], left
    if column is None:
        raise InputError(f"filter: {ast.unparse(left)} {operator} {ast.unparse(right)} compares no column")
    value = _constant(right)
    if value is None and operator not in ("==", "!="):
        raise InputError(f"filter: {column} {operator} None; None goes with == and != only")
    return Comparison(column, operator, value)


def _column(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "column"
        and len(node.args) == 1
        and not node.keywords
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    ):
        return node.args[0].value
    return None


def _constant(node: ast.expr) -> Any:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _constant(node.operand)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.Constant) and (
        node.value is None or isinstance(node.value, str | bool | int) or _is_finite(node.value)
    ):
        return node.value
    raise _refused(node)


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _refused(node: ast.expr) -> InputError:
    return InputError(
        f"filter: {ast.unparse(node)[:80]} is not part of a filter; columns are compared with constants by "
        "== != < <= > >= in, joined by and, or, not"
    )


def _columns_of(condition: Condition) -> list[str]:
    if isinstance(condition, Comparison):
        return [condition.column]
    return [column for part in condition.parts for column in _columns_of(part)]


def _evaluate(condition: Condition, payload: pa.Table) -> Any:
    """True, false or null for each row."""
    if isinstance(condition, Comparison):
        return _compare(payload.column(condition.column), condition)
    parts = [_evaluate(part, payload) for part in condition.parts]
    if condition.operator == "not":
        return pc.invert(parts[0])
    join = pc.and_kleene if condition.operator == "and" else pc.or_kleene
    whole = parts[0]
    for part in parts[1:]:
        whole = join(whole, part)
    return whole


def _compare(column: pa.ChunkedArray, comparison: Comparison) -> Any:
    operator, value = comparison.operator, comparison.value
    if value is None:
        return pc.is_null(column) if operator == "==" else pc.is_valid(column)
    if operator in ("in", "not in"):
        numbers = [_whole("==", item, column.type) if _is_whole(column.type, item) else item for item in value]
        # What no value of the column can equal is not in the set; True and False are then no texts of a list.
        kept = [
            item[1] if isinstance(item, tuple) else item
            for item, given in zip(numbers, value, strict=True)
            if not isinstance(item, bool) or isinstance(given, bool)
        ]
        items = pa.array([_scalar(column.type, item, comparison) for item in kept], column.type)
        found = pc.if_else(pc.is_valid(column), pc.is_in(column, value_set=items), pa.scalar(None, pa.bool_()))
        return pc.invert(found) if operator == "not in" else found
    if _is_whole(column.type, value):
        bounded = _whole(operator, value, column.type)
        if isinstance(bounded, bool):
            return pc.if_else(pc.is_valid(column), pa.scalar(bounded), pa.scalar(None, pa.bool_()))
        operator, value = bounded
    return getattr(pc, _FUNCTIONS[operator])(column, _scalar(column.type, value, comparison))


def _is_whole(kind: pa.DataType, value: Any) -> bool:
    """Whether a number meets a column of whole numbers."""
    return pa.types.is_integer(kind) and isinstance(value, int | float) and not isinstance(value, bool)


def _whole(operator: str, value: float, kind: pa.DataType) -> bool | tuple[str, int]:
    """The same comparison with a whole number of the column's type, or its truth where all rows share it."""
    signed = pa.types.is_signed_integer(kind)
    least = -(1 << (kind.bit_width - 1)) if signed else 0
    most = (1 << (kind.bit_width - signed)) - 1
    if operator in ("==", "!=") and (value != math.floor(value) or not least <= value <= most):
        return operator == "!="
    if operator in ("<=", "<") and value != math.floor(value):
        operator = "<="
    if operator in (">", ">=") and value != math.floor(value):
        operator, value = ">", math.floor(value)
    number = math.floor(value)
    if number < least:
        return operator in (">", ">=")
    if number > most:
        return operator in ("<", "<=")
    return operator, number


def _scalar(kind: pa.DataType, value: Any, comparison: Comparison) -> pa.Scalar:
    """The constant in the column's type."""
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    times = pa.types.is_temporal(kind) and not pa.types.is_duration(kind)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = (
        (isinstance(value, str) and (texts or times))
        or (isinstance(value, bool) and pa.types.is_boolean(kind))
        or (number and (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)))
    )
    try:
        if fits:
            return pa.scalar(float(value) if pa.types.is_floating(kind) else value).cast(kind)
    except (pa.ArrowException, ValueError, OverflowError):
        pass
    shown = f"{value!r}" if not isinstance(value, str) else f'"{value[:60]}"'
    raise InputError(
        f"filter: column {comparison.column} is of type {kind} and cannot be compared ({comparison.operator}) "
        f"with {shown}"
    )
