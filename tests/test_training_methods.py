"""Each method trained in this process, without Ray, on handwritten digits with a tenth of their labels."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.datasets import load_digits

from distindex import codes
from distindex.config import (
    CorpusConfig,
    LabelsConfig,
    MethodConfig,
    OptimizationConfig,
    TrainConfig,
    ValidationConfig,
)
from distindex.errors import InputError
from distindex.evaluation import evaluate_codes
from distindex.hashing.classic import fit_pca_sign, fit_ssh
from distindex.hashing.hasher import Hasher
from distindex.hashing.methods import METHODS
from distindex.training import train
from distindex.training.data import TrainingSet, read_training_set
from distindex.training.loop import build_model, train_epoch
from distindex.training.optimizer import Optimizer

ROWS, BITS = 1400, 32


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "corpus.parquet"
    pixels_NV, target_N = images()
    pixels = pa.array(list(pixels_NV[:ROWS]))
    pq.write_table(pa.table({"id": np.arange(ROWS), "pixels": pixels, "label": target_N[:ROWS]}), path)
    return path


def config(path: Path, name: str, **settings: Any) -> TrainConfig:
    return TrainConfig(
        CorpusConfig(str(path), "pixels", label_column="label"),
        str(path.parent / name),
        bits=BITS,
        labels=LabelsConfig(fraction=0.1),
        method=MethodConfig(name=name, hidden=[128], **settings),  # type: ignore[arg-type]
        optimization=OptimizationConfig(epochs=20, batch_size=100, labeled_fraction=0.3),
        validation=ValidationConfig(fraction=0),
    )


@cache
def images() -> tuple[np.ndarray, np.ndarray]:
    pixels_NV, target_N = load_digits(return_X_y=True)
    return np.asarray(pixels_NV, np.float32), np.asarray(target_N)


def queries() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels and digits of the other rows, and the digits of the corpus."""
    pixels_NV, target_N = images()
    return pixels_NV[ROWS:], target_N[ROWS:], target_N[:ROWS]


def precision_at_100(hasher: Hasher, data: TrainingSet) -> float:
    x_QV, label_Q, label_N = queries()
    query_QC = hasher.encode(pa.array(list(x_QV)))
    found = evaluate_codes(
        query_QC,
        codes.pack(hasher.logits(data.x_NV) > 0),
        lambda start, stop: label_Q[start:stop, None] == label_N[None, :],
        ks=(100,),
        reference=False,
    )
    return found.precision[100]


def trained(settings: TrainConfig, data: TrainingSet) -> tuple[Hasher, list[dict[str, float]]]:
    model = build_model(data, settings)
    optimizer = Optimizer(model, settings.optimization)
    history = [
        train_epoch(model, optimizer, data, settings, epoch, 0, 1, torch.device("cpu"))
        for epoch in range(settings.optimization.epochs)
    ]
    tables = model.eval().encoder.export()
    return Hasher(settings.method.name, BITS, "pixels", data.features, tables), history


@pytest.mark.parametrize("name", METHODS)
def test_every_method_finds_better_neighbours_than_pca_sign(digits: Path, name: str) -> None:
    settings = config(digits, name)
    data = read_training_set(settings)
    pca = precision_at_100(fit_pca_sign(data.features, data.x_NV, "pixels", BITS), data)
    hasher, history = trained(settings, data)
    learned = precision_at_100(hasher, data)
    assert learned > pca + 0.1, (learned, pca)
    assert history[-1]["total"] < history[0]["total"]
    assert history[0]["labeled_pairs_per_step"] == pytest.approx(30**2, rel=0.1)


def test_ssh_uses_the_labels_that_it_is_given(digits: Path) -> None:
    data = read_training_set(config(digits, "ssb-vae"))
    # Ten classes have nine directions between them; with more bits the others bring in noise.
    pca = precision_at_100(fit_pca_sign(data.features, data.x_NV, "pixels", 8), data)
    ssh = precision_at_100(fit_ssh(data.features, data.x_NV, data.label_NC, "pixels", 8), data)
    assert ssh > pca + 0.05, (ssh, pca)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.needs_labels])
def test_a_supervised_method_without_labels_is_refused_before_any_work(digits: Path, name: str) -> None:
    settings = config(digits, name)
    settings.corpus.label_column = None
    with pytest.raises(InputError, match=f"method.name: {name} needs labels"):
        train(settings)
    settings.corpus.label_column = "label"
    settings.labels = LabelsConfig(fraction=0)
    with pytest.raises(InputError, match=f"no row has a label .* {name} needs some"):
        read_training_set(settings)
    assert not Path(settings.output).exists()


def test_a_share_of_labeled_rows_needs_labels(digits: Path) -> None:
    settings = config(digits, "ssb-vae")
    settings.corpus.label_column = None
    with pytest.raises(InputError, match="labeled_fraction"):
        train(settings)
    settings.corpus.label_column = "label"
    settings.optimization.labeled_fraction = 1
    settings.labels = LabelsConfig(fraction=1 / ROWS)
    with pytest.raises(InputError, match="fewer than two rows"):
        read_training_set(settings)
