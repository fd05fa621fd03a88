"""Training at the boundary a user sees: what comes out, on one or two workers, stopped and begun again."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.train_workers import events
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
from distindex.hashing import Hasher
from distindex.storage import Storage
from distindex.training import TrainReport, train
from distindex.training.checkpoints import Progress, read_checkpoint, save_checkpoint, unlisted_checkpoint
from distindex.training.data import read_training_set
from distindex.training.loop import build_model
from distindex.training.optimizer import Optimizer
from tests.training_process import killed_training

ROWS, EPOCHS = 700, 60


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 700 handwritten digits in two files, and 300 others as queries."""
    home = tmp_path_factory.mktemp("digits")
    pixels_NV, target_N = load_digits(return_X_y=True)
    image_NV = pixels_NV.astype(np.float32)

    def write(path: Path, rows: slice) -> None:
        pixels = pa.FixedSizeListArray.from_arrays(pa.array(image_NV[rows].ravel()), 64)
        label = pa.array([f"digit {target}" for target in target_N[rows]])
        ids = pa.array(np.arange(len(image_NV))[rows])
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"id": ids, "pixels": pixels, "label": label}), path)

    write(home / "corpus" / "0.parquet", slice(0, 400))
    write(home / "corpus" / "1.parquet", slice(400, ROWS))
    write(home / "queries.parquet", slice(1000, 1300))
    return home


def config(digits: Path, output: Path, workers: int = 1, epochs: int = EPOCHS) -> TrainConfig:
    return TrainConfig(
        CorpusConfig(str(digits / "corpus"), "pixels", label_column="label"),
        str(output),
        bits=32,
        labels=LabelsConfig(fraction=0.3),
        method=MethodConfig(name="ssb-vae", hidden=[128]),
        optimization=OptimizationConfig(epochs=epochs, batch_size=70, checkpoint_seconds=0),
        workers=WorkersConfig(count=workers, cpus=1),
    )


