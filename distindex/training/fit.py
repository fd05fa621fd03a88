"""Methods in closed form: one Ray task holds all rows, fits the linear map and judges it on the held-out rows."""

from __future__ import annotations

import ray
import torch

from distindex.config import TrainConfig
from distindex.hashing.classic import fit_classic
from distindex.runtime import fetch
from distindex.training.checkpoints import Progress, Tables
from distindex.training.data import TrainingSet
from distindex.training.loop import validate


def fit(config: TrainConfig, data_ref: ray.ObjectRef, threads: int) -> tuple[Progress, Tables]:
    """The fitted map in place of a trained network, after no epoch.

    Raises:
        InputError: there are fewer rows or dimensions than bits, or no labels where the method needs them.
    """
    return fetch(ray.remote(num_cpus=threads)(_fit).remote(config, data_ref, threads))


def _fit(config: TrainConfig, data: TrainingSet, threads: int) -> tuple[Progress, Tables]:
    torch.set_num_threads(threads)
    tables = fit_in_process(config, data)
    metrics = validate(tables, data, config)
    return Progress(best_precision=metrics.get("precision", -1.0)), tables


def fit_in_process(config: TrainConfig, data: TrainingSet) -> Tables:
    """The fitted map as a network of one layer, without Ray.

    Raises:
        InputError: as `fit`.
    """
    hasher = fit_classic(
        config.method.name,
        data.features,
        data.features.network_input(data.x_NV),
        data.label_NC,
        config.corpus.feature_column,
        config.bits,
        config.optimization.seed,
    )
    return list(hasher.tables)
