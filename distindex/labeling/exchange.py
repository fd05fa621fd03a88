"""`distindex label import` and `label export`: votes from and to CSV and JSON Lines."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from distindex.corpus.label_store import LabelStore, Vote
from distindex.errors import ConflictError, InputError, NotFoundError
from distindex.label_config import LabelExportConfig, LabelImportConfig
from distindex.storage import Storage

_COLUMNS = ("id", "label", "other", "similar", "annotator", "time", "round", "retracted")
_TRUE, _FALSE = ("true", "1", "yes", "same"), ("false", "0", "no", "different")


@dataclasses.dataclass
class LabelImportReport:
    """What came into a label store.

    Attributes:
        uri: the store.
        votes: answers in the file.
        skipped: rows without an answer.
        labeled: items of the store that have labels now.
        pairs: pairs of items of which it is known now whether they are alike.
        conflicts: items and pairs about which annotators disagree.
        undecided: those of them where two answers lead.
    """

    uri: str
    votes: int
    skipped: int
    labeled: int
    pairs: int
    conflicts: int
    undecided: int


@dataclasses.dataclass
class LabelExportReport:
    """What was written: the file, and its rows."""

    uri: str
    rows: int


def import_votes(config: LabelImportConfig) -> LabelImportReport:
    """Add the answers of a file to a label store.

    Votes without a time are given now.

    Raises:
        NotFoundError: there is no such file.
        InputError: a row of it is no answer, naming its line; nothing is added then.
    """
    rows = list(_read(Storage(config.input, config.storage_options)))
    answered = [
        each for each in rows if any(_present(each[1].get(name)) for name in ("label", "similar", "retracted"))
    ]
    if not answered:
        raise InputError(f"{config.input}: none of its {len(rows)} rows has a label, or says whether two are alike")
    id_type = _id_type(config, [row for _, row in answered])
    now = datetime.datetime.now(datetime.UTC)
    votes = [_vote(where, row, id_type, config.annotator, now) for where, row in answered]
    store = LabelStore.create(config.store, id_type, config.storage_options)
    added = store.add(votes)
    resolved = store.resolved()
    return LabelImportReport(
        uri=config.store,
        votes=added,
        skipped=len(rows) - len(answered),
        labeled=len(resolved.labels),
        pairs=len(resolved.pairs),
        conflicts=len(resolved.conflicts),
        undecided=sum(conflict.winner is None for conflict in resolved.conflicts),
    )


def export_votes(config: LabelExportConfig) -> LabelExportReport:
    """Write what is in a label store to a new file.

    Raises:
        NotFoundError: there is no label store.
        InputError: the file exists.
    """
    store = LabelStore.open(config.store, config.storage_options)
    rows = [dict(row) for row in _ROWS[config.what](store)]
    as_csv = config.output.endswith(".csv")
    text = io.StringIO()
    if as_csv:
        writer = csv.DictWriter(text, list(rows[0]) if rows else _COLUMNS[:2], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _flat(value) for name, value in row.items()} for row in rows)
    else:
        text.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        Storage(config.output, config.storage_options).create_bytes("", text.getvalue().encode())
    except ConflictError as error:
        raise InputError(f"output: {config.output} exists; choose another name") from error
    return LabelExportReport(config.output, len(rows))


def _votes(store: LabelStore) -> Iterator[Mapping[str, Any]]:
    for vote in store.votes():
        yield {
            "id": vote.id,
            "label": list(vote.labels) or None,
            "other": vote.other,
            "similar": vote.similar,
            "annotator": vote.annotator,
            "time": vote.time.isoformat(),
            "round": vote.round,
            "retracted": True if vote.answer is None else None,
        }


def _labels(store: LabelStore) -> Iterator[Mapping[str, Any]]:
    resolved = store.resolved()
    for identifier, labels in resolved.labels.items():
        yield {"id": identifier, "label": list(labels), "other": None, "similar": None}
    for (first, second), similar in resolved.pairs.items():
        yield {"id": first, "label": None, "other": second, "similar": similar}


def _conflicts(store: LabelStore) -> Iterator[Mapping[str, Any]]:
    for conflict in store.resolved().conflicts:
        answers = {_flat(list(a) if isinstance(a, tuple) else a): names for a, names in conflict.answers.items()}
        winner = list(conflict.winner) if isinstance(conflict.winner, tuple) else conflict.winner
        yield {
            "id": conflict.subject[0],
            "other": conflict.subject[1] if len(conflict.subject) > 1 else None,
            "winner": winner,
            "answers": json.dumps(answers, ensure_ascii=False),
        }


_ROWS = {"votes": _votes, "labels": _labels, "conflicts": _conflicts}


def _flat(value: Any) -> Any:
    """A value as it stands in a field of CSV."""
    if isinstance(value, bool):
        return str(value).lower()
    return "|".join(value) if isinstance(value, list) else value


def _read(storage: Storage) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of the file, each with its place."""
    try:
        text = storage.read_bytes("").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{storage.uri}: not a text file in UTF-8 ({error})") from error
    if storage.uri.endswith(".csv"):
        reader = csv.DictReader(io.StringIO(text))
        if "id" not in (reader.fieldnames or ()):
            raise InputError(f"{storage.uri} line 1: no column id; the first line names the columns: id, label")
        for row in reader:
            where = f"{storage.uri} line {reader.line_num}"
            if None in row:
                raise InputError(f"{where}: more fields than the first line has columns")
            # In CSV several labels share a field.
            labels = row["label"].split("|") if row.get("label") else None
            yield where, row | {"label": labels}
    elif storage.uri.endswith(".jsonl"):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise InputError(f"{storage.uri} line {number}: not valid JSON ({error})") from error
                if not isinstance(row, dict):
                    raise InputError(f"{storage.uri} line {number}: expected an object with id and label")
                yield f"{storage.uri} line {number}", row
    else:
        raise InputError(f"input: {storage.uri} must end in .csv or .jsonl, for its format")


