"""One cell: train in this process on features that are extracted once, and judge. No Ray cluster is started."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import scipy.sparse
import torch

from benchmarks.quality.datasets import DATASETS, prepared
from benchmarks.quality.plan import COSINE, Cell, Plan
from distindex import codes
from distindex.config import TrainConfig
from distindex.corpus.labels import Labels, label_mask, read_labels, share_a_label
from distindex.evaluation.metrics import RetrievalMetrics
from distindex.evaluation.protocol import MethodResult, compare_methods
from distindex.hashing.hasher import Hasher
from distindex.method_config import CLOSED_FORM
from distindex.settings import fingerprint
from distindex.training.checkpoints import Tables
from distindex.training.data import TrainingSet, neighbors_of, read_training_set
from distindex.training.fit import fit_in_process
from distindex.training.loop import build_model, train_epoch
from distindex.training.optimizer import Optimizer


@dataclasses.dataclass
class Loaded:
    """A data set in memory under one feature recipe.

    Attributes:
        directory: where it is prepared.
        data: the corpus with all its labels.
        query_QV: features of the queries.
        similar_QN: which rows share a label with which queries.
    """

    directory: Path
    data: TrainingSet
    query_QV: Any
    similar_QN: npt.NDArray[np.bool_]

    def similar(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        return self.similar_QN[start:stop]


class Runner:
    """Runs cells one after the other; keeps the data set of the last one.

    Args:
        plan: the plan.
        data: directory of the published data sets.
        work: the cache directory.
    """

    def __init__(self, plan: Plan, data: Path, work: Path) -> None:
        self.plan, self.data, self.work = plan, data, work
        self._dataset, self._directory = "", work
        self._loaded: dict[str, Loaded] = {}

    def run(self, cell: Cell) -> dict[str, Any]:
        """What one run gave, as the result store keeps it.

        Raises:
            InputError: the data set or a setting is unfit.
        """
        torch.set_num_threads(1)
        loaded = self.load(cell)
        started = time.monotonic()
        if cell.method == COSINE:
            pair = (loaded.query_QV, loaded.data.x_NV)
            results = compare_methods({}, loaded.similar, self.plan.cutoffs, cosine=pair)
            trained = started
        else:
            config = self.plan.config(cell, loaded.directory)
            data = masked(loaded.data, config)
            hasher = Hasher(
                config.method.name, config.bits, config.corpus.feature_column, data.features, tables_of(config, data)
            )
            trained = time.monotonic()
            logits = {cell.method: hasher.logits(loaded.query_QV)}
            query_QC = codes.pack(logits[cell.method] > 0)
            database_NC = codes.pack(hasher.logits(loaded.data.x_NV) > 0)
            results = compare_methods(
                {cell.method: (query_QC, database_NC)},
                loaded.similar,
                self.plan.cutoffs,
                reference=False,
                logits=logits,
            )
        return {
            **_figures(results),
            "queries": results[0].metrics.queries,
            "rows": results[0].metrics.rows,
            "data_fingerprint": loaded.data.fingerprint,
            "train_seconds": round(trained - started, 2),
            "judge_seconds": round(time.monotonic() - trained, 2),
        }

    def load(self, cell: Cell) -> Loaded:
        """The data set of a cell; that of the last call is kept."""
        if cell.dataset != self._dataset:
            self._loaded.clear()
            self._directory = prepared(cell.dataset, self.data, self.work, self.plan.queries)
            self._dataset = cell.dataset
        directory = self._directory
        config = self.plan.features(cell, directory)
        key = fingerprint(config.features)
        if key not in self._loaded:
            dataset, data = DATASETS[cell.dataset], read_training_set(config)
            queries = pq.read_table(directory / "queries.parquet")
            self._loaded[key] = Loaded(
                directory,
                data,
                data.features.transform(queries[dataset.feature_column]),
                share_a_label(read_labels(queries[dataset.label_column]), data.known),
            )
        return self._loaded[key]


def masked(data: TrainingSet, config: TrainConfig) -> TrainingSet:
    """The corpus with the labels that the config leaves: what `read_training_set` gives for it, without reading."""
    if config.corpus.label_column is None:
        known = Labels((), np.zeros(data.rows + 1, np.int64), np.zeros(0, np.int32))
    else:
        known = data.known.hide(label_mask(data.rows, config.labels.fraction, config.labels.seed))
    return dataclasses.replace(with_labels(data, known), **neighbors_of(config, data.features, data.x_NV))


def with_labels(data: TrainingSet, known: Labels) -> TrainingSet:
    """The corpus with these labels, all of which the loss may read."""
    return dataclasses.replace(data, known=known, label_NC=_matrix(known))


def tables_of(config: TrainConfig, data: TrainingSet) -> Tables:
    """The network after the last epoch, trained in this process as one worker of `distindex train` does."""
    if config.method.name in CLOSED_FORM:
        return fit_in_process(config, data)
    model = build_model(data, config)
    optimizer = Optimizer(model, config.optimization)
    for epoch in range(config.optimization.epochs):
        train_epoch(model, optimizer, data, config, epoch, 0, 1, torch.device("cpu"))
    return model.eval().encoder.export()


def _matrix(labels: Labels) -> scipy.sparse.csr_matrix:
    return scipy.sparse.csr_matrix(labels.matrix(), dtype=np.float32)


def _figures(results: list[MethodResult]) -> dict[str, Any]:
    first = results[0]
    figures: dict[str, Any] = _cutoffs(first.metrics)
    if first.statistics is not None:
        figures |= {
            "precision_at_radius_2": first.metrics.precision_at_radius,
            "distinct": first.statistics.distinct,
            "largest_bucket": first.statistics.largest_bucket,
            "bucket_entropy": first.statistics.bucket_entropy,
        }
    if len(results) > 1:
        figures["rescored"] = _cutoffs(results[1].metrics)
    return figures


def _cutoffs(metrics: RetrievalMetrics) -> dict[str, Any]:
    return {
        "precision": {str(k): value for k, value in metrics.precision.items()},
        "mean_average_precision": {str(k): value for k, value in metrics.mean_average_precision.items()},
    }
