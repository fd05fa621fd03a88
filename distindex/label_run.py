"""The directory of a `distindex label run`, as it is written and as others read it. Knows nothing of Ray.

    label_run.json               settings of the run
    labels/                      the label store, where train.labels.store names no other
    pretrained/labels/           the answers that were there before the first choice
    pretrained/hasher/           what the first choice was made by, where it was made by a hasher of the run
    rounds/001/picks.json        ids that were chosen, in order, the pairs of them where pairs were chosen, and when
    rounds/001/picks.csv         the ids again to be filled in, for `distindex label import`
    rounds/001/labels/           the answers that the round was trained on
    rounds/001/hasher/           its hasher
    rounds/001/metrics.json      what it is worth; written last

Every file is created once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from distindex.config import CorpusConfig
from distindex.errors import FormatError, NotFoundError
from distindex.storage import Storage

FORMAT_VERSION = 1
CLAIM = "label_run.json"
PICKS, SHEET, METRICS = "picks.json", "picks.csv", "metrics.json"
STORE, PRETRAINED = "labels", "pretrained"


def round_of(run: Storage, number: int) -> Storage:
    """The directory of a round, counted from 1."""
    return run.child(f"rounds/{number:03d}")


def asked_about(picks: Mapping[str, Any], ask: str) -> list[tuple[int | str, ...]]:
    """What a round asks about: items, or pairs of them in order."""
    if ask == "items":
        return [(identifier,) for identifier in picks["ids"]]
    return [tuple(sorted(pair)) for pair in picks.get("pairs", ())]


@dataclasses.dataclass(frozen=True)
class LabelRun:
    """A run that is there.

    Attributes:
        storage: its directory.
        config: its settings as JSON, without the values of storage options.
    """

    storage: Storage
    config: dict[str, Any]

    @classmethod
    def open(cls, uri: str, options: Mapping[str, Any] | None = None) -> LabelRun:
        """The run in a directory.

        Raises:
            NotFoundError: there is none.
            FormatError: this release does not know its format.
        """
        storage = Storage(uri, options)
        try:
            claim = storage.read_json(CLAIM)
        except NotFoundError as error:
            raise NotFoundError(f"{uri}: no label run here; `distindex label run` makes one") from error
        if claim.get("format_version") != FORMAT_VERSION:
            raise FormatError(
                f"{storage.full_uri(CLAIM)}: format {claim.get('format_version')}; "
                f"this release reads format {FORMAT_VERSION}"
            )
        return cls(storage, claim["config"])

    @property
    def store_uri(self) -> str:
        """Its label store."""
        return self.config["train"]["labels"]["store"] or self.storage.full_uri(STORE)

    @property
    def corpus(self) -> CorpusConfig:
        """Its corpus, opened as the run's directory is."""
        return CorpusConfig(**{**self.config["train"]["corpus"], "storage_options": self.storage.options})

    @property
    def newest_round(self) -> int:
        """The last round that has chosen its picks; 0 before the first has."""
        names = self.storage.names("rounds")
        chosen = [int(name) for name in names if name.isdigit() and self._round(int(name)).exists(PICKS)]
        return max(chosen, default=0)

    def picks(self, number: int) -> dict[str, Any]:
        """What a round has chosen."""
        return self._round(number).read_json(PICKS)

    def metrics(self) -> list[dict[str, Any]]:
        """What each finished round gave, the first one first."""
        found = []
        for number in range(1, self.newest_round + 1):
            if not self._round(number).exists(METRICS):
                break
            found.append(self._round(number).read_json(METRICS))
        return found

    def _round(self, number: int) -> Storage:
        return round_of(self.storage, number)
