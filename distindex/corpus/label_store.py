"""Labels that people have given: an append-only directory of votes, and what follows from them.

    label_store.json             format, type of the ids
    votes/<sha256>.parquet       id, labels, other, similar, annotator, time, round: created once, never changed

A vote is a set of labels for an item, or whether two items are alike (`other`, `similar`); with neither it takes back
what its annotator said of them. Of several votes of one annotator on the same thing the newest counts; of several
annotators' the one that most of them gave. Where two lead, nothing follows, and `Resolved.conflicts` says so. Files
are named by their content: adding the same votes again changes nothing, and two writers do not meet.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distindex.corpus.labels import label_lists
from distindex.corpus.pair_answers import RowPairs
from distindex.errors import ConflictError, FormatError, InputError, NotFoundError
from distindex.settings import fingerprint
from distindex.storage import Storage

FORMAT_VERSION = 1
_DESCRIPTION, _VOTES = "label_store.json", "votes"
_ID_TYPES = {"int64": pa.int64(), "string": pa.string()}

Id = int | str
Subject = tuple[Id, ...]
"""What a vote is about: an item, or two in order."""
Answer = tuple[str, ...] | bool
"""Labels, or whether two items are alike."""


class Vote(NamedTuple):
    """What one annotator said of an item, or of two.

    Attributes:
        id: the item.
        labels: its labels; empty for a vote on two items, and for one that takes back.
        other: the other item; None for a vote on one.
        similar: whether the two are alike; None for a vote on one, and for one that takes back.
        annotator: who says so.
        time: when, with its time zone.
        round: of the selection that asked; 0 where none did.
    """

    id: Id
    labels: tuple[str, ...]
    other: Id | None
    similar: bool | None
    annotator: str
    time: datetime.datetime
    round: int

    @property
    def subject(self) -> Subject:
        """What it is about: an item, or two in order."""
        return (self.id,) if self.other is None else tuple(sorted((self.id, self.other)))  # type: ignore[type-var]

    @property
    def answer(self) -> Answer | None:
        """What it says; None where it takes back what was said before."""
        return self.similar if self.other is not None else self.labels or None


def vote_on(subject: Subject, answer: Answer | None, annotator: str, time: datetime.datetime, round: int) -> Vote:
    """The vote that gives this answer, or takes back the one before."""
    labels = answer if isinstance(answer, tuple) else ()
    similar = answer if isinstance(answer, bool) else None
    return Vote(subject[0], labels, subject[1] if len(subject) > 1 else None, similar, annotator, time, round)


class Conflict(NamedTuple):
    """Annotators who disagree.

    Attributes:
        subject: an item, or two.
        answers: each answer with those who gave it, the most frequent first.
        winner: the answer that counts; None where two lead.
    """

    subject: Subject
    answers: dict[Answer, list[str]]
    winner: Answer | None


@dataclasses.dataclass(frozen=True)
class Resolved:
    """What follows from all votes.

    Attributes:
        labels: the labels of each item that has some, ascending by id.
        pairs: for pairs of items whether they are alike.
        conflicts: where annotators disagree.
    """

    labels: dict[Id, tuple[str, ...]]
    pairs: dict[Subject, bool]
    conflicts: list[Conflict]


@dataclasses.dataclass(frozen=True)
class GivenLabels:
    """The answers of a store as training takes them.

    Attributes:
        ids: of the labeled items.
        labels: their labels, lists of strings.
        pair_ids: of the items of all pairs, each once.
        pair_Q2: the two items of each pair, by their places in `pair_ids`.
        similar_Q: whether the two are alike.
        fingerprint: of the votes.
    """

    ids: pa.Array
    labels: pa.Array
    pair_ids: pa.Array
    pair_Q2: npt.NDArray[np.int64]
    similar_Q: npt.NDArray[np.bool_]
    fingerprint: str

    def over(
        self, ids: pa.ChunkedArray | pa.Array, column: pa.ChunkedArray | pa.Array | None
    ) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
        """A label column with these labels in place of its own, as lists of strings, and which rows have one of them.

        Args:
            ids: of the rows.
            column: their own labels; None without.
        """
        own = label_lists(column if column is not None else pa.nulls(len(ids), pa.string()))
        at_N = pc.index_in(ids, value_set=self.ids).fill_null(-1).to_numpy(zero_copy_only=False)
        given_N = at_N >= 0
        chosen_N = np.where(given_N, len(own) + at_N, np.arange(len(own)))
        return pa.concat_arrays([own, self.labels]).take(pa.array(chosen_N)), given_N

    def places_of(self, ids: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.int64]:
        """`place_N`: where these ids stand in `pair_ids`; -1 where no pair has one."""
        return pc.index_in(ids, value_set=self.pair_ids).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)

    def row_pairs(self, row_M: npt.NDArray[np.int64], place_M: npt.NDArray[np.int64]) -> RowPairs:
        """The pairs by rows.

        Args:
            row_M: numbers of the rows that stand in a pair.
            place_M: where their ids stand in `pair_ids`.
        """
        row_of = np.full(len(self.pair_ids), -1, np.int64)
        row_of[place_M] = row_M
        return RowPairs(row_of[self.pair_Q2], self.similar_Q)


class LabelStore:
    """A directory of votes.

    Args:
        storage: the directory.
        id_type: type of the ids, int64 or string.
    """

    def __init__(self, storage: Storage, id_type: pa.DataType) -> None:
        self.storage, self.id_type = storage, id_type

    @classmethod
    def open(cls, uri: str, options: Mapping[str, Any] | None = None) -> LabelStore:
        """A store that is there.

        Raises:
            NotFoundError: it is not.
            FormatError: this release does not know its format.
        """
        storage = Storage(uri, options)
        try:
            described = storage.read_json(_DESCRIPTION)
        except NotFoundError as error:
            raise NotFoundError(f"{uri}: no label store here; `distindex label import` makes one") from error
        if described.get("format_version") != FORMAT_VERSION:
            raise FormatError(
                f"{storage.full_uri(_DESCRIPTION)}: format {described.get('format_version')}; "
                f"this release reads format {FORMAT_VERSION}"
            )
        return cls(storage, _ID_TYPES[described["id_type"]])

    @classmethod
    def create(cls, uri: str, id_type: pa.DataType, options: Mapping[str, Any] | None = None) -> LabelStore:
        """A store for ids of this type, made if it is not there.

        Raises:
            InputError: the store that is there has ids of the other type.
        """
        storage = Storage(uri, options)
        try:
            storage.create_json(
                _DESCRIPTION,
                {"format_version": FORMAT_VERSION, "kind": "label-store", "id_type": str(id_type)},
            )
        except ConflictError:
            found = cls.open(uri, options)
            if found.id_type != id_type:
                raise InputError(f"{uri}: the label store has ids of type {found.id_type}, not {id_type}") from None
            return found
        return cls(storage, id_type)

    def add(self, votes: Iterable[Vote]) -> int:
        """Add votes; how many they are.

        Raises:
            InputError: a vote is none: naming it. Nothing was added then.
        """
        distinct = set(votes)
        for vote in distinct:
            _check(vote, self.id_type)
        if not distinct:
            return 0
        given = sorted(distinct, key=_order)
        columns = list(zip(*given, strict=True))
        table = pa.Table.from_arrays(
            [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)],
            schema=self._schema,
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        data = sink.getvalue().to_pybytes()
        path = f"{_VOTES}/{hashlib.sha256(data).hexdigest()[:32]}.parquet"
        # The name is the content's: what exists is these votes.
        with contextlib.suppress(ConflictError):
            self.storage.create_bytes(path, data)
        return len(given)

    def votes(self) -> list[Vote]:
        """All votes, by time.

        Raises:
            InputError: a file is damaged.
        """
        found: set[Vote] = set()
        for name in self._names:
            path = f"{_VOTES}/{name}"
            try:
                # Small files: threads would cost more than they save, and a process may end while they start.
                data = pa.BufferReader(self.storage.read_bytes(path))
                table = pq.read_table(data, use_threads=False, pre_buffer=False)
            except pa.ArrowException as error:
                raise InputError(f"{self.storage.full_uri(path)}: the file is damaged ({error})") from error
            for row in table.cast(self._schema).to_pylist():
                found.add(Vote(**{**row, "labels": tuple(row["labels"])}))
        return sorted(found, key=_order)

    def resolved(self) -> Resolved:
        """What follows from all votes."""
        resolved = Resolved({}, {}, [])
        for subject, given in sorted(standing_answers(self.votes()).items()):
            winner = winner_of(given.values())
            if len(set(given.values())) > 1:
                names: dict[Answer, list[str]] = {}
                for annotator, answer in sorted(given.items()):
                    names.setdefault(answer, []).append(annotator)
                ranked = sorted(names.items(), key=lambda each: -len(each[1]))
                resolved.conflicts.append(Conflict(subject, dict(ranked), winner))
            if isinstance(winner, bool):
                resolved.pairs[subject] = winner
            elif winner is not None:
                resolved.labels[subject[0]] = winner
        return resolved

    def given_labels(self) -> GivenLabels:
        """The answers for training.

        Raises:
            InputError: nothing follows from them.
        """
        resolved = self.resolved()
        if not resolved.labels and not resolved.pairs:
            raise InputError(
                f"{self.storage.uri}: no item of this store has a label, and of no two it is known whether they are "
                "alike"
            )
        place = {identifier: at for at, identifier in enumerate(dict.fromkeys(itertools.chain(*resolved.pairs)))}
        pairs = [[place[first], place[second]] for first, second in resolved.pairs]
        return GivenLabels(
            pa.array(list(resolved.labels), self.id_type),
            pa.array([list(labels) for labels in resolved.labels.values()], pa.list_(pa.string())),
            pa.array(list(place), self.id_type),
            np.array(pairs, np.int64).reshape(-1, 2),
            np.array(list(resolved.pairs.values()), bool),
            self.fingerprint,
        )

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change when votes are added."""
        return fingerprint(self._names)

    @property
    def _names(self) -> list[str]:
        return [name for name in self.storage.names(_VOTES) if name.endswith(".parquet")]

    @property
    def _schema(self) -> pa.Schema:
        # In the order of a vote's fields.
        return pa.schema(
            [
                ("id", self.id_type),
                ("labels", pa.list_(pa.string())),
                ("other", self.id_type),
                ("similar", pa.bool_()),
                ("annotator", pa.string()),
                ("time", pa.timestamp("us", "UTC")),
                ("round", pa.int32()),
            ]
        )


