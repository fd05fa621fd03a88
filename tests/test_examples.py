"""The examples run as they stand and find what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
