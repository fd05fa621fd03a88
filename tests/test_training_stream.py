"""A corpus that is streamed, against the same corpus in memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
import torch

from distindex.config import (
    CorpusConfig,
    FeaturesConfig,
    ImageConfig,
    LabelsConfig,
    MethodConfig,
    OptimizationConfig,
    TextConfig,
    TrainConfig,
    ValidationConfig,
    WorkersConfig,
)
from distindex.corpus.dataset import Corpus
from distindex.errors import InputError
from distindex.hashing.batch import Batch, SparseRows
from distindex.training import stream, train
from distindex.training.data import TrainingSet, read_training_set
from distindex.training.stream import StreamedSet, Streaming, read_streamed

ROWS = 900
WORDS = [f"{a}{b}word" for a in "bcdfghjk" for b in "lmnpqrst"]
TINY = 2.0**-12  # GiB: a quarter of a MiB


def write_corpus(directory: Path, kind: str, bad: tuple[int, ...] = ()) -> None:
    """Three files with row groups of 70 rows; sorted by label, and every row has its own features."""
    random = np.random.default_rng(3)
    directory.mkdir(parents=True)
    label_N = np.sort(random.integers(0, 4, ROWS))
    if kind == "text":
        topics = [random.permutation(WORDS)[:24] for _ in range(4)]
        features: Any = [" ".join(random.choice(topics[label], 9)) for label in label_N]
    elif kind == "image":
        features = [(random.integers(0, 60, 16) + 40 * label).astype(np.uint8).tobytes() for label in label_N]
    else:
        centre = random.normal(size=(4, 12)) * 2
        features = list((centre[label_N] + random.normal(size=(ROWS, 12))).astype(np.float32))
    features = [None if row in bad else each for row, each in enumerate(features)]
    label = [f"label {each}" if row % 3 else None for row, each in enumerate(label_N)]
    ids = [f"row {row}" for row in range(ROWS)]
    column_type = pa.binary(16) if kind == "image" else None
    table = pa.table({"id": ids, "features": pa.array(features, column_type), "label": label})
    for number in range(3):
        pq.write_table(table.slice(number * 300, 300), directory / f"{number}.parquet", row_group_size=70)


def config(directory: Path, **settings: Any) -> TrainConfig:
    optimization = {"epochs": 3, "batch_size": 64, "checkpoint_seconds": 0.0, **settings.pop("optimization", {})}
    made = TrainConfig(
        CorpusConfig(str(directory), "features", label_column="label", on_bad_rows="reject"),
        str(directory.parent / "hasher"),
        bits=16,
        features=FeaturesConfig(image=ImageConfig(4, 4, 1), text=TextConfig(character_ngrams=3)),
        labels=LabelsConfig(fraction=0.5),
        method=MethodConfig(hidden=[32], neighbor_share=0.5),
        optimization=OptimizationConfig(**optimization),
        validation=ValidationConfig(fraction=0.2),
        workers=WorkersConfig(count=1, cpus=1),
        memory_gib=TINY,
    )
    return dataclasses.replace(made, **settings)


def streamed(settings: TrainConfig, lanes: int = 8, window: int = 30) -> StreamedSet:
    return read_streamed(settings, Corpus.open(settings.corpus), Streaming(lanes, window, 100, 1 << 20))


@pytest.fixture(scope="module", params=["dense", "text", "image"])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> tuple[TrainConfig, TrainingSet, StreamedSet]:
    """The same corpus, with two bad rows, in memory and streamed."""
    directory = tmp_path_factory.mktemp(request.param) / "corpus"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "_PIECE_BYTES", 1)
        write_corpus(directory, request.param, bad=(0, 511))
        settings = config(directory)
        return settings, read_training_set(settings), streamed(settings)


def dense(rows: Any) -> np.ndarray:
    if isinstance(rows, SparseRows):
        arrays = (rows.value_M.numpy(), rows.column_M.numpy(), rows.offset_B1.numpy())
        return scipy.sparse.csr_matrix(arrays, shape=(len(rows), rows.width)).toarray()
    return rows.toarray() if scipy.sparse.issparse(rows) else np.asarray(rows)


def all_batches(data: StreamedSet, settings: TrainConfig, epoch: int, workers: int, first: int = 0) -> list[Batch]:
    """The global batches, put together from the shares of all workers."""
    shares = [list(data.batches(settings, epoch, first, rank, workers)) for rank in range(workers)]
    together = []
    for parts in zip(*shares, strict=True):
        assert len({(part.key, part.global_rows) for part in parts}) == 1
        together.append(
            dataclasses.replace(
                parts[0],
                x_BV=torch.from_numpy(np.concatenate([dense(part.x_BV) for part in parts])),
                target_BV=torch.from_numpy(np.concatenate([dense(part.target_BV) for part in parts])),
                label_BC=torch.cat([part.label_BC for part in parts]),
                row_B=torch.cat([part.row_B for part in parts]),
            )
        )
    return together


def rows_of(x_BV: Any, data: TrainingSet) -> list[int]:
    """Which rows of the corpus these are, by their features."""
    place = {row.tobytes(): number for number, row in enumerate(np.round(dense(data.x_NV), 4) + 0.0)}
    return [place[row.tobytes()] for row in np.round(np.asarray(x_BV), 4) + 0.0]


def test_features_labels_and_held_out_rows_are_those_in_memory(
    both: tuple[TrainConfig, TrainingSet, StreamedSet],
) -> None:
    _, memory, data = both
    assert (data.rows, data.rejected, data.fingerprint) == (ROWS - 2, 2, memory.fingerprint)
    assert data.known.names == memory.known.names
    np.testing.assert_array_equal(data.validation_rows, memory.validation_rows)
    np.testing.assert_array_equal(data.labeled, memory.labeled)
    np.testing.assert_array_equal(data.labels_of(data.labeled).one_hot(), memory.labels_of(data.labeled).one_hot())
    if data.sparse:
        assert data.features.terms == memory.features.terms  # type: ignore[attr-defined]
        np.testing.assert_array_equal(data.features.idf_V, memory.features.idf_V)  # type: ignore[attr-defined]
    np.testing.assert_allclose(dense(data.x_of(data.held_rows)), dense(memory.x_of(data.held_rows)), atol=1e-5)


def test_an_epoch_has_every_good_row_once_with_its_labels(
    both: tuple[TrainConfig, TrainingSet, StreamedSet],
) -> None:
    settings, memory, data = both
    orders = []
    for epoch in range(2):
        rows = []
        for batch in all_batches(data, settings, epoch, 1):
            found = rows_of(batch.x_BV, memory)
            np.testing.assert_array_equal(batch.label_BC.numpy(), memory.label_NC[found].toarray())
            assert batch.row_B.tolist() == list(range(batch.global_rows))
            rows += found
        assert sorted(rows) == list(range(ROWS - 2))
        orders.append(rows)
    assert orders[0] != orders[1]
    # The corpus is sorted by label; a batch is not.
    label_N = np.sort(np.random.default_rng(3).integers(0, 4, ROWS))
    assert len(set(label_N[np.array(orders[0][:64])])) >= 3


def test_any_number_of_workers_has_the_same_batches_and_begins_with_any_step(
    both: tuple[TrainConfig, TrainingSet, StreamedSet],
) -> None:
    settings, _, data = both
    whole = all_batches(data, settings, 1, 1)
    assert len(whole) == data.steps(settings)
    for workers, first in [(2, 0), (4, 0), (3, 0), (1, 5), (2, 13)]:
        found = all_batches(data, settings, 1, workers, first)
        assert len(found) == len(whole) - first
        for one, other in zip(found, whole[first:], strict=True):
            assert one.key == other.key
            for name in ("x_BV", "target_BV", "label_BC", "row_B"):
                assert torch.equal(getattr(one, name), getattr(other, name)), (workers, first, name)


def test_a_corpus_without_labels(both: tuple[TrainConfig, TrainingSet, StreamedSet]) -> None:
    settings, memory, _ = both
    settings = dataclasses.replace(settings, corpus=dataclasses.replace(settings.corpus, label_column=None))
    data = streamed(settings)
    assert (len(data.labeled), len(data.validation_rows), data.known.names) == (0, 0, ())
    batches = all_batches(data, settings, 0, 1)
    assert sorted(row for batch in batches for row in rows_of(batch.x_BV, memory)) == list(range(ROWS - 2))
    assert batches[0].label_BC.shape == (64, 0)


def test_targets_are_mixed_with_a_near_row(both: tuple[TrainConfig, TrainingSet, StreamedSet]) -> None:
    settings, memory, data = both
    assert memory.neighbor_NJ is not None
    target_NV = dense(memory.target_NV).astype(np.float64)
    batch = all_batches(data, settings, 0, 1)[0]
    for row, target in zip(rows_of(batch.x_BV, memory), np.asarray(batch.target_BV), strict=True):
        near = memory.neighbor_NJ[row]
        assert any(np.allclose(target, (target_NV[row] + target_NV[j]) / 2, atol=1e-4) for j in near)


@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_labeled_rows_run_beside_the_stream(
    both: tuple[TrainConfig, TrainingSet, StreamedSet], fraction: float
) -> None:
    settings, memory, _ = both
    settings = dataclasses.replace(
        settings, optimization=dataclasses.replace(settings.optimization, labeled_fraction=fraction)
    )
    data = streamed(settings)
    whole = all_batches(data, settings, 0, 1)
    labeled, unlabeled = [], []
    for one, other in zip(whole, all_batches(data, settings, 0, 3), strict=True):
        assert torch.equal(one.x_BV, other.x_BV)  # type: ignore[arg-type]
        rows = np.array(rows_of(one.x_BV, memory))
        is_labeled = np.isin(rows, memory.labeled)
        np.testing.assert_array_equal(one.label_BC.numpy().any(1), is_labeled)
        assert is_labeled.mean() == pytest.approx(fraction, abs=0.05)
        labeled += rows[is_labeled].tolist()
        unlabeled += rows[~is_labeled].tolist()
    others = np.setdiff1d(np.arange(memory.rows), memory.labeled)
    assert sorted(unlabeled) == ([] if fraction == 1 else others.tolist())
    counts = np.bincount(labeled, minlength=memory.rows)[memory.labeled]
    assert counts.max() - counts.min() <= 1
    assert counts.min() >= 1
    with pytest.raises(InputError, match=r"labeled rows must stay in memory .* raise it, or take labeled_fraction 0"):
        read_streamed(settings, Corpus.open(settings.corpus), Streaming(8, 30, 10_000, 1 << 20))


def test_what_is_wrong_with_a_corpus_is_said_as_for_one_in_memory(tmp_path: Path, ray_cluster: None) -> None:
    directory = tmp_path / "corpus"
    write_corpus(directory, "dense", bad=(7,))
    settings = config(directory)
    listed = tmp_path / "listed.txt"
    for change, message in [
        ({"corpus": dataclasses.replace(settings.corpus, on_bad_rows="fail")}, "0.parquet row 7: .* is null"),
        ({"labels": LabelsConfig(ids=str(listed))}, "id 'row 9999' is not in the corpus"),
        ({"labels": LabelsConfig(fraction=0.0)}, "no row has a label"),
        ({"method": MethodConfig(name="vdsh-s", likelihood="bernoulli")}, "bernoulli needs numbers within"),
    ]:
        listed.write_text("row 5\nrow 9999\n")
        changed = dataclasses.replace(settings, **change)
        for read in (streamed, read_training_set):
            with pytest.raises(InputError, match=message):
                read(changed)
    listed.write_text("row 4\nrow 899\n")
    chosen = dataclasses.replace(
        settings, labels=LabelsConfig(ids=str(listed)), validation=ValidationConfig(fraction=0)
    )
    np.testing.assert_array_equal(streamed(chosen).labeled, read_training_set(chosen).labeled)
    table = pq.read_table(directory / "2.parquet")
    pq.write_table(pa.concat_tables([table, table.slice(5, 1)]), directory / "3.parquet")
    with pytest.raises(
        InputError, match=r"id 'row \d+' is there more than once: .*2.parquet row 0, .*3.parquet row 0"
    ):
        streamed(settings)
    with pytest.raises(InputError, match="itq is fitted to all rows in memory"):
        train(dataclasses.replace(settings, method=MethodConfig(name="itq"), memory_gib=2.0**-20))


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path, ray_cluster: None) -> None:
    write_corpus(tmp_path / "corpus", "dense")
    settings = config(tmp_path / "corpus")
    data = streamed(settings)
    path = tmp_path / "corpus" / "1.parquet"
    pq.write_table(pq.read_table(path).slice(20), path)
    with pytest.raises(InputError, match=r"1.parquet: the file has changed"):
        list(data.batches(settings, 0, 0, 0, 1))
