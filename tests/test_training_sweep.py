"""A sweep at the boundary a user sees: its trials, the config it leaves, begun again, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distindex.config import (
    CorpusConfig,
    LabelsConfig,
    MethodConfig,
    OptimizationConfig,
    TrainConfig,
    WorkersConfig,
)
from distindex.errors import InputError
from distindex.settings import load
from distindex.sweep_config import SweepConfig
from distindex.training import train
from distindex.training.sweep import SweepReport, draw, sweep

CLASSES, WIDTH, ROWS = 4, 16, 400


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Vectors around the center of their class."""
    home = tmp_path_factory.mktemp("sweep")
    random = np.random.default_rng(0)
    label_N = random.integers(0, CLASSES, ROWS)
    x_NV = (random.normal(size=(CLASSES, WIDTH))[label_N] + random.normal(size=(ROWS, WIDTH))).astype(np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(x_NV.ravel()), WIDTH)
    labels = pa.array([f"class {label}" for label in label_N])
    pq.write_table(pa.table({"id": np.arange(ROWS), "vector": vectors, "label": labels}), home / "corpus.parquet")
    return TrainConfig(
        CorpusConfig(str(home / "corpus.parquet"), "vector", label_column="label"),
        str(home / "hasher"),
        bits=16,
        labels=LabelsConfig(fraction=0.5),
        method=MethodConfig(hidden=[32]),
        optimization=OptimizationConfig(epochs=6, batch_size=50),
        workers=WorkersConfig(cpus=1),
    )


@pytest.fixture(scope="module")
def swept(base: TrainConfig, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> tuple[Any, SweepReport]:
    # With a learning rate of nothing the codes stay what they are by chance.
    config = SweepConfig(
        base,
        str(tmp_path_factory.mktemp("swept") / "sweep"),
        settings={"optimization.learning_rate": [1e-9, 1e-2], "bits": [16, 32]},
        grace_epochs=2,
        reduction=2,
    )
    return config, sweep(config)


def test_every_combination_is_tried_and_the_best_comes_first(swept: tuple[SweepConfig, SweepReport]) -> None:
    _, report = swept
    tried = [(trial.settings["optimization.learning_rate"], trial.settings["bits"]) for trial in report.trials]
    assert sorted(tried) == [(1e-9, 16), (1e-9, 32), (1e-2, 16), (1e-2, 32)]
    precisions = [trial.precision for trial in report.trials]
    assert precisions == sorted(precisions, reverse=True)
    assert tried[0][0] == 1e-2
    assert report.trials[0].epochs == 6
    assert all(trial.epochs >= 2 for trial in report.trials)


@pytest.mark.slow
def test_the_best_config_trains_to_the_precision_of_its_trial(swept: tuple[SweepConfig, SweepReport]) -> None:
    config, report = swept
    best = load(TrainConfig, report.best_config)
    assert best.output == config.train.output
    assert best.optimization.learning_rate == 1e-2
    found = train(best)
    assert (found.precision, found.best_epoch) == (report.trials[0].precision, report.trials[0].epoch)


def test_a_finished_sweep_runs_no_trial_again(swept: tuple[SweepConfig, SweepReport]) -> None:
    config, report = swept
    results = sorted(Path(config.output).glob("trials/*/result.json"))
    # Each line has the time of its epoch.
    before = [path.read_text() for path in results]
    assert len(before) == 4
    assert sweep(config) == report
    assert [path.read_text() for path in results] == before
    assert json.loads(Path(config.output, "report.json").read_text()) == dataclasses.asdict(report)


def test_another_sweep_in_the_same_place_is_refused(swept: tuple[SweepConfig, SweepReport]) -> None:
    config, _ = swept
    with pytest.raises(InputError, match=r"the sweep here has other settings \(grace_epochs: 2 -> 3\)"):
        sweep(dataclasses.replace(config, grace_epochs=3))


def test_draws_depend_on_the_seed_and_lie_in_their_ranges(base: TrainConfig) -> None:
    settings = {
        "method.pair_weight": {"loguniform": [1e-3, 1e3]},
        "method.class_weight": {"uniform": [2.0, 3.0]},
        "bits": [16, 32],
    }
    one = draw(SweepConfig(base, "sweep", settings, trials=200, seed=1))
    assert one == draw(SweepConfig(base, "sweep", settings, trials=200, seed=1))
    assert one != draw(SweepConfig(base, "sweep", settings, trials=200, seed=2))
    weights = np.array([[each["method.pair_weight"], each["method.class_weight"]] for each in one])
    assert (weights.min(0) >= [1e-3, 2]).all()
    assert (weights.max(0) <= [1e3, 3]).all()
    # Of a range over six powers of ten, about half of the draws lie below its middle.
    assert 70 < (weights[:, 0] < 1).sum() < 130
    assert {each["bits"] for each in one} == {16, 32}


@pytest.mark.parametrize(
    ("settings", "trials", "message"),
    [
        ({}, 0, "settings: name at least one"),
        ({"corpus.uri": ["a"]}, 0, "settings.corpus.uri: only bits, method"),
        ({"bits": []}, 0, "settings.bits: the list is empty"),
        ({"bits": 16}, 1, "settings.bits: give a list of values"),
        ({"method.pair_weight": {"uniform": [1.0, 2.0]}}, 0, "a range needs trials"),
        ({"method.pair_weight": {"loguniform": [0.0, 2.0]}}, 3, "0.0 to 2.0 is no range for loguniform"),
        ({"method.pair_weight": {"uniform": [2.0, 1.0]}}, 3, "2.0 to 1.0 is no range for uniform"),
        ({"method.pear_weight": [1.0]}, 0, "pear_weight"),
        ({"bits": [16, 17]}, 0, "bits: 17 is not a multiple of 8"),
        ({"method.pair_weight": ["much"]}, 0, "pair_weight"),
    ],
)
def test_settings_that_cannot_be_swept_are_refused_before_any_work(
    base: TrainConfig, tmp_path: Path, settings: dict[str, Any], trials: int, message: str
) -> None:
    with pytest.raises(InputError) as refused:
        sweep(SweepConfig(base, str(tmp_path / "sweep"), settings, trials))
    assert message in str(refused.value)
    assert not (tmp_path / "sweep").exists()


def test_without_labels_there_is_nothing_to_compare_by(base: TrainConfig, tmp_path: Path, ray_cluster: None) -> None:
    unlabeled = dataclasses.replace(base, corpus=dataclasses.replace(base.corpus, label_column=None))
    with pytest.raises(InputError, match="trials are compared by labeled rows held out, and there are none"):
        sweep(SweepConfig(unlabeled, str(tmp_path / "sweep"), {"bits": [16, 32]}))
    assert not (tmp_path / "sweep").exists()