@pytest.fixture(scope="module")
def trained(
    digits: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> tuple[TrainConfig, TrainReport]:
    """One run of one worker that nothing disturbs."""
    settings = config(digits, tmp_path_factory.mktemp("trained") / "hasher")
    settings = dataclasses.replace(settings, trackers=["tensorboard"])
    return settings, train(settings)


def precision_at_50(digits: Path, hasher: Hasher) -> float:
    queries, corpus = pq.read_table(digits / "queries.parquet"), pq.read_table(digits / "corpus")
    label_Q, label_N = np.array(queries["label"].to_pylist()), np.array(corpus["label"].to_pylist())
    found = evaluate_codes(
        hasher.encode(queries),
        hasher.encode(corpus),
        lambda start, stop: label_Q[start:stop, None] == label_N[None, :],
        ks=(50,),
    )
    return found.precision[50]


def test_learned_codes_find_better_neighbours_than_their_pixels(
    digits: Path, trained: tuple[TrainConfig, TrainReport]
) -> None:
    settings, report = trained
    hasher = Hasher.load(settings.output)
    assert hasher.fingerprint == report.fingerprint
    assert hasher.label_names == tuple(f"digit {d}" for d in range(10))
    queries, corpus = pq.read_table(digits / "queries.parquet"), pq.read_table(digits / "corpus")
    x_QV, x_NV = (np.stack(t["pixels"].to_numpy(zero_copy_only=False)) for t in (queries, corpus))
    cosine_QN = (x_QV / np.linalg.norm(x_QV, axis=1)[:, None]) @ (x_NV / np.linalg.norm(x_NV, axis=1)[:, None]).T
    nearest = np.argsort(-cosine_QN, axis=1)[:, :50]
    label_Q, label_N = np.array(queries["label"].to_pylist()), np.array(corpus["label"].to_pylist())
    float_precision = (label_N[nearest] == label_Q[:, None]).mean()
    assert precision_at_50(digits, hasher) > float_precision + 0.05


def test_the_report_tells_how_it_went(trained: tuple[TrainConfig, TrainReport]) -> None:
    _, report = trained
    assert (report.rows, report.labeled, report.rejected) == (ROWS, 210, 0)
    assert len(report.history) == report.epochs
    assert report.precision is not None
    assert report.precision == max(epoch["precision"] for epoch in report.history)
    assert report.history[report.best_epoch - 1]["precision"] == report.precision
    for epoch in report.history:
        for term in ("reconstruction", "kl", "class", "pair", "total", "bit_imbalance", "labeled_pairs_per_step"):
            assert np.isfinite(epoch[term])
        assert epoch["rows_per_second"] > 0
    first, last = report.history[0], report.history[-1]
    assert last["reconstruction"] < first["reconstruction"]
    assert last["class"] < first["class"]
    # 10 steps of 70 rows, 189 labeled rows that are not held out.
    assert 250 < first["labeled_pairs_per_step"] < 500


def test_the_page_of_a_run_needs_no_other_file(trained: tuple[TrainConfig, TrainReport]) -> None:
    settings, report = trained
    page = Path(settings.output, "report.html").read_text()
    for told in (
        f"{report.precision:.4f}",
        f"epoch {report.best_epoch} of {report.epochs}",
        "210 (30.0%)",
        "digit 9",
    ):
        assert told in page
    assert "<th>optimization.batch_size</th><td>70</td>" in page
    assert "held in memory" in page
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert [link[:22] for link in links] == ["data:image/png;base64,"]
    picture = Image.open(io.BytesIO(base64.b64decode(links[0][22:])))
    assert picture.width > 500


def test_tensorboard_has_every_metric_of_every_epoch(trained: tuple[TrainConfig, TrainReport]) -> None:
    settings, report = trained
    found: dict[str, dict[int, float]] = {}
    for event in events(Path(settings.output)):
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    for name in ("total", "reconstruction", "precision", "rows_per_second"):
        expected = {epoch["epoch"]: pytest.approx(epoch[name], rel=1e-6) for epoch in report.history}
        assert found[name] == expected


def test_a_tracker_that_is_not_installed_is_refused_before_any_work(digits: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(config(digits, tmp_path / "hasher"), trackers=["mlflow"])
    with pytest.raises(InputError, match="trackers: mlflow is not installed: pip install mlflow"):
        train(settings)
    assert not (tmp_path / "hasher").exists()


def test_a_finished_run_is_returned_as_it_is(trained: tuple[TrainConfig, TrainReport]) -> None:
    settings, report = trained
    again = train(settings)
    assert dataclasses.replace(again, seconds=0) == dataclasses.replace(report, seconds=0)


def test_other_settings_for_the_same_output_are_refused_with_the_difference(
    trained: tuple[TrainConfig, TrainReport],
) -> None:
    settings, _ = trained
    changed = dataclasses.replace(settings, bits=64, labels=LabelsConfig(fraction=0.5))
    with pytest.raises(InputError, match=r"bits: 32 -> 64; labels.fraction: 0.3 -> 0.5"):
        train(changed)


def test_two_workers_give_the_run_of_one(
    digits: Path, trained: tuple[TrainConfig, TrainReport], tmp_path: Path
) -> None:
    epochs = 8
    two = train(config(digits, tmp_path / "hasher", workers=2, epochs=epochs))
    # How many epochs follow does not change those before.
    for one, other in zip(trained[1].history[:epochs], two.history, strict=True):
        for term in ("reconstruction", "kl", "class", "pair", "total"):
            assert other[term] == pytest.approx(one[term], rel=2e-3), (one["epoch"], term)
        assert other["precision"] == pytest.approx(one["precision"], abs=0.02), one["epoch"]


def test_without_a_label_column_the_autoencoder_alone_is_trained(
    digits: Path, tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(digits, tmp_path / "h", epochs=5)
    settings.corpus.label_column = None
    report = train(settings)
    assert "no labels, so the autoencoder's terms alone are trained" in capsys.readouterr().err
    assert report.labeled == 0
    assert report.precision is None
    assert set(report.history[0]) >= {"reconstruction", "kl", "total"}
    assert "class" not in report.history[0]
    assert report.history[-1]["reconstruction"] < report.history[0]["reconstruction"]
    assert Hasher.load(settings.output).label_names == ()


def test_only_the_labels_of_the_named_ids_are_used_and_early_stopping_keeps_the_best_epoch(
    digits: Path, tmp_path: Path, ray_cluster: None
) -> None:
    ids = tmp_path / "labeled.txt"
    ids.write_text("\n".join(str(i) for i in range(50)))
    settings = config(digits, tmp_path / "h", epochs=40)
    settings.labels, settings.validation = LabelsConfig(ids=str(ids)), ValidationConfig(patience=2, k=5)
    report = train(settings)
    assert report.labeled == 50
    assert report.epochs == len(report.history) == report.best_epoch + 2 < 40
    assert report.precision == max(epoch["precision"] for epoch in report.history)
    ids.write_text("5\n9999\n")
    settings.output = str(tmp_path / "other")
    with pytest.raises(InputError, match="9999"):
        train(settings)
    assert not (tmp_path / "other").exists()


def test_texts_and_several_labels_a_row(tmp_path: Path, ray_cluster: None) -> None:
    random = np.random.default_rng(0)
    topics = {
        "sea": "ship wave harbour sail fish",
        "sky": "cloud bird wing wind star",
        "land": "field tree hill road",
    }
    names = sorted(topics)
    texts, labels = [], []
    for _ in range(300):
        chosen = sorted(random.choice(names, size=random.integers(1, 3), replace=False))
        words = [word for name in chosen for word in random.choice(topics[name].split(), 6)]
        texts.append(" ".join(words))
        labels.append(chosen if random.random() < 0.5 else None)
    (tmp_path / "corpus").mkdir()
    table = pa.table({"id": [f"row {i}" for i in range(300)], "text": texts, "label": labels})
    pq.write_table(table, tmp_path / "corpus" / "0.parquet")
    settings = TrainConfig(
        CorpusConfig(str(tmp_path / "corpus"), "text", label_column="label"),
        str(tmp_path / "hasher"),
        bits=16,
        method=MethodConfig(hidden=[32]),
        optimization=OptimizationConfig(epochs=40, batch_size=50),
        workers=WorkersConfig(count=1, cpus=1),
    )
    report = train(settings)
    assert report.labeled == sum(label is not None for label in labels)
    hasher = Hasher.load(settings.output)
    topic_N = np.repeat(names, 20)
    one_topic = pa.array([" ".join(random.choice(topics[name].split(), 4)) for name in topic_N])
    bits = np.unpackbits(hasher.encode(one_topic), axis=1)
    distance = (bits[:, None] != bits[None]).sum(2)
    same = topic_N[:, None] == topic_N[None]
    assert distance[same].mean() < 0.6 * distance[~same].mean()


@pytest.mark.slow
@pytest.mark.parametrize("listed", [None, ["checkpoint_1", "checkpoint_2"], ["checkpoint_2", "checkpoint_3"], []])
def test_a_list_of_checkpoints_that_names_what_is_not_there_is_not_followed(
    digits: Path, tmp_path: Path, listed: list[str] | None
) -> None:
    """As the workers of a killed run, which outlive its driver by a moment, may leave it."""
    settings = config(digits, tmp_path)
    model = build_model(read_training_set(settings), settings)
    optimizer = Optimizer(model, settings.optimization)
    for number in (2, 3):
        directory = Storage(str(tmp_path / f"checkpoint_{number}"))
        save_checkpoint(directory, model, optimizer, Progress(epoch=number), model.encoder.export())
    snapshot = tmp_path / "checkpoint_manager_snapshot.json"
    if listed is not None:
        results = [{"checkpoint_dir_name": name} for name in listed]
        snapshot.write_text(json.dumps({"checkpoint_results": results}))
    found = unlisted_checkpoint(Storage(str(tmp_path)))
    left = sorted(path.name for path in tmp_path.iterdir())
    if listed is None or "checkpoint_1" in listed:
        assert found is not None
        assert read_checkpoint(found)[0].epoch == 3
        assert left == ["checkpoint_3"]
    else:
        assert found is None
        assert left == ["checkpoint_2", "checkpoint_3", snapshot.name]


def test_a_run_killed_in_the_middle_of_an_epoch_ends_as_if_nothing_had_happened(
    trained: tuple[TrainConfig, TrainReport], tmp_path: Path
) -> None:
    undisturbed, whole = trained
    killed = dataclasses.replace(undisturbed, output=str(tmp_path / "killed"))
    # Slow epochs, so that it does not end before.
    with killed_training(killed, tmp_path, health_check_s=0.2) as process:
        deadline = time.monotonic() + 300
        while len(list((tmp_path / "killed" / "training").glob("checkpoint_2*/progress.json"))) < 2:
            assert process.poll() is None, "training ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not (tmp_path / "killed" / "hasher.json").exists()

    resumed = train(killed)
    timings = ("rows_per_second", "seconds")
    for one, other in zip(resumed.history, whole.history, strict=True):
        assert {k: v for k, v in one.items() if k not in timings} == {
            k: v for k, v in other.items() if k not in timings
        }
    assert resumed.fingerprint == whole.fingerprint
