"""What annotators are told and what they say: every answer is a file in the label store before it is acknowledged."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from distindex.annotation.queue import Queue
from distindex.annotation.source import Source
from distindex.corpus.label_store import Answer, Id, LabelStore, Subject, Vote, vote_on
from distindex.errors import InputError
from distindex.label_config import LabelServeConfig

LONGEST_NAME = 100
# Another round is looked for so often, in seconds, by annotators for whom nothing is left.
_LOOK_S = 2.0


class Desk:
    """One label store, what is asked, and who is shown what. Safe for threads.

    Ids are texts here: numbers of 64 bits do not survive JavaScript.

    Args:
        config: what is asked, and of whom.
        clock: seconds that only grow.

    Raises:
        InputError: as `Source` and `Source.read`; or the store has ids of another type.
    """

    def __init__(self, config: LabelServeConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._source = Source(config)
        self._task = self._source.read()
        self._store = LabelStore.create(self._source.store_uri, self._source.id_type, config.storage_options)
        # In the order of their keys, which stay when others come.
        self._classes = dict.fromkeys(config.classes or sorted(self._source.classes()))
        self._lock = threading.Lock()
        # Every subject that has been asked about, by the texts of its ids, and the round that asked.
        self._asked: dict[tuple[str, ...], tuple[Subject, int]] = {}
        self._looked = clock()
        self._begin()

    @property
    def store_uri(self) -> str:
        """Where the answers go."""
        return self._source.store_uri

    def task(self) -> dict[str, Any]:
        """What is asked: of items or pairs, the classes, and whether others may be given."""
        with self._lock:
            return {
                "ask": self._config.ask,
                "classes": list(self._classes),
                "open": not self._config.classes,
                "multi": self._config.multi,
                "round": self._task.round,
                "gain": self._task.gain,
            }

    def next(self, annotator: str, again: bool = False) -> dict[str, Any]:
        """What to show, and how far the asking is.

        Args:
            annotator: to whom.
            again: also what this annotator has skipped.
        """
        annotator = _name(annotator)
        with self._lock:
            if again:
                self._queue.ask_again(annotator)
            return self._step(annotator)

    def progress(self, annotator: str) -> dict[str, Any]:
        """How far the asking is."""
        with self._lock:
            return self._progress(_name(annotator))

    def answer(
        self, annotator: str, ids: Sequence[str], labels: Sequence[str] | None, similar: bool | None
    ) -> dict[str, Any]:
        """Keep an answer, then say what to show next.

        Raises:
            InputError: it is none, or was not asked for.
        """
        annotator = _name(annotator)
        with self._lock:
            subject, number = self._subject(ids)
            answer = self._answer(subject, labels, similar)
            # A page that got no answer to its answer sends it again.
            known = subject in self._queue and self._queue.answer_of(annotator, subject) == answer
            vote = None if known else self._vote(annotator, subject, answer, number)
        self._keep(vote)
        with self._lock:
            if subject in self._queue:
                self._queue.answer(annotator, subject, answer)
            if not isinstance(answer, bool):
                self._classes |= dict.fromkeys(answer)
            return self._step(annotator)

    def skip(self, annotator: str, ids: Sequence[str]) -> dict[str, Any]:
        """Leave an item or a pair to others, and say what to show next."""
        annotator = _name(annotator)
        with self._lock:
            subject, _ = self._subject(ids)
            if subject in self._queue:
                self._queue.skip(annotator, subject)
            return self._step(annotator)

    def undo(self, annotator: str) -> dict[str, Any]:
        """Take back what an annotator has answered or skipped last, and show it again.

        Raises:
            InputError: there is nothing to take back.
        """
        annotator = _name(annotator)
        with self._lock:
            subject = self._queue.latest(annotator)
            if subject is None:
                raise InputError("there is nothing to take back")
            number = self._asked[_texts(subject)][1]
            answer = self._queue.answer_of(annotator, subject)
            vote = None if answer is None else self._vote(annotator, subject, None, number)
        self._keep(vote)
        with self._lock:
            if subject in self._queue:
                self._queue.take_back(annotator, subject)
            return self._step(annotator) | {"taken_back": answer}

    def image(self, text: str) -> tuple[bytes, str]:
        """The image of an item that is asked about, and its media type.

        Raises:
            InputError: there is none, or it cannot be shown.
        """
        with self._lock:
            content, known = self._task.content, self._ids.get(text)
        if known is None:
            raise InputError(f"id {text!r} is not asked about")
        return content.image(known)

    def _begin(self) -> None:
        votes = self._store.votes()
        # Clocks of other machines may be ahead; what comes later must count.
        self._latest = votes[-1].time if votes else datetime.datetime.min.replace(tzinfo=datetime.UTC)
        subjects = list(dict.fromkeys(self._task.subjects))
        self._queue = Queue(subjects, votes, self._config.votes_per_item, self._config.lease_s, self._clock)
        self._asked |= {_texts(subject): (subject, self._task.round) for subject in subjects}
        self._ids: dict[str, Id] = {str(identifier): identifier for identifier in self._task.content.ids}
        if not self._config.classes:
            self._classes |= dict.fromkeys(sorted({label for vote in votes for label in vote.labels}))

    def _step(self, annotator: str) -> dict[str, Any]:
        subject = self._queue.next(annotator)
        if subject is None and self._clock() - self._looked >= _LOOK_S:
            self._looked = self._clock()
            if self._source.newest_round > self._task.round:
                self._task = self._source.read()
                self._begin()
                subject = self._queue.next(annotator)
        shown = None if subject is None else [self._task.content.describe(identifier) for identifier in subject]
        return {"shown": shown, "progress": self._progress(annotator)}

    def _progress(self, annotator: str) -> dict[str, Any]:
        # A page asks for the task again when round or classes are not those that it knows.
        known = {"round": self._task.round, "classes": len(self._classes)}
        return self._queue.progress(annotator)._asdict() | known

    def _subject(self, ids: Sequence[str]) -> tuple[Subject, int]:
        found = self._asked.get(tuple(ids))
        if found is None:
            raise InputError(f"id {', '.join(map(repr, ids))}: this is not asked about")
        return found

    def _answer(self, subject: Subject, labels: Sequence[str] | None, similar: bool | None) -> Answer:
        if (labels is None) == (similar is None) or (similar is None) != (len(subject) == 1):
            raise InputError("an answer gives labels of an item, or says whether two items are similar")
        if labels is None:
            assert similar is not None
            return similar
        given = tuple(sorted({label.strip() for label in labels}))
        if not given or (len(given) > 1 and not self._config.multi):
            raise InputError(f"labels: {len(given)} given; an item has {'some' if self._config.multi else 'one'}")
        for label in given:
            if self._config.classes and label not in self._config.classes:
                raise InputError(f"labels: {label!r} is not one of {', '.join(self._config.classes)}")
            if not 0 < len(label) <= LONGEST_NAME or "|" in label or not label.isprintable():
                raise InputError(
                    f"labels: a label has 1 to {LONGEST_NAME} printable characters, and no | between them"
                )
        return given

    def _vote(self, annotator: str, subject: Subject, answer: Answer | None, number: int) -> Vote:
        now = datetime.datetime.now(datetime.UTC)
        self._latest = max(now, self._latest + datetime.timedelta(microseconds=1))
        return vote_on(subject, answer, annotator, self._latest, number)

    def _keep(self, vote: Vote | None) -> None:
        if vote is not None:
            self._store.add([vote])


def _name(annotator: str) -> str:
    name = annotator.strip()
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise InputError(f"annotator: a name has 1 to {LONGEST_NAME} printable characters")
    return name


def _texts(subject: Subject) -> tuple[str, ...]:
    return tuple(str(identifier) for identifier in subject)
