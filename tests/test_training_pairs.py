"""Answers about pairs in training: what each batch has of them, in memory and streamed, and what is reported."""

from __future__ import annotations

import dataclasses
import datetime
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from distindex.config import LabelsConfig, TrainConfig
from distindex.corpus.label_store import LabelStore, Vote
from distindex.errors import InputError
from distindex.hashing import Hasher
from distindex.hashing.batch import Batch
from distindex.method_config import MethodConfig
from distindex.training import train
from distindex.training.data import TrainingSet, read_training_set
from distindex.training.lanes import pairs_of_batch
from distindex.training.source import TrainingData
from distindex.training.stream import StreamedSet
from tests.test_training_stream import ROWS, all_batches, config, rows_of, streamed, write_corpus

NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)
LABELED = range(40)


def vote(first: int, second: int, similar: bool) -> Vote:
    return Vote(f"row {first}", (), f"row {second}", similar, "ann", NOON, 0)


def answers() -> dict[tuple[int, int], bool]:
    """Pairs of rows without labels, each row in one pair, so that nothing follows from them."""
    order = np.random.default_rng(9).permutation(np.arange(100, ROWS))[:74].reshape(-1, 2)
    return {tuple(sorted(pair)): bool(number % 3) for number, pair in enumerate(order.tolist())}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> tuple[TrainConfig, TrainingSet, StreamedSet]:
    """A corpus with 40 labels, one that follows, and 37 answers that remain; in memory and streamed."""
    home = tmp_path_factory.mktemp("pairs")
    write_corpus(home / "corpus", "dense")
    store = LabelStore.create(str(home / "store"), pa.string())
    store.add(Vote(f"row {row}", (f"label {row % 4}",), None, None, "ann", NOON, 0) for row in LABELED)
    store.add(vote(*pair, similar) for pair, similar in answers().items())
    # The label of row 3 follows for row 60; 0 and 1 have different labels; nobody knows row 5000.
    store.add([vote(3, 60, True), vote(0, 1, True), vote(7, 5000, True)])
    settings = config(home / "corpus", labels=LabelsConfig(0.0, store=store.storage.uri))
    return settings, read_training_set(settings), streamed(settings)


def rows_of_batch(batch: Batch, memory: TrainingSet) -> np.ndarray:
    return np.array(rows_of(batch.x_BV, memory))


def test_both_ways_of_reading_find_the_same(both: tuple[TrainConfig, TrainingSet, StreamedSet]) -> None:
    _, memory, data = both
    expected = {"used": 37, "resolved": 1, "contradictory": 1, "unknown": 1, "unused": 0}
    for each in (memory, data):
        assert each.answered.counts() == expected
        found = zip(map(tuple, each.answered.row_P2.tolist()), each.answered.similar_P, strict=True)
        assert {tuple(sorted(pair)): bool(similar) for pair, similar in found} == answers()
        assert each.known.labeled().sum() == len(LABELED) + 1
    assert memory.labels_of(np.array([3, 60])).index.tolist() == [3, 3]


@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_each_batch_has_answered_pairs_among_its_other_rows(
    both: tuple[TrainConfig, TrainingSet, StreamedSet], fraction: float
) -> None:
    settings, memory, data = both
    optimization = dataclasses.replace(settings.optimization, labeled_fraction=fraction, pair_fraction=0.25)
    settings = dataclasses.replace(settings, optimization=optimization)
    ways: list[TrainingData] = [memory, data]
    drawn: list[list[tuple[int, int]]] = []
    for each in ways:
        seen: Counter[int] = Counter()
        drawn.append([])
        batches = list(each.batches(settings, 1, 0, 0, 1))
        assert len(batches) == each.steps(settings)
        for batch in batches:
            rows, answered = rows_of_batch(batch, memory), batch.answered
            assert answered is not None
            pairs = np.stack([rows[answered.left_P], rows[answered.right_P]], axis=1)
            assert [answers()[tuple(sorted(p))] for p in pairs.tolist()] == answered.similar_P.tolist()
            drawn[-1] += [tuple(p) for p in pairs.tolist()]
            seen.update(np.delete(rows, np.concatenate([answered.left_P, answered.right_P])).tolist())
            labels = memory.label_NC[rows].toarray()
            np.testing.assert_array_equal(batch.label_BC.numpy(), labels)
        for batch in batches[:-1]:
            assert (batch.global_rows, len(batch.answered or ())) == (64, 8)
        unlabeled = np.setdiff1d(np.arange(ROWS), memory.labeled)
        assert [seen[row] for row in unlabeled] == [1] * len(unlabeled)
        counts = Counter(drawn[-1])
        assert len(counts) == 37
        assert max(counts.values()) - min(counts.values()) <= 1, "one permutation of the answers after the other"
    assert drawn[0] == drawn[1], "the same pairs in the same steps"