def standing_answers(votes: Iterable[Vote]) -> dict[Subject, dict[str, Answer]]:
    """What each annotator says now of each thing, of votes by time: the newest, unless it was taken back."""
    standing: dict[Subject, dict[str, Answer]] = {}
    for vote in votes:
        if vote.answer is not None:
            standing.setdefault(vote.subject, {})[vote.annotator] = vote.answer
        elif vote.subject in standing:
            standing[vote.subject].pop(vote.annotator, None)
    return {subject: given for subject, given in standing.items() if given}


def winner_of(answers: Iterable[Answer]) -> Answer | None:
    """The answer that most annotators gave; None where two lead, or there is none."""
    ranked = Counter(answers).most_common(2)
    leads = len(ranked) == 1 or (len(ranked) == 2 and ranked[0][1] > ranked[1][1])
    return ranked[0][0] if leads else None


def read_given_labels(uri: str, id_type: pa.DataType, options: Mapping[str, Any] | None = None) -> GivenLabels:
    """The labels of a store for a corpus with ids of this type.

    Raises:
        NotFoundError: there is no store.
        InputError: nothing follows from it, or it has ids of the other type.
    """
    store = LabelStore.open(uri, options)
    if store.id_type != id_type:
        raise InputError(f"{uri}: the label store has ids of type {store.id_type}, the corpus of type {id_type}")
    return store.given_labels()


