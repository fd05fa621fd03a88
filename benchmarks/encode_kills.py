"""One encoding, killed again and again, and the code set that it ends with.

A Ray cluster of three raylets on this machine: one for the driver, without CPUs, and one for each of two encoders.
Driver, encoder and raylet are killed with SIGKILL, each at a random moment after another task was done. A driver is
then started again with the same command, a raylet replaced by a new one. The code set has to be that of a run that
nobody disturbed, byte for byte.

    python -m benchmarks.encode_kills [--quick] [--kills N] [--seed N]
"""

from __future__ import annotations

import collections
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ray.cluster_utils import Cluster

from benchmarks.reporting import Benchmark
from distindex.codeset import CodeSet
from distindex.config import FeaturesConfig
from distindex.corpus.features import fit_features
from distindex.hashing.classic import fit_lsh
from distindex.progress import say
from distindex.runtime import prepare_environment

TARGETS = ("driver", "encoder", "raylet")
ROWS, ROW_GROUP, WIDTH, BITS = 40_000, 1000, 32, 64
# Tasks that are done between two kills, on average: at most so many, or the run ends too early.
TASKS_PER_KILL = 20
# Small batches make a task last long enough to be killed in its middle.
BATCH_ROWS = 8
# A raylet that was killed is noticed in 2 s instead of 20.
CLUSTER_SETTINGS = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}


def write_corpus(directory: Path, tasks: int) -> None:
    """`tasks` row groups, each larger than the `task_mib` of the runs."""
    directory.mkdir()
    random_numbers = np.random.default_rng(0)
    rows = tasks * ROW_GROUP
    for number, first in enumerate(range(0, rows, ROWS)):
        count = min(ROWS, rows - first)
        x_NV = random_numbers.standard_normal((count, WIDTH)).astype(np.float32)
        vector = pa.FixedSizeListArray.from_arrays(pa.array(x_NV.ravel()), WIDTH)
        table = pa.table({"id": np.arange(first, first + count), "vector": vector})
        pq.write_table(table, directory / f"{number:04d}.parquet", row_group_size=ROW_GROUP)


def write_hasher(uri: Path) -> None:
    column = pa.array(list(np.random.default_rng(1).standard_normal((100, WIDTH))))
    features = fit_features(FeaturesConfig(), "dense", [column])
    fit_lsh(features, features.transform(column), "vector", BITS).save(str(uri))


class Killed:
    """An encoding of `root/corpus` into `output` that goes on whatever is killed.

    Args:
        cluster: with a raylet for each of two encoders.
        root: where corpus and hasher are.
        output: of the code set.
        seed: of what is killed when.

    Attributes:
        starts: how often the driver was started.
        kills: what was killed, and how many tasks were done then.
    """

    def __init__(self, cluster: Cluster, root: Path, output: Path, seed: int) -> None:
        self.root, self.output, self.starts = root, output, 0
        self.kills: list[tuple[str, int]] = []
        self._random = random.Random(seed)
        self._cluster = cluster
        self._driver = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        arguments = [
            *(sys.executable, "-m", "distindex.cli", "encode", f"--corpus.uri={self.root / 'corpus'}"),
            *("--corpus.feature_column=vector", f"--hasher={self.root / 'hasher'}", f"--output={self.output}"),
            *(f"--batch_rows={BATCH_ROWS}", "--task_mib=0.01", "--workers.count=2", "--workers.cpus=1"),
        ]
        with open(self.root / f"driver-{self.output.name}.log", "ab") as log:
            environment = {**os.environ, "RAY_ADDRESS": str(self._cluster.address)}
            return subprocess.Popen(arguments, stderr=log, stdout=log, env=environment)

    def done(self) -> int:
        return len(list(self.output.glob("_progress/part-*.json")))

    def kill(self, target: str) -> None:
        """Kill one, when another task is done and some moments have passed."""
        seen = self.done()
        while self.done() <= seen:
            if self._driver.poll() == 0:
                raise SystemExit(f"the run ended after {len(self.kills)} kills; more tasks are needed")
            if self._driver.returncode is not None:
                self._driver = self._start()
            time.sleep(0.01)
        time.sleep(self._random.uniform(0, 0.4))
        if target == "encoder":
            while not (encoders := processes_below(os.getpid(), "EncoderActor")):
                time.sleep(0.01)
            os.kill(self._random.choice(encoders), signal.SIGKILL)
        elif target == "raylet":
            node = self._random.choice(list(self._cluster.worker_nodes))
            os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
            self._cluster.add_node(num_cpus=1)
            self._cluster.remove_node(node, allow_graceful=False)
        else:
            self._driver.kill()
            self._driver.wait()
        self.kills.append((target, self.done()))
        say(f"kill {len(self.kills)}: the {target}, {self.done()} tasks done")
        if target == "driver":
            self._driver = self._start()

    def finish(self) -> None:
        """Wait for the end; a driver that fails is started again, as its user would do."""
        failures = 0
        while self._driver.wait() != 0:
            failures += 1
            if failures > 3:
                log = (self.root / f"driver-{self.output.name}.log").read_text(errors="replace")
                raise SystemExit(f"the run does not end well:\n{log[-2000:]}")
            self._driver = self._start()

    def close(self) -> None:
        if self._driver.poll() is None:
            self._driver.kill()
            self._driver.wait()


