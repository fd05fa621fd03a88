"""The curves over labels: how many labels a precision takes, and which runs count."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks import labeling
from benchmarks.labeling import STRATEGIES, Curves, labels_to_reach
from benchmarks.quality.plan import Plan
from benchmarks.reporting import ROOT

LEVELS = (0.01, 0.1, 0.3)
CONFIGS = ROOT / "benchmarks" / "configs"


def _curves(path: Path) -> Curves:
    return Curves(path, Plan(CONFIGS / "quality.yaml"))


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """The plan with the levels above and training as long as benchmarks.quality's."""
    read = yaml.safe_load((CONFIGS / "labeling" / "curves.yaml").read_text())
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump({**read, "epochs": None, "levels": list(LEVELS)}))
    return path


def test_labels_are_counted_between_rounds() -> None:
    points = [(0.01, 0.2), (0.1, 0.4), (1.0, 0.8)]
    assert labels_to_reach(points, 0.1) == pytest.approx(0.01), "reached by the first round"
    assert labels_to_reach(points, 0.3) == pytest.approx(10**-1.5), "half way, on a logarithmic scale"
    assert labels_to_reach(points, 0.8) == pytest.approx(1.0)
    assert labels_to_reach(points, 0.81) is None
    assert labels_to_reach([(0.01, 0.5), (0.1, 0.3), (0.2, 0.6)], 0.5) == pytest.approx(0.01)


def test_every_curve_is_planned_once_and_settings_tell_runs_apart(short: Path) -> None:
    curves, other = _curves(CONFIGS / "labeling" / "curves.yaml"), _curves(short)
    cells = curves.cells()
    assert len(cells) == len(set(cells)) == 4 * 3 * 2 * 2 * len(STRATEGIES)
    some = cells[:: len(STRATEGIES) // 2]
    assert len({curves.fingerprint(cell) for cell in some}) == len(some)
    assert other.fingerprint(cells[0]) != curves.fingerprint(cells[0])
    assert set(_curves(CONFIGS / "labeling" / "quick.yaml").cells()) <= set(cells)


def test_the_report_says_what_the_runs_give(tmp_path: Path, short: Path) -> None:
    curves = _curves(short)
    results = labeling.Results(tmp_path / "labeling")
    expected = {"csb-vae: random": (0.3, 0.4, 0.5), "csb-vae: dh-aps": (0.3, 0.5, 0.6)}
    for cell in curves.cells():
        if cell.method in expected and (cell.dataset, cell.bits) == ("web_snippets", 16):
            offset = 0.01 * (cell.seed == 144) - 0.01 * (cell.seed == 20)
            points = [
                {"level": level, "precision": value + offset, "mean_average_precision": value / 2}
                for level, value in zip(LEVELS, expected[cell.method], strict=True)
            ]
            found = {"points": points, "rows": 100, "queries": 10, "epochs": None}
            results.append(cell, curves.fingerprint(cell), found)
    arguments = ["--report", "--output", str(tmp_path), "--plan", str(short)]
    assert labeling.main(arguments) == 0
    report = json.loads((tmp_path / "labeling-web_snippets.json").read_text())
    rows = {row["method"]: row for row in report["rows"]}
    for method, values in expected.items():
        assert [rows[method][f"P@100, {level:.0%}"] for level in LEVELS] == pytest.approx(values)
        assert rows[method]["spread"] == pytest.approx(np.std([-0.01, 0, 0.01]))
    assert rows["csb-vae: random"]["labels for random's 10%"] == "10.0%"
    assert rows["csb-vae: dh-aps"]["labels for random's 10%"] == f"{np.sqrt(0.01 * 0.1):.1%}"
    assert (tmp_path / "labeling" / "web_snippets-csb-vae-16-bits.png").stat().st_size > 1000
