"""SIGKILL of a worker, of all workers and of the driver, in the middle of an epoch of a streamed corpus."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.encode_kills import processes_below
from distindex.config import TrainConfig, WorkersConfig
from distindex.errors import DistindexError
from distindex.hashing import Hasher
from distindex.training import TrainReport, train
from tests.test_training_stream import config, write_corpus
from tests.training_process import killed_training

pytestmark = pytest.mark.slow
EPOCHS = 2


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> tuple[TrainConfig, TrainReport]:
    """A run of two workers that nothing disturbs: 57 steps an epoch, checkpoints after 20 and 40 of them."""
    directory = tmp_path_factory.mktemp("interruption") / "corpus"
    write_corpus(directory, "text")
    settings = config(directory, optimization={"epochs": EPOCHS, "batch_size": 16})
    settings = dataclasses.replace(settings, workers=WorkersConfig(count=2, cpus=1), max_failures=2)
    return settings, train(settings)


def checkpoints(output: str) -> list[dict[str, Any]]:
    """The progress that is in the checkpoints."""
    found = []
    for path in sorted(Path(output, "training").glob("checkpoint_2*/progress.json")):
        try:
            found.append(json.loads(path.read_text()))
        except (OSError, ValueError):
            continue  # It is being written, or removed.
    return found


def wait_for_step(output: str, epoch: int, running: Any) -> None:
    """Until a checkpoint from within that epoch is there."""
    deadline = time.monotonic() + 120
    while not any(each["epoch"] >= epoch and each["part"] for each in checkpoints(output)):
        assert running(), "training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def tear(run: Path) -> None:
    """Leave what a kill at the worst moment leaves."""
    run.joinpath("checkpoint_manager_snapshot.json").write_bytes(b"")
    last = max(run.glob("checkpoint_2*"))
    half = shutil.copytree(last, last.with_name(f"{last.name}0"))
    state = half / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])


def curve(report: TrainReport) -> list[dict[str, Any]]:
    return [{k: v for k, v in epoch.items() if k not in ("rows_per_second", "seconds")} for epoch in report.history]


def train_and_kill(settings: TrainConfig, seed: int, counts: list[int]) -> TrainReport | BaseException:
    """Train in this process; after a checkpoint within each epoch, SIGKILL so many of the workers."""
    chosen = random.Random(seed)
    results: list[TrainReport | BaseException] = []

    def work() -> None:
        try:
            results.append(train(settings))
        except DistindexError as error:
            results.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    for epoch, count in enumerate(counts):
        wait_for_step(settings.output, epoch, thread.is_alive)
        time.sleep(chosen.uniform(0, 0.05))
        workers = processes_below(os.getpid(), "RayTrainWorker")
        assert len(workers) == settings.workers.count
        for worker in chosen.sample(workers, count):
            os.kill(worker, signal.SIGKILL)
    thread.join()
    return results[0]


def test_killed_workers_change_nothing(undisturbed: tuple[TrainConfig, TrainReport], tmp_path: Path) -> None:
    """One of two, and later both."""
    settings, whole = undisturbed
    found = train_and_kill(dataclasses.replace(settings, output=str(tmp_path / "hasher")), seed=1, counts=[1, 2])
    assert isinstance(found, TrainReport)
    assert curve(found) == curve(whole)
    assert found.fingerprint == whole.fingerprint


@pytest.mark.long
def test_a_run_goes_on_with_another_number_of_workers(
    undisturbed: tuple[TrainConfig, TrainReport], tmp_path: Path
) -> None:
    """One worker does the first epoch and is killed in the second; two do the rest. It remains streamed."""
    settings, whole = undisturbed
    alone = dataclasses.replace(settings, output=str(tmp_path / "hasher"), workers=WorkersConfig(count=1, cpus=1))
    failed = train_and_kill(dataclasses.replace(alone, max_failures=0), seed=3, counts=[0, 1])
    assert isinstance(failed, DistindexError)
    assert "goes on from the last checkpoint" in str(failed)
    before = checkpoints(alone.output)[-1]
    found = train(dataclasses.replace(alone, workers=settings.workers, max_failures=0, memory_gib=50.0))
    assert before["epoch"] == 1
    assert before["part"]["step"] in (20, 40)
    for one, other in zip(found.history, whole.history, strict=True):
        for term in ("reconstruction", "class", "pair", "total", "labeled_pairs_per_step"):
            assert one[term] == pytest.approx(other[term], rel=2e-3), (one["epoch"], term)
    streaming = json.loads(Path(settings.output, "training", "config.json").read_text())["streaming"]
    assert 8 <= streaming["lanes"] <= 128
    assert Hasher.load(alone.output).metadata["streaming"] == streaming


@pytest.mark.long
def test_a_killed_driver_changes_nothing(undisturbed: tuple[TrainConfig, TrainReport], tmp_path: Path) -> None:
    """Killed while Ray Train writes its list of checkpoints, and while a further checkpoint is written."""
    settings, whole = undisturbed
    killed = dataclasses.replace(settings, output=str(tmp_path / "hasher"))
    with killed_training(killed, tmp_path, health_check_s=0.1) as process:
        wait_for_step(killed.output, 1, lambda: process.poll() is None)
    assert not (tmp_path / "hasher" / "hasher.json").exists()
    tear(tmp_path / "hasher" / "training")
    found = train(killed)
    assert curve(found) == curve(whole)
    assert found.fingerprint == whole.fingerprint
