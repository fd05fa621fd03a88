"""A training run in a process of its own, killed at the end of a block."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from distindex.config import TrainConfig
from distindex.settings import as_json


@contextlib.contextmanager
def killed_training(config: TrainConfig, directory: Path, health_check_s: float) -> Iterator[subprocess.Popen[bytes]]:
    """`distindex train` while the block runs; then SIGKILL to it and its embedded Ray.

    Args:
        config: the run's.
        directory: where its config file is written.
        health_check_s: pause between Ray Train's looks at the workers; longer ones make longer epochs.
    """
    path = directory / "config.json"
    path.write_text(json.dumps(as_json(config)))
    command = [sys.executable, "-m", "distindex.cli", "train", "--config", str(path)]
    environment = {**os.environ, "RAY_ADDRESS": "", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(health_check_s)}
    # Its own session, so that its embedded Ray dies with it.
    process = subprocess.Popen(command, start_new_session=True, env=environment, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
