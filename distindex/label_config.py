"""The configs of the jobs about labels: what to label next, and the answers; see `config`."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from distindex.config import CorpusConfig, TrainConfig, check

Strategy = Literal[
    "auto",
    "dh-aps",
    "typical-badge",
    "typical",
    "badge",
    "k-center",
    "entropy",
    "margin",
    "random",
    "balanced-random",
]


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
        strategy: DH-APS, or what it is compared with; balanced-random knows the labels beforehand. auto is dh-aps
            where pairs are asked about, else typical-badge.
        kernel: how alike two pairs of rows are (dh-aps): by products of codes, by random features of a Gaussian
            kernel, or by the better of both orders, which is no positive kernel.
        optimizer: pairs one after the other, or weights of all pairs at once, rounded (dh-aps).
        uncertainty: weight of the term that wants pairs of unknown similarity (dh-aps).
        representativeness: weight of the term that wants pairs like all others (dh-aps).
        diversity: weight of the term that wants pairs unlike each other and the labeled ones (dh-aps).
        candidates: the pairs that dh-aps looks at.
        seed: seed of all draws.
    """

    strategy: Strategy = "auto"
    kernel: Literal["sym-linear", "sym-rbf", "align-max"] = "sym-rbf"
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

    def asked_about(self, what: Literal["items", "pairs"]) -> SelectionConfig:
        """The same with the strategy that auto stands for."""
        if self.strategy != "auto":
            return self
        return dataclasses.replace(self, strategy="dh-aps" if what == "pairs" else "typical-badge")


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
        budget: items to label in all rounds together; with ask pairs, items that are asked about for the first time.
        ask: for labels of items, or whether the two of each pair are alike.
        oracle: where answers come from: people, into the label store; or the corpus' own label column, to see what a
            strategy is worth, in which case no other label of it is read.
        selection: how items are chosen; the first time at random where there is no hasher yet.
        pretrain: train on the labels that there are, or on none, before the first choice, and choose by that hasher;
            for strategies and methods that need no labels, where train.initial names no hasher.
        queries: a labeled corpus by which each round's hasher is judged; needs train.corpus.label_column. Without it
            the held-out labels of train.validation judge.
        k: cut-off of the precision and mean average precision that are reported for these queries.
        warm_start: begin each training with the last round's weights.
        least_gain: stop when the precision has risen by less than this in each of two rounds.
    """

    train: TrainConfig
    rounds: int = 5
    budget: int = 500
    ask: Literal["items", "pairs"] = "items"
    oracle: Literal["store", "simulated"] = "store"
    selection: SelectionConfig = dataclasses.field(default_factory=SelectionConfig)
    queries: CorpusConfig | None = None
    k: int = 100
    pretrain: bool = True
    warm_start: bool = True
    least_gain: float | None = None

    def __post_init__(self) -> None:
        self.selection = self.selection.asked_about(self.ask)
        check(self.rounds > 0, f"rounds: {self.rounds} must be positive")
        check(self.budget >= self.rounds, f"budget: {self.budget} must be at least one item for each round")
        check(self.k > 0, f"k: {self.k} must be positive")
        check(
            self.ask == "items" or self.budget >= 2 * self.rounds,
            f"budget: {self.budget} must be at least the two items of a pair for each round",
        )
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


@dataclasses.dataclass
class LabelServeConfig:
    """Open a page on which people label what a round has chosen, or any items.

    Attributes:
        run: directory of a `label run`, whose newest picks are asked about, and those of later rounds after them.
        items: the items that are asked about; with run, where what is shown of its picks is, by default its corpus.
        store: directory of the label store, which is made if it is not there; default: the run's.
        ask: for labels of items, or whether the two of each pair that dh-aps has chosen are alike.
        classes: the labels that may be given, in the order of their keys; by default those that corpus and store
            have, and any that is typed.
        multi: an item may have several labels.
        votes_per_item: annotators who are asked about each.
        lease_s: how long an item is shown to one annotator alone, in seconds.
        raw_shape: height, width and channels of images that are raw pixels; default: the run's.
        host: address to listen on; one that other machines can reach needs a token.
        port: port to listen on.
        token_file: a file with tokens, one a line, of which the page asks for one. Default: the token in the
            environment variable DISTINDEX_TOKEN; without either it asks for none.
        storage_options: passed to the fsspec file system, for run and store.
    """

    run: str | None = None
    items: CorpusConfig | None = None
    store: str | None = None
    ask: Literal["items", "pairs"] = "items"
    classes: list[str] = dataclasses.field(default_factory=list)
    multi: bool = False
    votes_per_item: int = 1
    lease_s: float = 300.0
    raw_shape: list[int] | None = None
    host: str = "127.0.0.1"
    port: int = 8001
    token_file: str | None = None
    storage_options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check(bool(self.run or self.items), "run: give the directory of a label run, or items to ask about")
        check(bool(self.run or self.store), "store: name the directory that the answers go to")
        check(bool(self.run) or self.ask == "items", "ask: pairs are chosen by a run; name it, or ask for items")
        check(len(set(self.classes)) == len(self.classes), "classes: one is there twice")
        check(
            all(label.strip() == label != "" and "|" not in label for label in self.classes),
            "classes: a label is not empty, and has neither spaces around it nor | in it",
        )
        check(self.votes_per_item > 0, f"votes_per_item: {self.votes_per_item} must be positive")
        check(self.lease_s > 0, f"lease_s: {self.lease_s} must be positive")
        check(0 < self.port < 65536, f"port: {self.port} must lie between 1 and 65535")
        shape = self.raw_shape
        check(
            shape is None or (len(shape) == 3 and min(shape) > 0 and shape[2] in (1, 3)),
            f"raw_shape: {shape} must be a height, a width, and 1 or 3 channels",
        )