def test_any_number_of_workers_has_the_same_batches_and_begins_with_any_step(
    both: tuple[TrainConfig, TrainingSet, StreamedSet],
) -> None:
    settings, memory, data = both
    ways: list[Any] = [memory, data]
    for each in ways:
        whole = all_batches(each, settings, 0, 1)
        for workers, first in [(2, 0), (3, 4), (1, 7)]:
            for one, other in zip(whole[first:], all_batches(each, settings, 0, workers, first), strict=True):
                np.testing.assert_array_equal(one.x_BV, other.x_BV)
                np.testing.assert_array_equal(one.label_BC, other.label_BC)
                assert one.answered is not None
                assert other.answered is not None
                np.testing.assert_array_equal(one.answered.left_P, other.answered.left_P)
                np.testing.assert_array_equal(one.answered.similar_P, other.answered.similar_P)


@pytest.mark.parametrize(("batch_size", "fraction", "expected"), [(200, 0.2, 20), (4, 0.2, 1), (10, 0.99, 4)])
def test_a_batch_has_a_pair_and_two_other_rows(batch_size: int, fraction: float, expected: int) -> None:
    assert pairs_of_batch(batch_size, fraction) == expected


def test_methods_without_a_loss_over_pairs_leave_them_unused(
    both: tuple[TrainConfig, TrainingSet, StreamedSet],
) -> None:
    settings = dataclasses.replace(both[0], method=MethodConfig(name="vdsh-s", hidden=[8]))
    found = read_training_set(settings)
    assert (len(found.answered), found.answered.unused, found.known.labeled().sum()) == (0, 37, 41)
    (batch, *_) = found.batches(settings, 0, 0, 0, 1)
    assert (batch.answered, batch.global_rows) == (None, 64)
    small = dataclasses.replace(both[0], optimization=dataclasses.replace(both[0].optimization, batch_size=3))
    with pytest.raises(InputError, match="3 is too small for answered pairs"):
        read_training_set(small)


def test_answers_alone_are_learned_from(
    both: tuple[TrainConfig, TrainingSet, StreamedSet], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No label at all: rows that were answered to be alike have nearer codes than those that were not."""
    memory = both[1]
    label_N = np.sort(np.random.default_rng(3).integers(0, 4, ROWS))
    pairs = np.random.default_rng(4).integers(0, ROWS, (400, 2))
    store = LabelStore.create(str(tmp_path / "store"), pa.string())
    store.add(vote(int(i), int(j), bool(label_N[i] == label_N[j])) for i, j in pairs if i != j)
    corpus = dataclasses.replace(both[0].corpus, label_column=None)
    settings = dataclasses.replace(
        both[0], corpus=corpus, output=str(tmp_path / "hasher"), labels=LabelsConfig(store=store.storage.uri)
    )
    settings = dataclasses.replace(settings, method=MethodConfig(hidden=[32], pair_weight=50.0), memory_gib=0)
    report = train(settings)
    assert report.pairs is not None
    assert (report.labeled, report.pairs["unknown"], report.pairs["contradictory"]) == (0, 0, 0)
    assert report.pairs["used"] == len({tuple(sorted(p)) for p in pairs.tolist() if p[0] != p[1]})
    assert f"{report.pairs['used']:,} answers about pairs are used" in capsys.readouterr().err
    hasher = Hasher.load(settings.output)
    assert hasher.metadata["pairs"] == report.pairs
    code_NK = np.sign(hasher.logits(memory.x_NV))
    distance = (code_NK[pairs[:, 0]] != code_NK[pairs[:, 1]]).sum(1)
    same = label_N[pairs[:, 0]] == label_N[pairs[:, 1]]
    assert distance[same].mean() + 2 < distance[~same].mean()
    assert "answers about pairs" in (tmp_path / "hasher" / "report.html").read_text()
    pairwise = dataclasses.replace(settings, method=MethodConfig(name="dpsh", hidden=[8]))
    with pytest.raises(InputError, match="dpsh needs some"):
        read_training_set(pairwise)