def _processes() -> list[tuple[int, int, str]]:
    """Of every process: its id, its parent's, and its command line."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    found = [line.split(None, 2) for line in listing.splitlines()]
    return [(int(each[0]), int(each[1]), each[2] if len(each) > 2 else "") for each in found]


def descendants_of(ancestor: int) -> list[int]:
    """Ids of all processes below one."""
    parent_of = {process: parent for process, parent, _ in _processes()}

    def is_below(process: int) -> bool:
        while process in parent_of:
            process = parent_of[process]
            if process == ancestor:
                return True
        return False

    return [process for process in parent_of if is_below(process)]


def processes_below(ancestor: int, words: str) -> list[int]:
    """Ids of Ray's workers below a process that have these words in their command line."""
    named = {process for process, _, command in _processes() if words in command and command.startswith("ray::")}
    return [process for process in descendants_of(ancestor) if process in named]


def differences(output: Path, expected: Path) -> list[str]:
    """Names of files that are not the same in two code sets, and fields of their manifests."""
    names = {path.name for directory in (output, expected) for path in directory.iterdir()}
    differing = [
        name
        for name in sorted(names - {"manifest.json", "report.json"})
        if not ((output / name).is_file() and (expected / name).is_file())
        or (output / name).read_bytes() != (expected / name).read_bytes()
    ]
    ours, theirs = (CodeSet.open(str(directory)).manifest for directory in (output, expected))
    fields = ("files", "rejected_files", "sources", "ids", "rows", "rejected", "fingerprint", "inputs")
    return differing + [field for field in fields if getattr(ours, field) != getattr(theirs, field)]


def main() -> int:
    benchmark = Benchmark("encode_kills", "An encoding whose driver, encoders and raylets are killed with SIGKILL")
    benchmark.parser.add_argument("--kills", type=int, help="how many (default: 20, with --quick 3)")
    benchmark.parser.add_argument("--seed", type=int, default=0, help="of what is killed when (default: 0)")
    options = benchmark.parse()
    prepare_environment()
    kills = options.kills or (3 if options.quick else 20)
    targets = [TARGETS[number % len(TARGETS)] for number in range(kills)]
    random.Random(options.seed).shuffle(targets)
    tasks = TASKS_PER_KILL * (kills + 1)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        write_corpus(root / "corpus", tasks)
        write_hasher(root / "hasher")
        seconds: dict[str, float] = {}
        runs: dict[str, Killed] = {}
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": CLUSTER_SETTINGS})
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=1)
            for name, chosen in (("undisturbed", []), ("killed", targets)):
                began = time.monotonic()
                run = runs[name] = Killed(cluster, root, root / name, options.seed)
                try:
                    for target in chosen:
                        run.kill(target)
                    run.finish()
                finally:
                    run.close()
                seconds[name] = time.monotonic() - began
        finally:
            cluster.shutdown()
        differing = differences(root / "killed", root / "undisturbed")
        if differing:
            raise SystemExit(f"not the same after {kills} kills: {', '.join(differing[:5])}")
    run = runs["killed"]
    rows: list[dict[str, Any]] = [
        {"kill": number, "what": what, "tasks done": done} for number, (what, done) in enumerate(run.kills, start=1)
    ]
    counted = collections.Counter(what for what, _ in run.kills)
    figures = {
        "kills": dict(sorted(counted.items())),
        "starts of the driver": run.starts,
        "seconds": seconds["killed"],
    }
    notes = [
        f"{tasks} tasks of {ROW_GROUP:,} rows, 2 encoders on a raylet each; {kills} kills, seed {options.seed}; the "
        f"driver was started {run.starts} times",
        f"every part and what the manifest says of it are byte for byte those of an undisturbed run; "
        f"{seconds['killed']:.0f} s instead of {seconds['undisturbed']:.0f} s",
    ]
    benchmark.report(rows, figures, {"seconds": round(seconds["undisturbed"], 1)}, notes=notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
