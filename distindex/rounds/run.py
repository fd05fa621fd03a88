"""`distindex label run`: what is chosen, what is answered, what is trained, round by round.

Its files are those of `distindex.label_run`. A run that was stopped goes on where it was: what is there is not done
again.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distindex.config import TrainConfig
from distindex.corpus.dataset import Corpus
from distindex.corpus.label_store import Answer, LabelStore, Resolved, Subject, vote_on
from distindex.corpus.labels import Labels, label_mask, labeled_ids_mask, read_labels
from distindex.errors import ConflictError, InputError
from distindex.evaluation.run import judge, read_judged
from distindex.hashing import Hasher
from distindex.hashing.methods import needs_labels, reads_pairs
from distindex.label_config import LabelRunConfig
from distindex.label_run import CLAIM, FORMAT_VERSION, METRICS, PICKS, PRETRAINED, SHEET, STORE, asked_about, round_of
from distindex.labeling import Pool, Selected, in_pairs
from distindex.labeling.pair_loss import PairLoss
from distindex.method_config import CLOSED_FORM
from distindex.progress import say
from distindex.rounds.scoring import SeenCorpus, choose, see
from distindex.rounds.sheet import answer_sheet
from distindex.runtime import start_ray
from distindex.settings import as_json, differences, without_secrets
from distindex.storage import Storage
from distindex.training import train

_RESOURCES = ("workers", "max_failures", "memory_gib", "output")
_FLAT_ROUNDS = 2
_READ_LABELS = ("entropy", "margin", "badge")
_BLIND = ("random", "balanced-random")
_FROZEN = "labels/votes"
SIMULATED = "simulated"


@dataclasses.dataclass
class LabelRunReport:
    """Where a run stands.

    Attributes:
        uri: directory of the run.
        store: its label store.
        state: finished; flat, where the gain was too small to go on; or waiting, for answers.
        ask: what is asked about: items, or pairs.
        missing: picks of the last round that nobody has answered yet.
        picks: for people to answer, where the run waits.
        rounds: what each finished round gave.
    """

    uri: str
    store: str
    state: str
    ask: str
    missing: int
    picks: str | None
    rounds: list[dict[str, Any]]


def run(config: LabelRunConfig) -> LabelRunReport:
    """Go on with the run at `config.train.output`, or begin it, until it ends or waits for answers.

    Raises:
        InputError: bad settings, corpus or store, or the directory holds a run with other settings.
    """
    _check_asked(config)
    options = config.train.corpus.storage_options
    output = Storage(config.train.output, options)
    store_uri = config.train.labels.store or output.full_uri(STORE)
    id_type = Corpus.open(config.train.corpus).id_type
    _claim(config, output)
    store = LabelStore.create(store_uri, id_type, options)
    start_ray()
    rounds: list[dict[str, Any]] = []
    hasher_uri = config.train.initial or _pretrained(config, output, store)
    for number in range(1, config.rounds + 1):
        directory = round_of(output, number)
        if not directory.exists(METRICS):
            picks = _picks(config, directory, store, number, hasher_uri)
            resolved = store.resolved()
            missing = [subject for subject in picks if not _is_answered(subject, resolved)]
            # What a round has begun to train on stays, whatever is answered since.
            if missing and not directory.exists(_FROZEN):
                say(f"label: round {number} waits for {len(missing):,} of {len(picks):,} answers")
                where = directory.full_uri(SHEET)
                return LabelRunReport(output.uri, store_uri, "waiting", config.ask, len(missing), where, rounds)
            metrics = _train(config, directory, resolved, hasher_uri)
            directory.create_json(METRICS, {"round": number, "picked": len(picks), **metrics})
        rounds.append(directory.read_json(METRICS))
        hasher_uri = directory.full_uri("hasher")
        say(f"label: round {number} of {config.rounds}: {_line(rounds[-1])}")
        if _is_flat(config, rounds):
            return LabelRunReport(output.uri, store_uri, "flat", config.ask, 0, None, rounds)
    return LabelRunReport(output.uri, store_uri, "finished", config.ask, 0, None, rounds)


def _check_asked(config: LabelRunConfig) -> None:
    """Refuse to ask about pairs where method or strategy could do nothing with the answers."""
    method, strategy, train = config.train.method.name, config.selection.strategy, config.train
    if config.ask == "items":
        return
    if not reads_pairs(method):
        raise InputError(f"train.method.name: {method} has no loss over pairs; ask for items")
    if config.oracle == "store" and (train.corpus.label_column or train.labels.store):
        return
    if strategy in _READ_LABELS:
        raise InputError(
            f"selection.strategy: {strategy} needs labels, and answers about pairs give none; take another one"
        )
    if needs_labels(method):
        raise InputError(
            f"train.method.name: {method} needs labels, and answers about pairs give none; ask for items"
        )


def _claim(config: LabelRunConfig, output: Storage) -> None:
    """Note the run's settings in its directory, or check that they are those of the run that is there."""
    settings = without_secrets(as_json(config))
    settings["train"] = {name: value for name, value in settings["train"].items() if name not in _RESOURCES}
    try:
        output.create_json(CLAIM, {"format_version": FORMAT_VERSION, "kind": "label-run", "config": settings})
    except ConflictError:
        changed = differences(output.read_json(CLAIM)["config"], settings)
        if changed:
            raise InputError(
                f"{output.uri}: the run here has other settings ({'; '.join(changed)}); choose another train.output"
            ) from None


