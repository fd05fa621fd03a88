"""A service on three nodes whose processes are killed with SIGKILL while it is asked: what fails, and for how long.

    python -m benchmarks.chaos [--quick] [--rows 100000] [--rounds 1] [--rate 24] [--seed 0]

Three raylets on this machine, two shards with two replicas each, a process that listens on each node, two encoders.
Requests come from a process of their own at fixed times. Each answer is compared, row by row, with one that numpy
found. The baseline is the same load with nothing killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray import serve as ray_serve
from ray.cluster_utils import Cluster
from ray.exceptions import RayError
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

from benchmarks.chaos_load import WAYS, Asked, K, Question, SteadyLoad
from benchmarks.encode_kills import descendants_of
from benchmarks.reporting import Benchmark
from benchmarks.serve_peers import free_port
from distindex.codes import CodeArray, to_hex
from distindex.progress import say

BITS, QUERIES, SHARDS, REPLICAS = 64, 60, 2, 2
HANGING = "hanging shard replica"
TARGETS = ("shard replica", HANGING, "listening replica", "encoder", "deployer", "Serve controller", "node")
QUICK_TARGETS = ("shard replica", "listening replica", "encoder")
HEALTHY_TIMEOUT_S = 240.0
# A node that is lost comes back after so long, as an autoscaler would bring another one.
AWAY_S = 10.0
# So long a replica that hangs is stopped: less than Serve takes to give it up.
HANGING_S = 15.0
# What was asked before a replica was healthy again may be answered after it.
SETTLED_S = 3.0


@dataclasses.dataclass(frozen=True)
class Replica:
    """A process of the service, as Serve knows it; the controller has no deployment and may be on any node."""

    deployment: str
    pid: int
    node: str

    @property
    def target(self) -> str:
        """Which of `TARGETS` it is."""
        if self.deployment.startswith("shard-"):
            return "shard replica"
        return {"http": "listening replica", "": "Serve controller"}.get(self.deployment, self.deployment)


class Fleet:
    """Raylets on this machine, and the service on them."""

    def __init__(self, nodes: int) -> None:
        self._settings: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 200 << 20}
        self._cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **self._settings})
        self._nodes = [self._cluster.add_node(**self._settings) for _ in range(nodes - 1)]
        self._cluster.wait_for_nodes()
        os.environ["RAY_ADDRESS"] = str(self._cluster.address)

    def close(self) -> None:
        del os.environ["RAY_ADDRESS"]
        ray.shutdown()
        self._cluster.shutdown()

    def replicas(self) -> list[Replica] | None:
        """Those that run; None while something else is wanted than there is."""
        try:
            controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
            process, details = ray.get(
                [controller.get_pid.remote(), controller.get_serve_instance_details.remote()], timeout=30
            )
        except (RayError, ValueError):
            return None
        found = [Replica("", process, "")]
        for about in details["applications"].values():
            for name, deployment in about["deployments"].items():
                running = [replica for replica in deployment["replicas"] if replica["state"] == "RUNNING"]
                if deployment["status"] != "HEALTHY" or len(running) != deployment["target_num_replicas"]:
                    return None
                if len(running) != len(deployment["replicas"]):
                    return None
                found += [Replica(name, one["pid"], one["node_id"]) for one in running]
        return found

    def wait_until_healthy(self, killed: set[int]) -> list[Replica]:
        """The replicas, when all that are wanted run and none is one of the processes killed."""
        deadline = time.monotonic() + HEALTHY_TIMEOUT_S
        while time.monotonic() < deadline:
            replicas = self.replicas()
            if replicas is not None and not killed & {replica.pid for replica in replicas}:
                return replicas
            time.sleep(0.1)
        raise SystemExit(f"not healthy {HEALTHY_TIMEOUT_S:.0f} s after a kill: {ray_serve.status()}")

    def kill(self, target: str, replicas: Sequence[Replica], chance: random.Random) -> set[int]:
        """Kill one process of the service, or a node with all of its own; returns their ids.

        One that is to hang is stopped, and not killed.
        """
        if target == "node":
            node = chance.choice(self._nodes)
            raylet = node.all_processes["raylet"][0].process.pid
            killed = {raylet, *descendants_of(raylet)}
        else:
            node = None
            kind = "shard replica" if target == HANGING else target
            killed = {chance.choice([replica.pid for replica in replicas if replica.target == kind])}
        for process in killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGSTOP if target == HANGING else signal.SIGKILL)
        if node is not None:
            self._nodes.remove(node)
            # Ends what is beside the raylet and tells nobody.
            self._cluster.remove_node(node, allow_graceful=False)
        return killed

    def add_node(self) -> None:
        self._nodes.append(self._cluster.add_node(**self._settings))


@contextlib.contextmanager
def fleet(nodes: int) -> Iterator[Fleet]:
    made = Fleet(nodes)
    try:
        yield made
    finally:
        made.close()


def numpy_answers(code_NC: CodeArray, query_QC: CodeArray) -> list[list[tuple[int, int]]]:
    """The K nearest by (distance, code, id), with ids that are the rows' numbers; no code of distindex."""
    number_N = code_NC.copy().view(">u8")[:, 0]
    answers = []
    for query_C in query_QC:
        distance_N = np.bitwise_count(code_NC ^ query_C).sum(axis=1)
        nearest = np.lexsort((np.arange(len(code_NC)), number_N, distance_N))[:K]
        answers.append([(int(distance_N[row]), int(row)) for row in nearest])
    return answers


