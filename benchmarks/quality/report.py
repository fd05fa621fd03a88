"""Tables and curves from the finished runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.quality.datasets import DATASETS, MOST_QUERIES, SAMPLED_QUERIES
from benchmarks.quality.plan import Cell, Plan
from benchmarks.reporting import Benchmark
from distindex.evaluation.plots import precision_over_labels_figure, save_figure
from distindex.storage import Storage

Runs = Mapping[Cell, Mapping[str, Any]]
Group = tuple[str, int | None, float | None]


def write_reports(benchmark: Benchmark, plan: Plan, runs: Runs, output: Storage) -> list[str]:
    """Print and write the table of each data set that has runs, and draw its curves; returns their files."""
    files = []
    for dataset in dict.fromkeys(cell.dataset for cell in runs):
        mine = {cell: run for cell, run in runs.items() if cell.dataset == dataset}
        rows = table(plan, dataset, mine)
        files += benchmark.report(rows, *_figures(rows), notes=_notes(plan, mine), result=f"{plan.name}/{dataset}")
        for path, figure in _curves(plan, dataset, rows).items():
            save_figure(figure, output, path)
            files.append(path)
    return files


def table(plan: Plan, dataset: str, runs: Runs) -> list[dict[str, Any]]:
    """A row per method, code length and share of labels: means over the seeds that are there."""
    groups: dict[Group, list[Mapping[str, Any]]] = {}
    for cell, run in runs.items():
        groups.setdefault((cell.method, cell.bits, cell.labels), []).append(run)
    order = list(plan.methods)
    keys = sorted(groups, key=lambda key: (key[1] or 0, order.index(key[0]), key[2] or 0.0))
    return [_row(plan, dataset, key, groups[key]) for key in keys]


def _row(plan: Plan, dataset: str, key: Group, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    method, bits, labels = key
    first = plan.cutoffs[0]
    precision = [run["precision"][str(first)] for run in runs]
    row: dict[str, Any] = {"method": method, "bits": bits, "labels": "none" if labels is None else f"{labels:.0%}"}
    row[f"P@{first}"] = float(np.mean(precision))
    row["spread"] = float(np.std(precision, ddof=1)) if len(runs) > 1 else None
    for k in plan.cutoffs[1:]:
        row[f"P@{k}"] = float(np.mean([run["precision"][str(k)] for run in runs]))
    for k in plan.cutoffs:
        row[f"mAP@{k}"] = float(np.mean([run["mean_average_precision"][str(k)] for run in runs]))
    for name, column in (("distinct", "distinct codes"), ("largest_bucket", "largest bucket")):
        row[column] = round(np.mean([run[name] for run in runs])) if name in runs[0] else None
    rescored = [run["rescored"]["precision"][str(first)] for run in runs if "rescored" in run]
    row[f"rescored P@{first}"] = float(np.mean(rescored)) if rescored else None
    row["reference code"] = plan.reference_code.get((dataset, method, bits, labels))
    expected = plan.expected.get((dataset, method, bits, labels))
    row["expected"] = f"{expected.precision:.3f} ± {expected.tolerance:.3f}" if expected else None
    row["met"] = expected.met(row[f"P@{first}"]) if expected else None
    row["seeds"] = len(runs)
    return row


def _figures(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """P@100 of every row by name, and the reference code's own under the same names."""
    precision = next(name for name in rows[0] if name.startswith("P@"))
    names = ["_".join(f"{row['method']} {row['bits'] or ''} {row['labels']}".split()) for row in rows]
    figures = {name: round(row[precision], 4) for name, row in zip(names, rows, strict=True)}
    known = {
        name: row["reference code"]
        for name, row in zip(names, rows, strict=True)
        if row["reference code"] is not None
    }
    return figures, known


def _notes(plan: Plan, runs: Runs) -> list[str]:
    some = next(iter(runs.values()))
    notes = [
        f"{some['queries']:,} queries in {some['rows']:,} rows; figures are expectations under random ties, means "
        "over the seeds; spread: standard deviation over the seeds (of label mask and training)."
    ]
    if plan.queries != "test":
        notes.append("The queries are training rows held out; test rows take no part.")
    elif some["queries"] == SAMPLED_QUERIES:
        notes.append(f"Test sets of more than {MOST_QUERIES:,} rows are sampled, with a fixed seed.")
    if any(key in plan.reference_code for key in ((c.dataset, c.method, c.bits, c.labels) for c in runs)):
        notes.append("reference code: P@100 that the authors' own code reached in measured runs, mean of its seeds.")
    commits = sorted({run["commit"] + " with uncommitted changes" * run["dirty"] for run in runs.values()})
    return [*notes, f"Runs made at {', '.join(commits)}."]


def _curves(plan: Plan, dataset: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One figure per code length that has a method with several shares of labels."""
    precision = next(name for name in rows[0] if name.startswith("P@"))
    figures = {}
    for bits in sorted({row["bits"] for row in rows if row["bits"]}):
        curves: dict[str, dict[float, tuple[float, float]]] = {}
        levels: dict[str, float] = {}
        for row in rows:
            if row["bits"] not in (bits, None):
                continue
            if row["labels"] == "none":
                levels[row["method"]] = row[precision]
            else:
                share = float(row["labels"].rstrip("%")) / 100
                curves.setdefault(row["method"], {})[share] = (row[precision], row["spread"] or 0.0)
        if any(len(curve) > 1 for curve in curves.values()):
            title = f"{dataset}, {bits} bits"
            path = f"{plan.name}/{dataset}-{bits}-bits.png"
            figures[path] = precision_over_labels_figure(curves, levels, int(precision[2:]), title)
    return figures


def overview(plan: Plan, cells: Sequence[Cell], runs: Runs, outdated: set[Cell]) -> list[dict[str, Any]]:
    """What is there and what is missing: a row per data set and method."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for cell in cells:
        row = rows.setdefault(
            (cell.dataset, cell.method),
            {"data set": cell.dataset, "method": cell.method, "runs": 0, "there": 0, "missing": 0, "outdated": 0},
        )
        row["runs"] += 1
        row["there"] += cell in runs
        row["missing"] += cell not in runs
        row["outdated"] += cell in outdated
        row["note"] = None if DATASETS[cell.dataset].supported else f"no {DATASETS[cell.dataset].kind} features yet"
    return list(rows.values())
