"""Appends, deletions, compaction, rolling back: the rows are those that there must be, after every step."""

from __future__ import annotations

from pathlib import Path

import pytest

from distindex.index.manifest import versions
from tests.runbook import Runbook


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "steps"), [(16, 700), (72, 300)])
def test_a_thousand_random_changes_and_searches(tmp_path: Path, bits: int, steps: int) -> None:
    runbook = Runbook(f"memory://{tmp_path.name}/runbook-{bits}", tmp_path / "cache", bits, seed=bits)
    for _ in range(steps):
        runbook.step()
    assert set(runbook.done) == {"append", "replace", "refuse", "delete", "compact", "roll back", "search"}
    assert min(runbook.done.values()) >= 5
    assert versions(runbook.storage)[-1] > steps / 3