def make_index(directory: str, rows: int, seed: int) -> list[Question]:
    """An index and a hasher of texts; returns what is asked, every other time by a text."""
    from distindex.config import FeaturesConfig
    from distindex.corpus.features import fit_features
    from distindex.hashing.classic import fit_lsh
    from distindex.index.index import Index

    chance = np.random.default_rng(seed)
    words = [f"word{number}" for number in range(200)]
    texts = [" ".join(chance.choice(words, 8)) for _ in range(QUERIES)]
    column = pa.array(texts)
    features = fit_features(FeaturesConfig(kind="text"), "text", [column])
    hasher = fit_lsh(features, features.transform(column), "text", BITS)
    hasher.save(f"{directory}/hasher")
    code_NC = chance.integers(0, 256, (rows, BITS // 8), np.uint8)
    named = {"uri": f"{directory}/hasher", "fingerprint": hasher.fingerprint}
    Index.create(f"{directory}/index", code_NC, np.arange(rows), shards=SHARDS, hasher=named).close()
    query_QC = chance.integers(0, 256, (QUERIES, BITS // 8), np.uint8)
    by_code = zip(to_hex(query_QC), numpy_answers(code_NC, query_QC), strict=True)
    by_text = zip(texts, numpy_answers(code_NC, hasher.encode(column)), strict=True)
    questions = []
    for (code, of_code), (text, of_text) in zip(by_code, by_text, strict=True):
        questions += [Question("codes", code, of_code), Question("texts", text, of_text)]
    return questions


@dataclasses.dataclass(frozen=True)
class Blow:
    """A span of the run: from a kill until everything was healthy again and had settled.

    Attributes:
        target: what was killed.
        began: when, in seconds of the system's monotonic clock.
        healthy: when every replica that is wanted ran again.
        ended: the end of the span.
    """

    target: str
    began: float
    healthy: float
    ended: float

    def row(self, done: Sequence[Asked]) -> dict[str, Any]:
        """What became of the requests of the span: those that ended in it, since a kill hits what is at work."""
        mine = [asked for asked in done if self.began <= asked.ended < self.ended]
        answered = sorted(asked.ended for asked in mine if not asked.failure)
        gaps = np.diff([self.began, *answered])
        row: dict[str, Any] = {
            "killed": self.target,
            "requests": len(mine),
            "wrong": sum(asked.wrong for asked in mine),
        }
        for way in WAYS:
            row[f"failed, {way}"] = sum(bool(asked.failure) for asked in mine if asked.way == way)
        for way in WAYS:
            row[f"longest s, {way}"] = longest([asked for asked in mine if asked.way == way])
        return row | {"longest gap s": float(gaps.max()), "healthy after s": self.healthy - self.began}


def longest(done: Sequence[Asked]) -> float:
    """Seconds that the slowest of these requests took, failed or not."""
    return max((asked.ended - asked.due for asked in done), default=0.0)


def strike(service_fleet: Fleet, targets: Sequence[str], chance: random.Random) -> list[Blow]:
    """Kill one after another, each when everything is healthy."""
    replicas, blows = service_fleet.wait_until_healthy(set()), []
    for target in targets:
        began = time.monotonic()
        killed = service_fleet.kill(target, replicas, chance)
        if target == "node":
            time.sleep(AWAY_S)
            service_fleet.add_node()
        elif target == HANGING:
            time.sleep(HANGING_S)
            os.kill(killed.pop(), signal.SIGCONT)
        replicas = service_fleet.wait_until_healthy(killed)
        healthy = time.monotonic()
        time.sleep(SETTLED_S)
        blows.append(Blow(target, began, healthy, time.monotonic()))
        say(f"{target}: healthy after {healthy - began:.1f} s")
    return blows


def placed(replicas: Sequence[Replica]) -> dict[str, list[int]]:
    """How many replicas of each deployment are on each node."""
    nodes = sorted({replica.node for replica in replicas if replica.node})
    deployments = sorted({replica.deployment for replica in replicas if replica.deployment})
    return {
        name: [sum((one.deployment, one.node) == (name, node) for one in replicas) for node in nodes]
        for name in deployments
    }


def main() -> int:
    benchmark = Benchmark("chaos", "A service on three nodes whose processes are killed while it is asked")
    benchmark.parser.add_argument("--rows", type=int, default=100_000, help="codes in the index")
    benchmark.parser.add_argument("--rounds", type=int, default=1, help="how often each is killed")
    benchmark.parser.add_argument("--rate", type=float, default=24.0, help="requests a second")
    benchmark.parser.add_argument("--seed", type=int, default=0, help="of which replica and node is killed")
    options = benchmark.parse()
    rows, nodes, quiet_s = (10_000, 2, 2.0) if options.quick else (options.rows, 3, 15.0)
    targets = QUICK_TARGETS if options.quick else TARGETS * options.rounds

    from distindex.runtime import prepare_environment
    from distindex.serve_config import ServeConfig
    from distindex.serving.service import serve

    prepare_environment()
    with tempfile.TemporaryDirectory() as directory, fleet(nodes) as service_fleet:
        questions = make_index(directory, rows, options.seed)
        config = ServeConfig(
            f"{directory}/index", port=free_port(), grpc_port=free_port(), replicas=REPLICAS, encoder_replicas=2
        )
        began = time.monotonic()
        with serve(config, blocking=False) as service:
            start_s = time.monotonic() - began
            where = placed(service_fleet.wait_until_healthy(set()))
            load = SteadyLoad({"http": service.url, "grpc": str(service.grpc_url)}, questions, options.rate)
            # It has to come up.
            time.sleep(4.0)
            quiet = time.monotonic()
            time.sleep(quiet_s)
            calm = Blow("nothing", quiet, quiet, time.monotonic())
            blows = strike(service_fleet, targets, random.Random(options.seed))
            done = load.stop()
    table = [blow.row(done) for blow in (calm, *blows)]
    if where["http"] != [1] * nodes:
        raise SystemExit(f"not one listening replica on each node: {where}")
    figures: dict[str, Any] = {
        "kills": len(blows),
        "requests": len(done),
        "wrong_answers": sum(asked.wrong for asked in done),
        **{
            f"failed_{way.replace(', ', '_').lower()}": sum(bool(asked.failure) for asked in done if asked.way == way)
            for way in WAYS
        },
        "longest_gap_s": round(max(row["longest gap s"] for row in table[1:]), 2),
        "healthy_after_s": {
            target: round(max(blow.healthy - blow.began for blow in blows if blow.target == target), 1)
            for target in dict.fromkeys(targets)
        },
        "replicas_on_each_node": where,
        "start_s": round(start_s, 1),
    }
    baselines = {"longest_gap_s": round(table[0]["longest gap s"], 2)}
    failures = sorted({f"{asked.way}: {asked.failure}" for asked in done if asked.failure})
    notes = [
        f"{nodes} raylets with 2 CPUs each on one machine with Ray's own settings, {rows:,} uniform codes of {BITS} "
        f"bits in {SHARDS} shards with {REPLICAS} replicas each, 2 encoders, {options.rate:g} requests a second, "
        "every other one by a text that the encoder reads, in turn as one HTTP request without a second attempt and "
        "by the Python client over HTTP and gRPC with its own retries. An answer is wrong unless version, distances, "
        "ids and their order are those that numpy found. The listening replicas share a port and are the routers; "
        "Serve runs no proxy here. The node killed is not the head: its raylet and every process below it are killed "
        f"at once, and another joins {AWAY_S:.0f} s later. Healthy is when Serve says that every replica that is "
        "wanted runs, and none of the killed is among them. A replica that hangs is stopped (SIGSTOP) for "
        f"{HANGING_S:.0f} s: what it was asked, its sibling is asked after a tenth of the longest wait, "
        f"{config.timeout_s / 10:g} s.",
        *[f"Failed: {failure}" for failure in failures[:8]],
    ]
    benchmark.report(table, figures, baselines, notes)
    cured = not any(asked.failure for asked in done if asked.way != "raw")
    return 0 if cured and not figures["wrong_answers"] else 1


if __name__ == "__main__":
    sys.exit(main())
