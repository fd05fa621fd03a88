"""Who is asked about what: leases, skipped items, answers. In memory alone, and rebuilt from the votes at a start."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from distindex.corpus.label_store import Answer, Subject, Vote, standing_answers, winner_of


class Progress(NamedTuple):
    """How far the asking is, and what is left for one annotator.

    Attributes:
        asked: items or pairs in all.
        answered: those that have as many answers as are wanted, and one that leads.
        yours: those that this annotator has answered.
        skipped: open ones that this annotator has skipped.
        elsewhere: open ones that others are shown now.
        for_others: open ones that this annotator has answered, which need the answer of another.
    """

    asked: int
    answered: int
    yours: int
    skipped: int
    elsewhere: int
    for_others: int


class Queue:
    """What is asked about, in order, each shown to as many annotators at once as answers are wanted.

    An item that is shown is leased for a time; a lease that has run out lets others have it. Where no answer leads,
    one more annotator is asked. Not safe for threads.

    Args:
        subjects: what is asked about.
        votes: all votes so far, by time.
        votes_per_item: annotators who are asked about each.
        lease_s: how long an item is shown to one annotator alone, in seconds.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        votes: Iterable[Vote] = (),
        votes_per_item: int = 1,
        lease_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._votes_per_item, self._lease_s, self._clock = votes_per_item, lease_s, clock
        self._given: dict[Subject, dict[str, Answer]] = {subject: {} for subject in subjects}
        self._yours: Counter[str] = Counter()
        # What each annotator has answered or skipped, the latest last.
        self._actions: dict[str, dict[Subject, None]] = {}
        self._skipped: dict[str, set[Subject]] = {}
        # To whom each open subject is shown, and until when.
        self._leases: dict[Subject, dict[str, float]] = {}
        self._held: dict[str, Subject] = {}
        asked_votes = [vote for vote in votes if vote.subject in self._given]
        for subject, given in standing_answers(asked_votes).items():
            self._given[subject] = given
            self._yours.update(given.keys())
        for vote in asked_votes:
            if vote.annotator in self._given[vote.subject]:
                self._acted(vote.annotator, vote.subject)
        self._open = {subject: None for subject in self._given if self._wanted(subject)}

    def __contains__(self, subject: Subject) -> bool:
        return subject in self._given

    def next(self, annotator: str) -> Subject | None:
        """What to show to an annotator: the same until it is answered, skipped, or its lease is lost to another."""
        held = self._held.get(annotator)
        if held is None or not self._is_free(held, annotator):
            held = next((subject for subject in self._open if self._is_free(subject, annotator)), None)
        self._release(annotator)
        if held is not None:
            self._lease(annotator, held)
        return held

    def answer_of(self, annotator: str, subject: Subject) -> Answer | None:
        """What an annotator says of a subject now."""
        return self._given[subject].get(annotator)

    def answer(self, annotator: str, subject: Subject, answer: Answer) -> None:
        """Take an answer, also to what is not shown to this annotator any more."""
        self._yours[annotator] += annotator not in self._given[subject]
        self._given[subject][annotator] = answer
        self._skipped.get(annotator, set()).discard(subject)
        self._settle(annotator, subject)

    def skip(self, annotator: str, subject: Subject) -> None:
        """Leave a subject to others, and to this annotator for later (`ask_again`)."""
        if subject in self._open:
            self._skipped.setdefault(annotator, set()).add(subject)
            self._settle(annotator, subject)

    def ask_again(self, annotator: str) -> None:
        """Show an annotator what he or she has skipped."""
        self._skipped.pop(annotator, None)

    def latest(self, annotator: str) -> Subject | None:
        """What an annotator has answered or skipped last."""
        return next(reversed(self._actions.get(annotator, {})), None)

    def take_back(self, annotator: str, subject: Subject) -> None:
        """Undo an answer or a skip; the subject is shown to this annotator next."""
        if self._given[subject].pop(annotator, None) is not None:
            self._yours[annotator] -= 1
        self._skipped.get(annotator, set()).discard(subject)
        self._settle(annotator, subject)
        self._actions[annotator].pop(subject, None)
        if subject in self._open:
            self._release(annotator)
            self._lease(annotator, subject)

    def progress(self, annotator: str) -> Progress:
        """Counts, the last three of them of what is open."""
        now = self._clock()
        skipped = {subject for subject in self._skipped.get(annotator, ()) if subject in self._open}
        elsewhere = {
            subject for subject, leases in self._leases.items() if any(self._of_others(leases, annotator, now))
        }
        for_others = sum(annotator in self._given[subject] for subject in self._open)
        answered = len(self._given) - len(self._open)
        return Progress(
            len(self._given),
            answered,
            self._yours[annotator],
            len(skipped),
            len(elsewhere - skipped),
            for_others,
        )

    def _wanted(self, subject: Subject) -> int:
        """Annotators who are still to be asked."""
        given = self._given[subject].values()
        short = self._votes_per_item - len(given)
        return short if short > 0 else int(winner_of(given) is None)

    def _is_free(self, subject: Subject, annotator: str) -> bool:
        if subject not in self._open or annotator in self._given[subject]:
            return False
        if subject in self._skipped.get(annotator, ()):
            return False
        others = self._of_others(self._leases.get(subject, {}), annotator, self._clock())
        return sum(others) < self._wanted(subject)

    def _of_others(self, leases: dict[str, float], annotator: str, now: float) -> Iterable[bool]:
        return (name != annotator and until > now for name, until in leases.items())

    def _lease(self, annotator: str, subject: Subject) -> None:
        self._leases.setdefault(subject, {})[annotator] = self._clock() + self._lease_s
        self._held[annotator] = subject

    def _release(self, annotator: str) -> None:
        subject = self._held.pop(annotator, None)
        if subject is not None and subject in self._leases:
            self._leases[subject].pop(annotator, None)
            if not self._leases[subject]:
                del self._leases[subject]

    def _settle(self, annotator: str, subject: Subject) -> None:
        """After an answer, a skip or an undo: what is open, whose turn it is no more, and what came last."""
        self._acted(annotator, subject)
        if self._held.get(annotator) == subject:
            self._release(annotator)
        if self._wanted(subject):
            if subject not in self._open:
                # Opened again, in its old place.
                self._open = {each: None for each in self._given if each in self._open or each == subject}
        else:
            self._open.pop(subject, None)
            for name in [name for name, held in self._held.items() if held == subject]:
                self._release(name)

    def _acted(self, annotator: str, subject: Subject) -> None:
        actions = self._actions.setdefault(annotator, {})
        actions.pop(subject, None)
        actions[subject] = None
