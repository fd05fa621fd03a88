"""Training on a cluster that loses a node."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from distindex.config import TrainConfig, WorkersConfig
from distindex.hashing import Hasher
from distindex.settings import as_json
from tests.test_training_stream import config, write_corpus

pytestmark = pytest.mark.long
EPOCHS = 12
# A node is given up after 8 s: on a busy machine two of a shorter time pass without a heartbeat now and then.
CLUSTER_SETTINGS = {"health_check_period_ms": 1000, "health_check_failure_threshold": 8}


def run(settings: TrainConfig, directory: Path, address: str) -> subprocess.Popen[str]:
    path = directory / "config.json"
    path.write_text(json.dumps(as_json(settings)))
    command = [sys.executable, "-m", "distindex.cli", "train", "--config", str(path)]
    environment = {
        **os.environ,
        "RAY_ADDRESS": address,
        # A pause between Ray Train's looks at the workers makes epochs long enough to be disturbed.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
        # Without it on a Ray of one machine, but not on a cluster.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1",
        # It first tries to place as many workers as before, for so long.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    }
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_lost_node_leaves_a_run_with_fewer_workers_if_told_so(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", "text")
    settings = config(tmp_path / "corpus", optimization={"epochs": EPOCHS, "batch_size": 16})
    settings = dataclasses.replace(
        settings,
        output=str(tmp_path / "hasher"),
        workers=WorkersConfig(count=2, cpus=1),
        memory_gib=50.0,
        minimum_workers=1,
    )
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": CLUSTER_SETTINGS})
    try:
        _, lost = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
        with run(settings, tmp_path, str(cluster.address)) as process:
            deadline = time.monotonic() + 120
            while len(list((tmp_path / "hasher" / "training").glob("checkpoint_2*"))) < 2:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            # What is lost with a node must be replaceable: the workers, and Ray Train's own restarting watcher.
            filters = [("state", "=", "ALIVE"), ("node_id", "=", lost.node_id)]
            actors = list_actors(address=str(cluster.address), limit=1000, filters=filters)
            assert {vars(actor)["class_name"] for actor in actors} <= {"RayTrainWorker", "PreemptionWatcher"}
            os.kill(lost.all_processes["raylet"][0].process.pid, signal.SIGKILL)
            _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        assert Hasher.load(settings.output).metadata["epochs"] == EPOCHS
    finally:
        cluster.shutdown()
