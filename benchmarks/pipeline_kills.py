"""jobs/pipeline.py on three raylets, a node killed in each of its stages: the same index as of an undisturbed run.

A Ray cluster on this machine: a head without CPUs, which takes jobs, and two nodes with two CPUs each. The job is
submitted as with `ray job submit`. In each stage the raylet of one of the two nodes is killed with SIGKILL, and a new
node joins, as an autoscaler would do.

    python -m benchmarks.pipeline_kills [--quick] [--seed N]
"""

from __future__ import annotations

import os
import random
import shlex
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from ray.cluster_utils import Cluster
from ray.job_submission import JobStatus, JobSubmissionClient

from benchmarks.encode_kills import CLUSTER_SETTINGS
from benchmarks.reporting import ROOT, Benchmark
from distindex.index.manifest import read_manifest
from distindex.progress import say
from distindex.quickstart.data import write_digits
from distindex.runtime import prepare_environment
from distindex.storage import Storage

STAGES = ("train", "encode", "build", "evaluate")
FILES = 40
TIMEOUT_S = 600.0


def write_corpus(root: Path) -> None:
    """The digits, in so many files that encoding takes long enough to be hit in its middle."""
    write_digits(Storage(str(root / "digits")))
    table = pq.read_table(root / "digits" / "corpus.parquet")
    (root / "corpus").mkdir()
    size = -(-table.num_rows // FILES)
    for number in range(FILES):
        pq.write_table(table.slice(number * size, size), root / "corpus" / f"{number:03d}.parquet")


class Pipeline:
    """A run of the job on a cluster of its own.

    Attributes:
        kills: the stages in which a node was killed, with the seconds since the job's start.
        seconds: what the job took.
    """

    def __init__(self, root: Path, output: Path, epochs: int, seed: int) -> None:
        self.output, self.kills, self.seconds = output, list[tuple[str, float]](), 0.0
        self._random = random.Random(seed)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": port, "_system_config": CLUSTER_SETTINGS}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes = [self._cluster.add_node(num_cpus=2) for _ in range(2)]
        self._client = JobSubmissionClient(f"http://127.0.0.1:{port}")
        command = [
            *(
                sys.executable,
                "jobs/pipeline.py",
                f"--corpus.uri={root / 'corpus'}",
                "--corpus.feature_column=pixels",
            ),
            *(
                "--corpus.label_column=label",
                f"--queries={root / 'digits' / 'queries.parquet'}",
                f"--output={output}",
            ),
            *("--labels.fraction=0.1", f"--optimization.epochs={epochs}", "--optimization.checkpoint_seconds=0"),
            *("--workers.count=2", "--workers.cpus=1", "--encoders.count=2", "--encoders.cpus=1", "--shards=4"),
        ]
        self._began = time.monotonic()
        self._job = self._client.submit_job(entrypoint=shlex.join(command), runtime_env={"working_dir": str(ROOT)})

    def kill(self, stage: str) -> None:
        """Kill a node when the stage has begun to leave something behind."""
        signs: dict[str, Callable[[], bool]] = {
            "train": lambda: len(list(self.output.glob("hasher/training/checkpoint_*"))) > 1,
            "encode": lambda: len(list(self.output.glob("codes/_progress/part-*.json"))) > 2,
            "build": lambda: (self.output / "index").exists(),
            "evaluate": lambda: f"of 4: {stage}" in self._log(),
        }
        self._wait(signs[stage])
        node = self._nodes.pop(self._random.randrange(len(self._nodes)))
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        self._nodes.append(self._cluster.add_node(num_cpus=2))
        self._cluster.remove_node(node, allow_graceful=False)
        self.kills.append((stage, time.monotonic() - self._began))
        say(f"killed a node in {stage} after {self.kills[-1][1]:.1f} s")

    def finish(self) -> None:
        self._wait(lambda: self._client.get_job_status(self._job).is_terminal())
        self.seconds = time.monotonic() - self._began
        if self._client.get_job_status(self._job) != JobStatus.SUCCEEDED:
            raise SystemExit(f"the job does not end well:\n{self._log()[-3000:]}")

    def close(self) -> None:
        self._cluster.shutdown()

    def _log(self) -> str:
        return self._client.get_job_logs(self._job)

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline or self._client.get_job_status(self._job) == JobStatus.FAILED:
                raise SystemExit(f"the job does not go on:\n{self._log()[-3000:]}")
            time.sleep(0.02)


def content(output: Path) -> dict[str, Any]:
    """What two runs must have in common: the shards by their sha256, the weights, the figures."""
    manifest = read_manifest(Storage(str(output / "index")))
    methods = Storage(str(output / "evaluation")).read_json("metrics.json")["methods"]
    return {
        "shards": [(shard.sha256, shard.rows, shard.distinct) for shard in manifest.shards],
        "weights": (output / "hasher" / "weights.safetensors").read_bytes(),
        "codes": sorted(path.name for path in (output / "codes").glob("part-*.parquet")),
        "evaluation": [method | {"milliseconds_per_query": None} for method in methods],
    }


def main() -> int:
    benchmark = Benchmark("pipeline_kills", "The pipeline job with a node killed in each of its stages")
    benchmark.parser.add_argument("--seed", type=int, default=0, help="of which node is killed (default: 0)")
    options = benchmark.parse()
    prepare_environment()
    epochs = 5 if options.quick else 30
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        write_corpus(root)
        runs: dict[str, Pipeline] = {}
        for name, stages in (("undisturbed", ()), ("killed", STAGES)):
            run = runs[name] = Pipeline(root, root / name, epochs, options.seed)
            try:
                for stage in stages:
                    run.kill(stage)
                run.finish()
            finally:
                run.close()
        found, expected = (content(root / name) for name in ("killed", "undisturbed"))
    differing = [name for name in expected if found[name] != expected[name]]
    if differing:
        raise SystemExit(f"not the same after a node was killed in each stage: {', '.join(differing)}")
    rows = [{"stage": stage, "killed after s": round(after, 1)} for stage, after in runs["killed"].kills]
    benchmark.report(
        rows,
        figures={"kills": len(rows), "seconds": round(runs["killed"].seconds, 1)},
        baselines={"seconds": round(runs["undisturbed"].seconds, 1)},
        notes=[
            "A head without CPUs and two nodes with two each, on one machine; the raylet of a node is killed with "
            "SIGKILL, and a new node joins. The job was submitted once.",
            "The shards by their sha256, the hasher's weights, the names of the parts, which hold their content's "
            "fingerprint, and the figures of the evaluation are those of the undisturbed run.",
        ],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