def _pretrained(config: LabelRunConfig, output: Storage, store: LabelStore) -> str | None:
    """The hasher that the first choice is made by, trained if it is not there; None where it is made at random."""
    if not config.pretrain or config.selection.strategy in (*_BLIND, *_READ_LABELS):
        return None
    if needs_labels(config.train.method.name):
        return None
    directory = output.child(PRETRAINED)
    if not directory.exists("hasher/hasher.json"):
        say("label: training for the first choice")
        train(_training(config, directory, store.resolved(), None))
    return directory.full_uri("hasher")


def _picks(
    config: LabelRunConfig, directory: Storage, store: LabelStore, number: int, hasher_uri: str | None
) -> list[Subject]:
    """What the round asks about, chosen now if it has not been before. The simulated oracle answers."""
    if not directory.exists(PICKS):
        seen = see(config.train, hasher_uri)
        rows, pair_Q2 = _choose(config, seen, store, number, hasher_uri is not None)
        picked = {
            "format_version": FORMAT_VERSION,
            "round": number,
            "ids": [seen.ids[row].as_py() for row in rows],
            "pairs": [[seen.ids[row].as_py() for row in pair] for pair in pair_Q2],
            "time": _now().isoformat(),
        }
        if config.oracle == "simulated" and config.ask == "items":
            picked["answers"] = [_names(seen.labels, row) for row in rows]
        elif config.oracle == "simulated":
            picked["answers"] = [bool(set(_names(seen.labels, a)) & set(_names(seen.labels, b))) for a, b in pair_Q2]
        directory.create_json(PICKS, picked)
    picks = directory.read_json(PICKS)
    if not picks["ids"]:
        raise InputError(
            f"{directory.uri}: all rows are labeled before round {number}; take fewer rounds, or a smaller budget"
        )
    subjects = asked_about(picks, config.ask)
    if config.oracle == "simulated":
        time = datetime.datetime.fromisoformat(picks["time"])
        store.add(
            vote_on(subject, answer if config.ask == "pairs" else tuple(answer), SIMULATED, time, number)
            for subject, answer in zip(subjects, picks["answers"], strict=True)
        )
    elif not directory.exists(SHEET):
        directory.create_bytes(SHEET, answer_sheet(config.train, subjects, number))
    return subjects


def _is_answered(subject: Subject, resolved: Resolved) -> bool:
    identifier, *others = subject
    return subject in resolved.pairs if others else identifier in resolved.labels


def _choose(config: LabelRunConfig, seen: SeenCorpus, store: LabelStore, number: int, trained: bool) -> Selected:
    """The rows of this round and their pairs, as the corpus numbers them."""
    budget = config.budget // config.rounds + (number <= config.budget % config.rounds)
    simulated = config.oracle == "simulated"
    # Nobody can be asked about a row whose label the simulated oracle does not know.
    rows = np.flatnonzero(seen.labels.labeled()) if simulated else np.arange(len(seen.labels))
    known, paired_N = _known(config.train, seen, store, simulated)
    pool = Pool(
        seen.logit_NK[rows],
        known.take(rows),
        PairLoss(config.train.method, config.train.bits),
        seen.labels.take(rows) if simulated else None,
        paired_N[rows] if config.ask == "pairs" else None,
    )
    selection = config.selection
    if not trained and selection.strategy not in _BLIND:
        selection = dataclasses.replace(selection, strategy="random")
    selected = choose(pool, selection, budget)
    if config.ask == "pairs":
        selected = in_pairs(pool, selected)
    return Selected(rows[selected.rows], rows[selected.pair_Q2])


