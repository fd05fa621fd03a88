"""What all benchmarks share: their arguments, and how their figures are printed and kept."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distindex.errors import InputError
from distindex.evaluation.table import format_table
from distindex.storage import Storage

FORMAT_VERSION = 1
ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("distindex", "ray", "faiss-cpu", "faiss-gpu", "torch", "numpy", "pyarrow", "scikit-learn")


class Benchmark:
    """One benchmark, run as `python -m benchmarks.NAME`: parse its arguments, measure, then `report`.

        benchmark = Benchmark("search", "Exact Hamming search against faiss IndexBinaryFlat.")
        arguments = benchmark.parse()
        ...
        benchmark.report(rows, figures={"speedup": 2.1}, baselines={"IndexBinaryFlat": 1.0})

    Args:
        name: name of its result files.
        description: what it measures, in one sentence.
    """

    def __init__(self, name: str, description: str) -> None:
        self.name, self.description = name, description
        self.parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
        self.parser.add_argument("--quick", action="store_true", help="a small run, under a minute on 2 cores")
        self.parser.add_argument(
            "--output",
            default=str(ROOT / "benchmarks" / "results"),
            help="directory or URI of the result files (default: benchmarks/results)",
        )
        self._argv: Sequence[str] = ()
        self._arguments: argparse.Namespace | None = None

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse the command line; add arguments to `parser` first."""
        self._argv = sys.argv[1:] if argv is None else argv
        self._arguments = self.parser.parse_args(self._argv)
        return self._arguments

    def report(
        self,
        rows: Sequence[Mapping[str, Any]],
        figures: Mapping[str, Any],
        baselines: Mapping[str, Any],
        notes: Sequence[str] = (),
        result: str | None = None,
    ) -> list[str]:
        """Print the table and, as the last line, the figures in JSON; write both to the output.

        Returns the names of the files in the output.

        Args:
            rows: the table.
            figures: what was measured, by name; numbers of numpy are fine.
            baselines: what the figures are to be held against, by the same names where they compare.
            notes: sentences below the table: conditions, what the figures do not say.
            result: name of the result files, for a benchmark that has several; default: the benchmark's.

        Raises:
            InputError: `parse` was not called, there are no rows or figures, or a figure is not a finite
                number, a text, or a list or mapping of them.
        """
        if self._arguments is None:
            raise InputError(f"benchmark {self.name}: call parse() before report()")
        if not rows or not figures:
            raise InputError(f"benchmark {self.name}: nothing was measured")
        quick = self._arguments.quick
        name = result or self.name
        measured = {
            "format_version": FORMAT_VERSION,
            "benchmark": name,
            "quick": quick,
            "figures": plain(figures, "figures"),
            "baselines": plain(baselines, "baselines"),
        }
        context = {
            "command": command_line(self.name, self._argv),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **commit(),
            "machine": machine(),
        }
        details = {"description": self.description, "rows": plain(rows, "rows"), "notes": list(notes)}
        output = Storage(self._arguments.output)
        stem = f"{name}-quick" if quick else name
        output.write_json(f"{stem}.json", {**measured, **details, **context})
        output.write_bytes(f"{stem}.md", self._markdown(name, rows, notes, context).encode())
        print(format_table(rows))
        for note in notes:
            print(note)
        print(json.dumps(measured), flush=True)
        return [f"{stem}.json", f"{stem}.md"]

    def _markdown(
        self, name: str, rows: Sequence[Mapping[str, Any]], notes: Sequence[str], context: Mapping[str, Any]
    ) -> str:
        machine_text = "{cpu}, {cores} cores, {memory_gib} GiB, Python {python}".format(**context["machine"])
        packages = ", ".join(f"{name} {version}" for name, version in context["machine"]["packages"].items())
        dirty = " with uncommitted changes" if context["dirty"] else ""
        parts = [
            f"# {name}",
            self.description,
            format_table(rows, style="markdown"),
            *notes,
            f"`{context['command']}` at {context['commit']}{dirty}, {context['created']}",
            f"{machine_text}; {packages}",
        ]
        return "\n\n".join(parts) + "\n"


def plain(value: Any, where: str) -> Any:
    """A value as JSON knows it, keys as texts and numpy's numbers as Python's.

    Raises:
        InputError: a number is NaN or infinite, or the type has no place in JSON.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), where)
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{position}]") for position, item in enumerate(value)]
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise InputError(f"{where}: {value!r} cannot be reported; give a finite number, a text or a list of them")


def command_line(name: str, argv: Sequence[str]) -> str:
    """The command as anyone can repeat it: paths of this machine are cut to what lies below the repository.

    A path elsewhere keeps only its last name.
    """

    def portable(word: str) -> str:
        option, equals, path = word.rpartition("=")
        if not Path(path).is_absolute():
            return word
        inside = Path(path).is_relative_to(ROOT)
        return option + equals + (str(Path(path).relative_to(ROOT)) if inside else f".../{Path(path).name}")

    return " ".join(["python", "-m", f"benchmarks.{name}", *map(portable, argv)])


def commit() -> dict[str, Any]:
    """The commit that was measured, and whether the tree differs from it (results aside)."""
    return {
        "commit": _git("rev-parse", "--short=12", "HEAD") or "unknown",
        "dirty": bool(_git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")),
    }


def machine() -> dict[str, Any]:
    """What the figures depend on: CPU model, usable cores, memory in GiB, versions."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": packages,
    }


def _cpu_model() -> str:
    # Not through Storage: fsspec cannot open the kernel's files, which have no size.
    kernel = Path("/proc/cpuinfo")
    lines = kernel.read_text(errors="replace").splitlines() if kernel.exists() else []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    try:
        found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()
