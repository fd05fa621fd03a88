"""Who is shown what: nobody sees what others are asked about, whatever they do and in whatever order."""

from __future__ import annotations

import datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from distindex.annotation.queue import Queue
from distindex.corpus.label_store import Subject, Vote, winner_of

NAMES = ["ann", "bob", "cy"]
LEASE_S = 10.0
NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def subjects_of(count: int) -> list[Subject]:
    return [(f"item {i}",) for i in range(count)]


ACTIONS = st.tuples(
    st.sampled_from(NAMES),
    st.sampled_from(["answer", "answer", "answer", "skip", "undo", "again", "look", "wait"]),
    st.sampled_from(["x", "y"]),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(ACTIONS, max_size=60), st.integers(1, 6), st.integers(1, 3))
def test_an_item_is_shown_to_as_many_as_are_wanted(actions: list[Any], count: int, wanted: int) -> None:
    clock = Clock()
    queue = Queue(subjects_of(count), (), wanted, LEASE_S, clock)
    shown: dict[str, tuple[Subject, float]] = {}
    answers: dict[Subject, dict[str, str]] = {subject: {} for subject in subjects_of(count)}
    votes: list[Vote] = []

    def vote(name: str, subject: Subject, *labels: str) -> None:
        time = NOON + datetime.timedelta(seconds=len(votes))
        votes.append(Vote(subject[0], labels, None, None, name, time, 0))

    for name, action, label in actions:
        if action == "wait":
            clock.now += LEASE_S * 0.7
            continue
        if action == "again":
            queue.ask_again(name)
        if action == "undo":
            subject = queue.latest(name)
            if subject is not None:
                if answers[subject].pop(name, None):
                    vote(name, subject)
                queue.take_back(name, subject)
                shown.pop(name, None)
        subject = queue.next(name)
        if subject is None:
            shown.pop(name, None)
            continue
        others = [
            each for each, (what, until) in shown.items() if each != name and what == subject and until > clock.now
        ]
        given_here = answers[subject]
        tie = len(given_here) >= wanted and winner_of((answer,) for answer in given_here.values()) is None
        assert name not in given_here
        # An answer that was taken back is asked of its annotator again, whoever looks at the item now.
        if action != "undo":
            assert len(given_here) + len(others) < wanted + (len(given_here) + 1 - wanted if tie else 0)
        assert queue.next(name) == subject, "the same until it is answered"
        shown[name] = subject, clock.now + LEASE_S
        if action == "answer":
            queue.answer(name, subject, (label,))
            answers[subject][name] = label
            vote(name, subject, label)
            del shown[name]
        elif action == "skip":
            queue.skip(name, subject)
            del shown[name]

    rebuilt = Queue(subjects_of(count), votes, wanted, LEASE_S, clock)
    for name in NAMES:
        before, after = queue.progress(name), rebuilt.progress(name)
        assert (before.asked, before.answered, before.yours) == (after.asked, after.answered, after.yours)
        assert after.yours == sum(name in given_here for given_here in answers.values())
        assert (after.skipped, after.elsewhere) == (0, 0), "nobody has been shown anything since"
    # Whoever goes on answers all that is left for him or her, each thing once.
    for name in NAMES:
        seen = []
        while (subject := rebuilt.next(name)) is not None:
            seen.append(subject)
            rebuilt.answer(name, subject, ("x",))
        assert len(seen) == len(set(seen)) <= count
        assert not set(seen) & {subject for subject, given_here in answers.items() if name in given_here}
    left = rebuilt.progress("ann")
    assert left.answered + left.for_others <= count
    assert left.skipped == left.elsewhere == 0


def test_skipped_items_wait_until_they_are_asked_for() -> None:
    queue = Queue(subjects_of(3))
    first = queue.next("ann")
    assert first is not None
    assert first == ("item 0",)
    queue.skip("ann", first)
    assert queue.next("ann") == ("item 1",)
    assert queue.next("bob") == ("item 0",), "others are asked"
    queue.answer("ann", ("item 1",), ("x",))
    assert queue.next("ann") == ("item 2",)
    queue.answer("ann", ("item 2",), ("x",))
    assert queue.next("ann") is None
    assert queue.progress("ann")._asdict() == {
        "asked": 3, "answered": 2, "yours": 2, "skipped": 1, "elsewhere": 0, "for_others": 0,
    }  # fmt: skip
    queue.ask_again("ann")
    assert queue.next("ann") is None, "bob looks at it now"
    assert queue.progress("ann").elsewhere == 1
    queue.skip("bob", first)
    assert queue.next("ann") == first


def test_undo_goes_back_step_by_step_also_after_a_restart() -> None:
    votes = [
        Vote(f"item {i}", ("x",), None, None, "ann", NOON + datetime.timedelta(minutes=9 - i), 0) for i in range(3)
    ]
    queue = Queue(subjects_of(4), sorted(votes, key=lambda vote: vote.time))
    queue.skip("ann", ("item 3",))
    for expected in (3, 0, 1, 2):
        assert queue.latest("ann") == (f"item {expected}",)
        queue.take_back("ann", (f"item {expected}",))
        assert queue.next("ann") == (f"item {expected}",)
    assert queue.latest("ann") is None
    assert queue.progress("ann").yours == 0
