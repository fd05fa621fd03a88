"""jobs/*.py submitted with `ray job submit` to a cluster that was started with `ray start --head`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from ray.job_submission import JobStatus

from distindex import Hasher, Index, __version__, connect
from distindex.errors import UnavailableError
from distindex.job import run_verb
from distindex.quickstart.data import write_digits
from distindex.serving.client import HttpSearcher
from distindex.storage import Storage
from tests import oracle
from tests.job_cluster import REPOSITORY, JobCluster

pytestmark = pytest.mark.slow

ROWS, BITS, EPOCHS = 1438, 64, 3
PACKAGE_DIRECTORY = re.compile(r"/working_dir_files/_ray_pkg_\w+/distindex/__init__\.py$")


@pytest.fixture(scope="module")
def cluster() -> Iterator[JobCluster]:
    started = JobCluster()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("jobs")
    write_digits(Storage(str(made / "digits")))
    return made


def command(name: str, *overrides: str) -> tuple[str, ...]:
    return "python", f"jobs/{name}.py", "--config", f"jobs/configs/{name}.yaml", *overrides


def run(cluster: JobCluster, root: Path, name: str, result: str, *overrides: str) -> dict[str, Any]:
    """Submit a job that must succeed; its report."""
    # The commands of README are those of `submit`; one of them is enough to see that they work.
    submit = cluster.submit if name == "train" else cluster.run
    submitted = submit(*command(name, *overrides))
    assert submitted.code == 0, submitted.log
    assert f"result: {root / result}" in submitted.lines
    report = json.loads((root / f"{result}.report.json").read_text())
    assert (report["format_version"], report["kind"], report["job"]) == (1, "job-report", name)
    assert report["versions"]["distindex"] == __version__
    assert report["seconds"] > 0
    assert report["result"]["uri"] == str(root / result)
    return report


@pytest.fixture(scope="module")
def reports(cluster: JobCluster, root: Path) -> dict[str, dict[str, Any]]:
    """The four jobs that leave something behind, one after another."""
    corpus, queries = root / "digits" / "corpus.parquet", root / "digits" / "queries.parquet"
    hasher, codes, index = (root / name for name in ("hasher", "codes", "index"))
    return {
        "train": run(
            cluster, root, "train", "hasher",
            f"--corpus.uri={corpus}", f"--output={hasher}", f"--optimization.epochs={EPOCHS}",
        ),
        "encode": run(
            cluster, root, "encode", "codes", f"--corpus.uri={corpus}", f"--hasher={hasher}", f"--output={codes}"
        ),
        "build": run(
            cluster, root, "build", "index",
            f"--codes={codes}", f"--hasher={hasher}", f"--output={index}", "--shards=2", "--retries=1",
            "--storage_options={'key': 'do not tell'}",
        ),
        "evaluate": run(
            cluster, root, "evaluate", "evaluation",
            f"--hasher={hasher}", f"--database.uri={corpus}", f"--queries.uri={queries}",
            f"--output={root / 'evaluation'}", "--baselines=false",
        ),
    }  # fmt: skip


def test_the_jobs_do_what_the_commands_do(reports: dict[str, dict[str, Any]], root: Path) -> None:
    results = {name: report["result"] for name, report in reports.items()}
    assert (results["train"]["rows"], results["train"]["epochs"]) == (ROWS, EPOCHS)
    assert (results["encode"]["rows"], results["encode"]["rejected"]) == (ROWS, 0)
    assert (results["build"]["rows"], results["build"]["shards"]) == (ROWS, 2)
    assert results["evaluate"]["methods"] == json.loads((root / "evaluation/metrics.json").read_text())["methods"]
    assert reports["train"]["config"]["labels"]["fraction"] == 0.1, "settings of the file are used and reported"
    assert reports["train"]["config"]["optimization"]["epochs"] == EPOCHS, "options win over the file"

    corpus = pq.read_table(root / "digits" / "corpus.parquet")
    code_NC = Hasher.load(str(root / "hasher")).encode(corpus)
    found = Index.open(str(root / "index")).search(code_NC[:5], 10)
    answers = [[(match.distance, match.code, match.id) for match in found[query]] for query in range(5)]
    assert answers == oracle.search(code_NC[:5], code_NC, corpus["id"].to_pylist(), k=10)


def test_a_service_answers_until_its_job_is_stopped(
    cluster: JobCluster, reports: dict[str, dict[str, Any]], root: Path
) -> None:
    port = free_port()
    serving = command("serve", f"--index={root / 'index'}", f"--port={port}")
    job = cluster.start(*serving)
    vectors = np.stack(pq.read_table(root / "digits" / "queries.parquet")["pixels"].to_numpy()[:4])
    url = f"http://127.0.0.1:{port}"
    wait_for(cluster, job, lambda: url in cluster.client.get_job_logs(job))
    with connect(url) as served, connect(str(root / "index")) as local:
        assert served.info()["shards"] == 2
        found, expected = (
            searcher.search(vectors=vectors, k=7, columns=["label"]).to_table() for searcher in (served, local)
        )
    assert found.equals(expected)
    assert found.num_rows == 28

    cluster.client.stop_job(job)
    deadline = time.monotonic() + 60
    while cluster.client.get_job_status(job) != JobStatus.STOPPED or is_open(port):
        assert time.monotonic() < deadline, cluster.client.get_job_logs(job)
        time.sleep(0.2)
    assert "stopping" in cluster.client.get_job_logs(job)


def test_serve_deploy_starts_the_service_and_changes_its_version(cluster: JobCluster, root: Path) -> None:
    """As on Kubernetes: what cluster/serve.yaml says, with the code from where the machines can fetch it."""
    index = str(root / "deployed")
    random = np.random.default_rng(0)
    code_NC = random.integers(0, 256, (50, 2), dtype=np.uint8)
    Index.create(index, code_NC[:30], pa.array(range(30))).close()
    config = yaml.safe_load((REPOSITORY / "cluster" / "serve.yaml").read_text())
    port = free_port()
    (application,) = config["applications"]
    application["args"] |= {"index": index, "host": "127.0.0.1", "port": port}
    # Ray takes off the one directory that such an archive has at its top.
    shutil.copytree(REPOSITORY / "distindex", root / "shipped" / "code" / "distindex")
    archive = shutil.make_archive(str(root / "code"), "zip", root / "shipped")
    application["runtime_env"] = {"working_dir": f"file://{archive}"}

    def deploy(first: bool = False) -> None:
        if not first:
            # What `serve deploy` sends, without the seconds that it takes to start.
            cluster.serve.deploy_applications(config)
            return
        (root / "serve.yaml").write_text(yaml.safe_dump(config))
        deployed = cluster.command("-m", "ray.serve.scripts", "deploy", str(root / "serve.yaml"), "-a", cluster.url)
        assert deployed.code == 0, deployed.log

    def status() -> str:
        return json.dumps(cluster.serve.get_serve_details())

    def answers(version: int) -> bool:
        with contextlib.suppress(UnavailableError), connect(f"http://127.0.0.1:{port}") as served:
            return served.info()["version"] == version
        return False

    try:
        for version, rows in ((1, 30), (2, 50)):
            if version == 2:
                Index.append(index, code_NC[30:], pa.array(range(30, 50))).close()
            application["args"]["version"] = version
            deploy(first=version == 1)
            wait_until(lambda version=version: answers(version), status)
            with HttpSearcher(f"http://127.0.0.1:{port}") as served:
                served.wait_until_ready(60)
                found = served.search(codes=code_NC[:3], k=rows)
            got = [[(match.distance, match.code, match.id) for match in found[query]] for query in range(3)]
            assert got == oracle.search(code_NC[:3], code_NC[:rows], list(range(rows)), k=rows)
        application["args"]["nodez"] = 2
        deploy()
        wait_until(lambda: "Option 'nodez' is not accepted" in status(), status)
        assert answers(2), "a config that cannot be built leaves the service as it is"
    finally:
        cluster.serve.delete_applications()
    wait_until(lambda: not is_open(port), lambda: "the service still listens")


@pytest.mark.long
def test_a_killed_pipeline_goes_on_where_it_was(cluster: JobCluster, root: Path) -> None:
    output = root / "pipeline"
    epochs = 30
    settings = command(
        "pipeline",
        f"--corpus.uri={root / 'digits' / 'corpus.parquet'}",
        f"--queries={root / 'digits' / 'queries.parquet'}",
        f"--output={output}",
        f"--optimization.epochs={epochs}",
        "--optimization.checkpoint_seconds=0",
        "--validation.fraction=0",
        "--baselines=false",
    )
    job = cluster.start(*settings)
    wait_for(cluster, job, lambda: len(list(output.glob("hasher/training/checkpoint_*"))) > 1)
    driver = cluster.client.get_job_info(job).driver_info
    assert driver is not None
    os.kill(int(driver.pid), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while cluster.client.get_job_status(job) != JobStatus.FAILED:
        assert time.monotonic() < deadline, cluster.client.get_job_logs(job)
        time.sleep(0.2)
    assert not (output / "hasher" / "hasher.json").exists(), "killed in the middle of training"
    assert not Path(f"{output}.report.json").exists()

    submitted = cluster.run(*settings)
    assert submitted.code == 0, submitted.log
    assert any("going on with the run" in line for line in submitted.lines)
    assert f"result: {output}" in submitted.lines
    stages = json.loads(Path(f"{output}.report.json").read_text())["result"]["stages"]
    assert list(stages) == ["train", "encode", "build", "evaluate"]
    history = stages["train"]["result"]["history"]
    assert [metrics["epoch"] for metrics in history] == list(range(1, epochs + 1)), "every epoch once"
    assert stages["encode"]["result"]["rows"] == ROWS
    assert Index.open(str(output / "index")).rows == ROWS

    again = cluster.run(*settings)
    assert again.code == 0, again.log
    assert sum("nothing to do" in line for line in again.lines) == 2
    assert any("holds these rows already" in line for line in again.lines)


def test_a_bad_config_fails_the_submission(cluster: JobCluster, root: Path) -> None:
    output = root / "refused"
    submitted = cluster.submit(*command("train", f"--output={output}", "--corpus.uri=/nowhere"))
    assert submitted.code == 1, submitted.log
    assert "distindex: error: /nowhere: no such file or directory" in submitted.lines, submitted.log
    assert "exit code 2" in submitted.log
    assert "Traceback" not in submitted.log
    assert not output.exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--bits=12", "--output=/tmp/hasher"], "bits: 12 is not a multiple of 8"),
        (["--output=relative"], "output: relative would lie in this job's temporary copy of the working directory"),
        (["--config=/nowhere.yaml"], "File does not exist: '/nowhere.yaml'"),
        (["--output=/tmp/hasher", "--epochs=3"], "epochs"),
    ],
    ids=["bits", "relative output", "no file", "unknown setting"],
)
def test_what_a_submitted_job_refuses_at_once(
    overrides: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    code = run_verb("train", ["--corpus.uri=/nowhere", "--corpus.feature_column=pixels", *overrides])
    printed = capfd.readouterr()
    assert code == 2
    assert printed.err.startswith("distindex: error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert not printed.out


def test_workers_get_the_code_and_the_environment_of_the_job(cluster: JobCluster) -> None:
    """This cluster's Python does not have distindex; a variable that distindex sets too is no conflict."""
    source = """
import json, os, distindex, ray
from distindex.runtime import start_ray
start_ray()
def seen():
    import distindex
    return [distindex.__file__, os.environ["OMP_WAIT_POLICY"]]
print(json.dumps([distindex.__file__, *ray.get(ray.remote(seen).remote()), sorted(os.listdir("."))]))
"""
    submitted = cluster.run("python", "-c", source, environment={"OMP_WAIT_POLICY": "ACTIVE"})
    assert submitted.code == 0, submitted.log
    driver, worker, policy, uploaded = json.loads(next(line for line in submitted.lines if line.startswith('["')))
    assert PACKAGE_DIRECTORY.search(driver)
    assert worker == driver
    assert policy == "ACTIVE"
    assert {"distindex", "jobs"} <= set(uploaded)
    assert not {".git", ".venv", "tests", "docs", ".ruff_cache/CACHEDIR.TAG"} & set(uploaded)


def test_reports_keep_secrets_out(reports: dict[str, dict[str, Any]], root: Path) -> None:
    assert reports["build"]["config"]["storage_options"] == ["key"], "an option that a store may need"
    assert "do not tell" not in (root / "index.report.json").read_text()
    assert {name: report["attempts"] for name, report in reports.items()} == dict.fromkeys(reports, 1)


def wait_for(cluster: JobCluster, job: str, condition: Any, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        log = cluster.client.get_job_logs(job)
        assert not cluster.client.get_job_status(job).is_terminal(), log
        assert time.monotonic() < deadline, log
        time.sleep(0.1)


def wait_until(condition: Callable[[], bool], why_not: Callable[[], str]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, why_not()
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
