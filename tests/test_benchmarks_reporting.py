"""What every benchmark prints and keeps."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import reporting
from benchmarks.reporting import ROOT, Benchmark, command_line, commit, plain
from distindex.errors import InputError

ROWS = [{"method": "ours", "P@100": 0.75}, {"method": "theirs", "P@100": 0.5}]

CASES: dict[str, tuple[list[str], str]] = {
    "full": ([], "sample"),
    "quick": (["--quick"], "sample-quick"),
}


@pytest.mark.parametrize("case", CASES)
def test_report_prints_one_line_of_json_last_and_keeps_both_files(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, stem = CASES[case]
    benchmark = Benchmark("sample", "A sample of quality.")
    benchmark.parse([*options, "--output", str(tmp_path)])
    benchmark.report(ROWS, {"P@100": np.float32(0.75), "ks": {10: np.int64(3)}}, {"P@100": 0.5}, ["On one machine."])
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert result == {
        "format_version": 1,
        "benchmark": "sample",
        "quick": bool(options),
        "figures": {"P@100": 0.75, "ks": {"10": 3}},
        "baselines": {"P@100": 0.5},
    }
    assert lines[0].split() == ["method", "P@100"]
    assert lines[-2] == "On one machine."

    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{stem}.json", f"{stem}.md"]
    kept = json.loads((tmp_path / f"{stem}.json").read_text())
    assert {name: kept[name] for name in result} == result
    assert kept["rows"] == ROWS
    assert kept["notes"] == ["On one machine."]
    assert kept["commit"]
    assert isinstance(kept["dirty"], bool)
    assert kept["machine"]["cores"] >= 1
    assert kept["machine"]["memory_gib"] >= 1
    assert kept["machine"]["packages"]["numpy"] == np.__version__
    text = (tmp_path / f"{stem}.md").read_text()
    assert "| method |  P@100 |" in text
    assert "A sample of quality." in text
    for kept_file in tmp_path.iterdir():
        assert str(tmp_path.parent) not in kept_file.read_text()
        assert str(ROOT) not in kept_file.read_text()


COMMANDS: list[tuple[list[str], str]] = [
    ([], "python -m benchmarks.sample"),
    (["--quick", "--rows", "5"], "python -m benchmarks.sample --quick --rows 5"),
    (["--output", "relative/path"], "python -m benchmarks.sample --output relative/path"),
    (["--output", "s3://bucket/x"], "python -m benchmarks.sample --output s3://bucket/x"),
    (["--output", "/home/someone/results"], "python -m benchmarks.sample --output .../results"),
    (["--output=/home/someone/results"], "python -m benchmarks.sample --output=.../results"),
    (
        [f"--config={ROOT}/benchmarks/configs/a.yaml"],
        "python -m benchmarks.sample --config=benchmarks/configs/a.yaml",
    ),
]


@pytest.mark.parametrize(("argv", "expected"), COMMANDS)
def test_command_names_no_path_of_this_machine(argv: list[str], expected: str) -> None:
    assert command_line("sample", argv) == expected


REFUSED: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
    ([], {"a": 1}, "nothing was measured"),
    (ROWS, {}, "nothing was measured"),
    (ROWS, {"a": float("nan")}, "figures.a: nan cannot be reported"),
    (ROWS, {"a": [1, np.inf]}, r"figures.a\[1\]: inf cannot be reported"),
    (ROWS, {"a": {"b": object()}}, r"figures.a.b: .* cannot be reported"),
]


@pytest.mark.parametrize(("rows", "figures", "message"), REFUSED)
def test_bad_figures_are_refused_and_nothing_is_written(
    rows: list[dict[str, Any]], figures: dict[str, Any], message: str, tmp_path: Path
) -> None:
    benchmark = Benchmark("sample", "A sample.")
    benchmark.parse(["--output", str(tmp_path)])
    with pytest.raises(InputError, match=message):
        benchmark.report(rows, figures, {})
    assert not list(tmp_path.iterdir())


def test_report_needs_a_parsed_command_line() -> None:
    with pytest.raises(InputError, match=r"call parse\(\)"):
        Benchmark("sample", "A sample.").report(ROWS, {"a": 1}, {})


def test_arrays_become_lists() -> None:
    assert plain({"a": np.arange(3), 5: (np.float64(0.5), None, "x", True)}, "x") == {
        "a": [0, 1, 2],
        "5": [0.5, None, "x", True],
    }


def test_commit_is_that_of_the_tree_and_says_when_it_is_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Set while a git hook runs, they would turn the commands below against the real repository.
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(reporting, "ROOT", tmp_path)
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "first", "--no-verify")
    assert commit() == {"commit": git("rev-parse", "HEAD")[:12], "dirty": False}
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "sample.md").write_text("figures")
    assert commit()["dirty"] is False
    (tmp_path / "file").write_text("2")
    assert commit()["dirty"] is True
