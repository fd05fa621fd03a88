"""Each method trained in this process, without Ray, on handwritten digits with a tenth of their labels."""

from __future__ import annotations

import dataclasses
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
    WorkersConfig,
)
from distindex.errors import InputError
from distindex.evaluation import evaluate_codes
from distindex.hashing.classic import CLASSIC, fit_pca_sign, fit_ssh
from distindex.hashing.hasher import Hasher
from distindex.hashing.methods import METHODS, needs_labels
from distindex.method_config import CLOSED_FORM
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


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_ssh_uses_the_labels_that_it_is_given(digits: Path, bits: int) -> None:
    data = read_training_set(config(digits, "ssb-vae"))
    pca = precision_at_100(fit_pca_sign(data.features, data.x_NV, "pixels", bits), data)
    ssh = precision_at_100(fit_ssh(data.features, data.x_NV, data.label_NC, "pixels", bits), data)
    assert ssh > pca + 0.05, (ssh, pca)


def test_methods_in_closed_form_are_trained_as_any_other(digits: Path, tmp_path: Path, ray_cluster: None) -> None:
    for name in CLOSED_FORM:
        settings = config(digits, name)
        settings.output, settings.bits = str(tmp_path / name), 16
        settings.validation = ValidationConfig(fraction=0.2)
        report = train(settings)
        assert (report.epochs, report.history) == (0, [])
        assert (report.rows, report.labeled) == (ROWS, 140)
        hasher = Hasher.load(settings.output)
        assert (hasher.method, hasher.fingerprint) == (name, report.fingerprint)
        assert hasher.label_names == tuple(str(digit) for digit in range(10))
        data = read_training_set(settings)
        given = {"label_NC": data.label_NC} if name == "ssh" else {}
        fit = fit_ssh if name == "ssh" else CLASSIC[name]
        own = fit(data.features, data.x_NV, feature_column="pixels", bits=16, seed=0, **given)  # type: ignore[call-arg]
        column = pa.array(list(images()[0][ROWS:]))
        np.testing.assert_array_equal(hasher.encode(column), own.encode(column))
        # The 28 rows held out, against the other 112.
        rows, others = data.validation_rows, data.labeled
        found = evaluate_codes(
            codes.pack(own.logits(data.x_NV[rows]) > 0),
            codes.pack(own.logits(data.x_NV[others]) > 0),
            lambda start, stop: images()[1][rows[start:stop], None] == images()[1][others][None, :],  # noqa: B023
            ks=(8,),
        )
        assert report.precision == pytest.approx(found.precision[8], abs=1e-6)
        assert train(settings).fingerprint == report.fingerprint


def test_training_takes_the_processors_that_others_leave(
    digits: Path, tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    @ray.remote(num_cpus=3)
    class Service:
        def ready(self) -> bool:
            return True

    service = Service.remote()  # type: ignore[attr-defined]
    assert ray.get(service.ready.remote())
    try:
        train(dataclasses.replace(config(digits, "lsh"), output=str(tmp_path / "beside")))
    finally:
        ray.kill(service)  # type: ignore[arg-type]
    assert "1 worker of 1 thread" in capsys.readouterr().err


def test_what_a_closed_form_cannot_be_fitted_to_is_refused_and_leaves_nothing(
    digits: Path, tmp_path: Path, ray_cluster: None
) -> None:
    for name, change, message in [
        ("itq", {"bits": 128}, "bits: 128 directions asked of 1,400 rows in 64 dimensions"),
        ("ssh", {"validation": ValidationConfig(fraction=0.999)}, "ssh needs labels, and no row is labeled"),
        ("lsh", {"workers": WorkersConfig(count=2)}, "lsh is fitted by one worker"),
    ]:
        settings = dataclasses.replace(config(digits, name), output=str(tmp_path / name), **change)
        with pytest.raises(InputError, match=message):
            train(settings)
        assert not Path(settings.output).exists()


@pytest.mark.parametrize("name", [name for name in (*METHODS, *CLOSED_FORM) if needs_labels(name)])
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