def _order(vote: Vote) -> tuple[Any, ...]:
    return vote.time, str(vote.subject), vote.annotator, str(vote.answer)


def _check(vote: Vote, id_type: pa.DataType) -> None:
    wanted = int if pa.types.is_integer(id_type) else str
    for name in (vote.id, *([] if vote.other is None else [vote.other])):
        if type(name) is not wanted:
            raise InputError(f"id {name!r}: the ids of this label store are of type {id_type}")
    if (vote.labels and vote.other is not None) or (vote.similar is not None and vote.other is None):
        raise InputError(f"id {vote.id!r}: a vote has either labels, or another item and whether the two are alike")
    if vote.other == vote.id:
        raise InputError(f"id {vote.id!r}: an item cannot be compared with itself")
    if not all(isinstance(label, str) and label for label in vote.labels):
        raise InputError(f"id {vote.id!r}: a label must be a text that is not empty, not {vote.labels!r}")
    if vote.labels != tuple(sorted(set(vote.labels))):
        raise InputError(f"id {vote.id!r}: labels {vote.labels!r} must be sorted, each once")
    if not vote.annotator:
        raise InputError(f"id {vote.id!r}: a vote needs the name of its annotator")
    if vote.time.tzinfo is None:
        raise InputError(f"id {vote.id!r}: the time {vote.time.isoformat()} needs a time zone")


def check_given(given: GivenLabels, given_N: npt.NDArray[np.bool_], pairs: RowPairs, uri: str) -> None:
    """Refuse answers of which none is about rows of the corpus.

    Args:
        given: the answers.
        given_N: which rows have a label of them.
        pairs: its pairs by rows.
        uri: the store.

    Raises:
        InputError: naming one of their ids.
    """
    if len(given.ids) and not given_N.any():
        raise InputError(
            f"{uri}: none of its {len(given.ids):,} labeled ids is in the corpus, such as {given.ids[0]}"
        )
    if len(given.pair_ids) and not len(given.ids) and not (pairs.row_Q2 >= 0).all(1).any():
        raise InputError(
            f"{uri}: of none of its {len(pairs.row_Q2):,} pairs both ids are in the corpus, "
            f"such as {given.pair_ids[0]}"
        )
