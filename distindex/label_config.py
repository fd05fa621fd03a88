"""The configs of the jobs about labels: what to label next, and the answers; see `config`."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from distindex.config import CorpusConfig, TrainConfig, check


@dataclasses.dataclass
class CandidatesConfig:
    """Which of all pairs of rows are looked at.

    Attributes:
        pairs: about so many.
        uncertain: partners of a row whose similarity to it the method's loss leaves open.
        nearest: partners with the nearest codes.
        random: partners drawn at random.
        partners: rows that the partners of a row are looked for among, drawn at random.
    """

    pairs: int = 200_000
    uncertain: int = 16
    nearest: int = 8
    random: int = 8
    partners: int = 2048

    def __post_init__(self) -> None:
        check(self.pairs > 0, f"candidates.pairs: {self.pairs} must be positive")
        kinds = ("uncertain", "nearest", "random")
        for name in kinds:
            check(getattr(self, name) >= 0, f"candidates.{name}: {getattr(self, name)} must not be negative")
        check(self.each > 0, f"candidates: one of {', '.join(kinds)} must be positive")
        check(
            self.partners >= self.each,
            f"candidates.partners: {self.partners} must be at least {self.each}, all taken",
        )

    @property
    def each(self) -> int:
        """Partners of a row."""
        return self.uncertain + self.nearest + self.random


@dataclasses.dataclass
class SelectionConfig:
    """How the rows to label next are chosen.

    Attributes:
        strategy: DH-APS, or what it is compared with; balanced-random knows the labels beforehand.
        kernel: how alike two pairs of rows are (dh-aps): by products of codes, by random features of a Gaussian
            kernel, or by the better of both orders, which is no positive kernel.
        optimizer: pairs one after the other, or weights of all pairs at once, rounded (dh-aps).
        uncertainty: weight of the term that wants pairs of unknown similarity (dh-aps).
        representativeness: weight of the term that wants pairs like all others (dh-aps).
        diversity: weight of the term that wants pairs unlike each other and the labeled ones (dh-aps).
        candidates: the pairs that dh-aps looks at.
        seed: seed of all draws.
    """

    strategy: Literal["dh-aps", "random", "balanced-random", "entropy", "margin", "k-center", "badge"] = "dh-aps"
    kernel: Literal["sym-linear", "sym-rbf", "align-max"] = "sym-linear"
    optimizer: Literal["greedy", "relaxed"] = "greedy"
    uncertainty: float = 1.0
    representativeness: float = 1.0
    diversity: float = 1.0
    candidates: CandidatesConfig = dataclasses.field(default_factory=CandidatesConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("uncertainty", "representativeness", "diversity"):
            check(getattr(self, name) >= 0, f"{name}: {getattr(self, name)} must not be negative")
        check(
            self.optimizer == "greedy" or self.kernel != "align-max",
            "optimizer: relaxed needs a positive kernel, which align-max is not; use greedy",
        )


@dataclasses.dataclass
class LabelImportConfig:
    """Add answers to a label store, which is made if it is not there.

    Attributes:
        store: directory of the label store.
        input: a CSV or JSON Lines file: id and label (in CSV several separated by |), or id, other and similar; rows
            without an answer are passed over. Its columns annotator, time and round count where it has them.
        annotator: who gave the answers that name nobody.
        ids: type of the ids in a new store; auto takes integers where all ids of the file are.
        storage_options: passed to the fsspec file system.
    """

    store: str
    input: str
    annotator: str = "import"
    ids: Literal["auto", "integer", "string"] = "auto"
    storage_options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check(bool(self.annotator), "annotator: give the name of who answered")


@dataclasses.dataclass
class LabelExportConfig:
    """Write what is in a label store to a new CSV or JSON Lines file.

    Attributes:
        store: directory of the label store.
        output: the file, which must not exist; its name ends in .csv or .jsonl.
        what: every vote, as `label import` takes it; the labels and similarities that follow from them; or where
            annotators disagree.
        storage_options: passed to the fsspec file system.
    """

    store: str
    output: str
    what: Literal["votes", "labels", "conflicts"] = "votes"
    storage_options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check(
            self.output.endswith((".csv", ".jsonl")),
            f"output: {self.output} must end in .csv or .jsonl, for its format",
        )


@dataclasses.dataclass
class LabelRunConfig:
    """Choose what to label, wait for the answers, train on them, and again.

    Attributes:
        train: the training of each round; its output is the directory of all rounds, and its labels.store the label
            store, by default one in that directory. With initial, that hasher makes the first choice too.
        rounds: how often to choose and train.
        budget: items to label in all rounds together.
        oracle: where answers come from: people, into the label store; or the corpus' own label column, to see what a
            strategy is worth, in which case no other label of it is read.
        selection: how items are chosen; the first time at random where there is no hasher yet.
        queries: a labeled corpus by which each round's hasher is judged; needs train.corpus.label_column. Without it
            the held-out labels of train.validation judge.
        k: cut-off of the precision and mean average precision that are reported for these queries.
        warm_start: begin each training with the last round's weights.
        least_gain: stop when the precision has risen by less than this in each of two rounds.
    """

    train: TrainConfig
    rounds: int = 5
    budget: int = 500
    oracle: Literal["store", "simulated"] = "store"
    selection: SelectionConfig = dataclasses.field(default_factory=SelectionConfig)
    queries: CorpusConfig | None = None
    k: int = 100
    warm_start: bool = True
    least_gain: float | None = None

    def __post_init__(self) -> None:
        check(self.rounds > 0, f"rounds: {self.rounds} must be positive")
        check(self.budget >= self.rounds, f"budget: {self.budget} must be at least one item for each round")
        check(self.k > 0, f"k: {self.k} must be positive")
        labeled = self.train.corpus.label_column is not None
        check(
            labeled or self.oracle == "store",
            "oracle: simulated answers with train.corpus.label_column, and there is none; name it, or take store",
        )
        check(labeled or self.queries is None, "queries: needs train.corpus.label_column, by which hits are told")
        check(
            self.train.method.name not in ("lsh", "pca-sign", "itq"),
            f"train.method.name: {self.train.method.name} learns nothing from labels",
        )
        check(
            self.oracle == "simulated" or self.selection.strategy != "balanced-random",
            "selection.strategy: balanced-random looks the labels up before it asks for them; it needs the simulated "
            "oracle",
        )