def _known(
    config: TrainConfig, seen: SeenCorpus, store: LabelStore, simulated: bool
) -> tuple[Labels, npt.NDArray[np.bool_]]:
    """The labels so far, those of the store and of the corpus' own that training may read; rows in answered pairs."""
    resolved = store.resolved()
    own = [[] if simulated else _names(seen.labels, row) for row in range(len(seen.labels))]
    if not simulated and config.corpus.label_column:
        if config.labels.ids is not None:
            keep_N = labeled_ids_mask(seen.ids, config.labels.ids, config.corpus.storage_options)
        else:
            keep_N = label_mask(len(own), config.labels.fraction, config.labels.seed)
        own = [labels if keep else [] for labels, keep in zip(own, keep_N, strict=True)]
    names = [
        list(resolved.labels.get(identifier, ())) or labels
        for identifier, labels in zip(seen.ids.to_pylist(), own, strict=True)
    ]
    paired = set(itertools.chain(*resolved.pairs))
    paired_N = np.array([identifier in paired for identifier in seen.ids.to_pylist()], bool)
    return read_labels(pa.array(names, pa.list_(pa.string()))), paired_N


def _training(config: LabelRunConfig, directory: Storage, resolved: Resolved, hasher_uri: str | None) -> TrainConfig:
    """The training on these answers, or on those that an earlier call for the directory had; on none without any."""
    corpus, labels = config.train.corpus, config.train.labels
    simulated = config.oracle == "simulated"
    if directory.exists(_FROZEN) or resolved.labels or resolved.pairs:
        frozen_uri = directory.full_uri("labels")
        if not directory.exists(_FROZEN):
            frozen = LabelStore.create(frozen_uri, Corpus.open(corpus).id_type, corpus.storage_options)
            now = _now()
            settled: dict[Subject, Answer] = {(item,): given for item, given in resolved.labels.items()}
            settled |= resolved.pairs
            frozen.add(vote_on(subject, answer, "resolved", now, 0) for subject, answer in settled.items())
        unread = {"fraction": 0.0, "ids": None} if simulated else {}
        labels = dataclasses.replace(labels, store=frozen_uri, **unread)
    elif simulated:
        corpus = dataclasses.replace(corpus, label_column=None)
    else:
        labels = dataclasses.replace(labels, store=None)
    warm = config.warm_start and config.train.method.name not in CLOSED_FORM
    return dataclasses.replace(
        config.train,
        corpus=corpus,
        output=directory.full_uri("hasher"),
        labels=labels,
        initial=hasher_uri if warm else None,
    )


def _train(config: LabelRunConfig, directory: Storage, resolved: Resolved, hasher_uri: str | None) -> dict[str, Any]:
    """Train on the answers so far and judge the hasher."""
    settings = _training(config, directory, resolved, hasher_uri)
    options = settings.corpus.storage_options
    report = train(settings)
    metrics: dict[str, Any] = {"labeled": report.labeled}
    if config.ask == "pairs":
        metrics["pairs"] = len(resolved.pairs)
    metrics |= {"validation_precision": report.precision, "seconds": report.seconds}
    if config.queries is not None:
        hasher = Hasher.load(settings.output, options)
        found = judge(
            hasher,
            read_judged(config.queries, hasher),
            read_judged(config.train.corpus, hasher),
            [config.k],
            radius=2,
            baselines=False,
        )[0].metrics
        metrics |= {
            "precision": found.precision[config.k],
            "mean_average_precision": found.mean_average_precision[config.k],
        }
    return metrics


def _is_flat(config: LabelRunConfig, rounds: list[dict[str, Any]]) -> bool:
    values = [each.get("precision", each["validation_precision"]) for each in rounds[-1 - _FLAT_ROUNDS :]]
    if config.least_gain is None or len(values) <= _FLAT_ROUNDS or None in values:
        return False
    return bool((np.diff(values) < config.least_gain).all())


def _line(metrics: dict[str, Any]) -> str:
    judged = "precision" if "precision" in metrics else "validation_precision"
    value = metrics[judged]
    pairs = f", {metrics['pairs']:,} answered pairs" if "pairs" in metrics else ""
    return f"{metrics['labeled']:,} labeled rows{pairs}" + (
        "" if value is None else f", {judged.replace('_', ' ')} {value:.3f}"
    )


def _names(labels: Labels, row: int) -> list[str]:
    return [labels.names[index] for index in labels.index[labels.offset_N1[row] : labels.offset_N1[row + 1]]]


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
