"""Retrieval quality of every method on every data set.

    python -m benchmarks.quality --only dataset=web_snippets,labels=0.1,bits=16,seed=20
    python -m benchmarks.quality --list
    python -m benchmarks.quality --report

Finished runs are kept in benchmarks/results/quality and not run again. docs/quality.md describes the protocol.
"""

from __future__ import annotations

import argparse
import concurrent.futures.process
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.datasets import DATASETS
from benchmarks.quality.plan import Cell, Plan, chosen
from benchmarks.quality.report import overview, write_reports
from benchmarks.quality.runs import Runner
from benchmarks.quality.store import Results
from benchmarks.reporting import ROOT, Benchmark, commit
from distindex.errors import DistindexError, InputError
from distindex.evaluation.table import format_table
from distindex.runtime import prepare_environment
from distindex.storage import Storage

PLAN = ROOT / "benchmarks" / "configs" / "quality.yaml"
QUICK_PLAN = ROOT / "benchmarks" / "configs" / "quality-quick.yaml"

_runner: Runner | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "distindex" / "quality"
    parser.add_argument("--only", action="append", default=[], metavar="NAME=VALUE,...", help="a part of the runs")
    parser.add_argument("--list", action="store_true", help="show which runs are there, and stop")
    parser.add_argument("--report", action="store_true", help="write tables and curves of the runs that are there")
    parser.add_argument("--again", action="store_true", help="run what is there once more; the newest run counts")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time, of one thread each")
    parser.add_argument("--plan", type=Path, help="the YAML file of runs (default: benchmarks/configs/quality.yaml)")
    parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data", help="directory of the published data sets"
    )
    parser.add_argument("--work", type=Path, default=cache, help="directory that the prepared data sets are kept in")


def main(argv: Sequence[str] | None = None) -> int:
    benchmark = Benchmark("quality", "retrieval quality of learned codes")
    add_arguments(benchmark.parser)
    options = benchmark.parse(argv)
    prepare_environment()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            if options.quick:
                # Its runs are too short to stand beside the others.
                return _work(benchmark, options, QUICK_PLAN, Path(scratch))
            return _work(benchmark, options, options.plan or PLAN, None)
    except DistindexError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _work(benchmark: Benchmark, options: argparse.Namespace, path: Path, store: Path | None) -> int:
    plan = Plan(path)
    results = Results(store or Path(options.output) / plan.name)
    every = plan.cells()
    cells = chosen(every, options.only)
    there = results.read(plan, cells)
    if options.list:
        print(format_table(overview(plan, cells, there, results.outdated(plan, cells))))
        return 0
    failed = 0
    if not options.report:
        todo = _possible([cell for cell in cells if options.again or cell not in there], options.data)
        failed = _run(plan, todo, results, options)
    # A table holds all runs of its data set, whatever part of them was run just now.
    touched = {cell.dataset for cell in cells}
    there = results.read(plan, [cell for cell in every if cell.dataset in touched])
    if not there:
        print("skipped: no run is there to report")
        return int(failed > 0)
    for file in write_reports(benchmark, plan, there, Storage(options.output)):
        print(f"written: {file}", file=sys.stderr)
    return int(failed > 0)


def _possible(cells: Sequence[Cell], data: Path) -> list[Cell]:
    """Without the data sets that cannot be run here; says which and why."""
    left_out = {}
    for name in dict.fromkeys(cell.dataset for cell in cells):
        if not DATASETS[name].supported:
            left_out[name] = f"this release has no {DATASETS[name].kind} features"
        elif not (data / name).is_dir():
            left_out[name] = f"the data set is not there; name the directory above it with --data (now {data.name})"
    for name, reason in left_out.items():
        print(f"skipped: {name}: {reason}", flush=True)
    return [cell for cell in cells if cell.dataset not in left_out]


def _run(plan: Plan, cells: Sequence[Cell], results: Results, options: argparse.Namespace) -> int:
    """Run the cells and keep each result as it comes; returns how many failed."""
    made_at = commit()
    failed, started = 0, time.monotonic()
    for number, (cell, found) in enumerate(_results(plan, cells, options), 1):
        if isinstance(found, str):
            failed += 1
            print(f"failed: {cell}: {found}", file=sys.stderr, flush=True)
            continue
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        results.append(cell, plan.fingerprint(cell), {**found, **made_at, "created": stamp})
        left = (time.monotonic() - started) / number * (len(cells) - number)
        first = found["precision"][str(plan.cutoffs[0])]
        print(
            f"{number}/{len(cells)} {cell}: P@{plan.cutoffs[0]} {first:.4f}, "
            f"{found['train_seconds']:.1f} s training, {left / 60:.0f} min left",
            flush=True,
        )
    return failed


def _results(
    plan: Plan, cells: Sequence[Cell], options: argparse.Namespace
) -> Iterator[tuple[Cell, dict[str, Any] | str]]:
    """Each cell with what it gave, or in one line why it gave nothing."""
    places = (plan.path, options.data, options.work)
    if options.processes < 1:
        raise InputError(f"--processes {options.processes}: it takes at least one")
    if options.processes == 1:
        _start(*places)
        for cell in cells:
            yield cell, _run_cell(cell)
        return
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.processes, context, _start, places) as pool:
        waiting = {pool.submit(_run_cell, cell): cell for cell in cells}
        try:
            for done in concurrent.futures.as_completed(waiting):
                yield waiting[done], done.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise DistindexError(
                "a process was ended from outside, perhaps for lack of memory; start the command again, it goes on; "
                "--processes 1 takes less"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start(plan: Path, data: Path, work: Path) -> None:
    global _runner
    _runner = Runner(Plan(plan), data, work)


def _run_cell(cell: Cell) -> dict[str, Any] | str:
    if _runner is None:
        raise RuntimeError("_start comes first")
    try:
        return _runner.run(cell)
    except (DistindexError, ArithmeticError, ValueError, RuntimeError) as error:
        return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
