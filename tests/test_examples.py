"""The examples run as they stand and find what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distindex import settings
from distindex.config import TrainConfig

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.slow
def test_search_your_embeddings(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ran = subprocess.run(
        [sys.executable, EXAMPLES / "search_your_embeddings.py", tmp_path / "digits"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    *matches, summary = ran.stdout.splitlines()
    assert len(matches) == 10
    assert all(line.strip().startswith("digit-") for line in matches)
    # Ten classes: 0.1 by chance.
    assert float(summary.split()[0]) > 0.8


@pytest.mark.parametrize("path", sorted((EXAMPLES / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_are_read_as_they_are(path: Path) -> None:
    config = settings.load(TrainConfig, str(path))
    assert config.output.endswith(f"hashers/{path.stem}")
    assert (config.workers.device == "cuda") == ("gpu" in path.stem)