def _id_type(config: LabelImportConfig, rows: Sequence[Mapping[str, Any]]) -> pa.DataType:
    try:
        return LabelStore.open(config.store, config.storage_options).id_type
    except NotFoundError:
        pass
    if config.ids != "auto":
        return pa.int64() if config.ids == "integer" else pa.string()
    names = [row[name] for row in rows for name in ("id", "other") if _present(row.get(name))]
    return pa.int64() if all(_is_integer(name) for name in names) else pa.string()


def _vote(where: str, row: Mapping[str, Any], id_type: pa.DataType, annotator: str, now: datetime.datetime) -> Vote:
    labels, similar = row.get("label"), row.get("similar")
    labels = [labels] if isinstance(labels, str | int) else labels or []
    retracted = _present(row.get("retracted")) and _truth(where, "retracted", row["retracted"])
    if not retracted and bool(labels) == _present(similar):
        raise InputError(f"{where}: either a label, or whether two items are alike, not both")
    if retracted and (labels or _present(similar)):
        raise InputError(f"{where}: retracted takes back what was said before, and gives no answer of its own")
    if not retracted and _present(similar) != _present(row.get("other")):
        raise InputError(f"{where}: other and similar go together")
    try:
        time = datetime.datetime.fromisoformat(row["time"]) if _present(row.get("time")) else now
        number = int(row["round"]) if _present(row.get("round")) else 0
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from error
    return Vote(
        _id(where, row.get("id"), id_type),
        tuple(sorted({str(label).strip() for label in labels})),
        _id(where, row.get("other"), id_type) if _present(row.get("other")) else None,
        _truth(where, "similar", similar) if _present(similar) else None,
        row.get("annotator") or annotator,
        # A time without a zone is one of this machine.
        time.astimezone(datetime.UTC),
        number,
    )


def _truth(where: str, name: str, value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in (*_TRUE, *_FALSE):
        raise InputError(f"{where}: {name} is {value!r}; it must be {' or '.join((_TRUE[0], _FALSE[0]))}")
    return text in _TRUE


def _id(where: str, value: Any, id_type: pa.DataType) -> int | str:
    if not _present(value):
        raise InputError(f"{where}: the id is missing")
    if pa.types.is_integer(id_type):
        if not _is_integer(value):
            raise InputError(f"{where}: {value!r} is not an integer, as the ids of this store are")
        return int(value)
    return str(value)


def _is_integer(value: Any) -> bool:
    """Whether an id is an int64 as it is, or written out without anything that would be lost."""
    try:
        return not isinstance(value, bool) and str(pa.scalar(int(value), pa.int64()).as_py()) == str(value).strip()
    except (TypeError, ValueError, OverflowError, pa.ArrowException):
        return False


def _present(value: Any) -> bool:
    return value is not None and value != "" and value != []
