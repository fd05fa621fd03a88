"""Where what is asked about comes from: the newest round of a `distindex label run`, or a corpus of any format."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyarrow as pa

from distindex.annotation.content import Content
from distindex.corpus.dataset import Corpus
from distindex.corpus.label_store import Subject
from distindex.corpus.labels import read_labels
from distindex.errors import InputError
from distindex.label_config import LabelServeConfig
from distindex.label_run import LabelRun, asked_about


@dataclasses.dataclass(frozen=True)
class Task:
    """What is asked.

    Attributes:
        subjects: the items, or pairs of items in order.
        content: what is shown of them.
        round: the round that chose them; 0 where none did.
        gain: what the labels of the last finished round brought; None where fewer than two have been judged.
    """

    subjects: list[Subject]
    content: Content
    round: int
    gain: dict[str, Any] | None


class Source:
    """Reads what is asked.

    Args:
        config: names a run, a corpus, or both.

    Raises:
        InputError: neither is there, or the run has chosen nothing yet.
    """

    def __init__(self, config: LabelServeConfig) -> None:
        self._config = config
        self._run = LabelRun.open(config.run, config.storage_options) if config.run else None
        corpus = config.items or (self._run.corpus if self._run else None)
        assert corpus is not None, "the config has seen to it"
        self._corpus = Corpus.open(corpus)
        if self._run is not None and not self.newest_round:
            raise InputError(f"{config.run}: nothing has been chosen yet; `distindex label run` chooses")

    @property
    def id_type(self) -> pa.DataType:
        """The type of the items' ids."""
        return self._corpus.id_type

    @property
    def store_uri(self) -> str:
        """Where the answers go."""
        return self._config.store or (self._run.store_uri if self._run else "")

    @property
    def newest_round(self) -> int:
        """The last round that has chosen; 0 without a run."""
        return self._run.newest_round if self._run else 0

    def read(self) -> Task:
        """What is asked now.

        Raises:
            InputError: the round has chosen no pairs, and they are to be asked about; or as `Content`.
        """
        if self._run is None:
            content = Content(self._corpus, None, self._config.raw_shape)
            return Task([(identifier,) for identifier in content.ids], content, 0, None)
        number = self.newest_round
        picks = self._run.picks(number)
        raw_shape = self._config.raw_shape or _raw_shape(self._run.config["train"]["features"]["image"])
        subjects = asked_about(picks, self._config.ask)
        if not subjects:
            raise InputError(
                f"ask: round {number} of {self._config.run} has chosen no pairs, as a run with ask pairs does; "
                "ask for items"
            )
        ids = dict.fromkeys(identifier for subject in subjects for identifier in subject)
        return Task(subjects, Content(self._corpus, list(ids), raw_shape), number, _gain(self._run.metrics()))

    def classes(self) -> set[str]:
        """The labels that the corpus has of its own."""
        column = self._corpus.config.label_column
        if column is None:
            return set()
        return {name for batch in self._corpus.batches([column]) for name in read_labels(batch.table[column]).names}


def _raw_shape(image: dict[str, Any]) -> list[int]:
    return image["raw_shape"] or [image["height"], image["width"], image["channels"]]


def _gain(rounds: list[dict[str, Any]]) -> dict[str, Any] | None:
    """By how much the last round's hasher is better than the one before, and for how many more answers."""
    pairs = bool(rounds) and "pairs" in rounds[-1]
    answers = "pairs" if pairs else "labeled"
    for name in ("precision", "validation_precision"):
        judged = [(each["round"], each[answers], each[name]) for each in rounds if each.get(name) is not None]
        if len(judged) > 1 and len(judged) == len(rounds):
            (_, before, low), (number, after, high) = judged[-2:]
            return {
                "round": number,
                "answers": after - before,
                "pairs": pairs,
                "gain": high - low,
                "precision": high,
                "held_out": name == "validation_precision",
            }
    return None
