"""A Ray cluster of its own, started as README says, for tests that submit jobs to it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from ray.job_submission import JobStatus, JobSubmissionClient

REPOSITORY = Path(__file__).resolve().parents[1]
_START_TIMEOUT_S = 120.0
_JOB_TIMEOUT_S = 400.0
_PORTS = (
    "port", "ray-client-server-port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
    "runtime-env-agent-port", "metrics-export-port",
)  # fmt: skip


class Submitted(NamedTuple):
    """What a job that has ended gave: the exit code of `ray job submit`, and the log."""

    code: int
    log: str

    @property
    def lines(self) -> list[str]:
        return [line.strip() for line in self.log.splitlines() if line.strip()]


class JobCluster:
    """A head node with a dashboard in a process group of its own, on loopback and on free ports.

    Its Python has every dependency but not distindex, which jobs must bring along in their working directory.
    """

    def __init__(self, cpus: int = 4) -> None:
        # Short, since the names of sockets below it must have less than 108 characters.
        self.root = Path(tempfile.mkdtemp(prefix="dj-", dir="/tmp"))
        self.bin = _environment(self.root / "venv")
        ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
        self.url = f"http://127.0.0.1:{ports['dashboard-port']}"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment |= {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_API_SERVER_ADDRESS": self.url,
            # Without these it would depend on what lies in ~/.ray whether the dashboard asks for a token.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        self.environment.pop("PYTHONPATH", None)
        self.log = self.root / "head.log"
        with self.log.open("w") as log:
            self.head = subprocess.Popen(
                [
                    *("ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1"),
                    *("--dashboard-host=127.0.0.1", f"--temp-dir={self.root / 'ray'}", f"--num-cpus={cpus}"),
                    *("--num-gpus=0", f"--object-store-memory={400 << 20}"),
                    *(f"--{name}={port}" for name, port in ports.items()),
                ],
                env=self.environment,
                cwd=self.root,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        headers = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        try:
            self._wait_until_up(headers)
            self.client = JobSubmissionClient(self.url, headers=headers)
            self.serve = ServeSubmissionClient(self.url, headers=headers)
        except BaseException:
            self.stop()
            raise

    def submit(self, *command: str) -> Submitted:
        """`ray job submit --working-dir . -- COMMAND` in the repository, and what it prints."""
        return self._ran("ray", "job", "submit", "--working-dir", ".", "--", *command)

    def command(self, *arguments: str) -> Submitted:
        """What a command of this cluster's Python prints."""
        return self._ran(str(self.bin / "python"), *arguments)

    def _ran(self, *command: str) -> Submitted:
        ran = subprocess.run(
            command,
            env=self.environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=_JOB_TIMEOUT_S,
        )
        return Submitted(ran.returncode, ran.stdout + ran.stderr)

    def start(self, *command: str, environment: dict[str, str] | None = None) -> str:
        """The id of a job that is submitted as `submit` does, without a process of its own."""
        settings: dict[str, Any] = {"working_dir": str(REPOSITORY), "env_vars": environment or {}}
        return self.client.submit_job(entrypoint=shlex.join(command), runtime_env=settings)

    def run(self, *command: str, environment: dict[str, str] | None = None) -> Submitted:
        """Start a job and wait until it has ended."""
        job = self.start(*command, environment=environment)
        deadline = time.monotonic() + _JOB_TIMEOUT_S
        while not (status := self.client.get_job_status(job)).is_terminal():
            assert time.monotonic() < deadline, self.client.get_job_logs(job)
            time.sleep(0.1)
        return Submitted(int(status != JobStatus.SUCCEEDED), self.client.get_job_logs(job))

    def stop(self) -> None:
        """End this cluster's processes and no others."""
        self.head.send_signal(signal.SIGTERM)
        try:
            self.head.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.head.kill()
            self.head.wait()
        # What the head left behind: everything that runs this cluster's Python is its own.
        for entry in Path("/proc").iterdir() if sys.platform == "linux" else ():
            if entry.name.isdigit() and self._is_own(entry):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(entry.name), signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)

    def _is_own(self, process: Path) -> bool:
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                if str(self.root) in (process / name).read_text(errors="replace"):
                    return True
        return False

    def _wait_until_up(self, headers: dict[str, str]) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            assert self.head.poll() is None, self.log.read_text()
            try:
                answer = httpx.get(f"{self.url}/api/jobs/", headers=headers, timeout=5)
                assert answer.status_code not in (401, 403), answer.text
                if answer.is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"the head did not start in time: {self.log.read_text()}")


def _environment(directory: Path) -> Path:
    """A virtual environment with this one's packages, but not those installed in editable mode; its bin/."""
    venv.create(directory, symlinks=True, with_pip=False)
    python = directory / "bin" / "python"
    site = sysconfig.get_path("purelib", vars={"base": str(directory), "platbase": str(directory)})
    # A directory that a .pth file names is searched, but the .pth files in it are not read.
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    ray = python.with_name("ray")
    ray.write_text(f"#!{python}\nfrom ray.scripts.scripts import main\n\nmain()\n")
    ray.chmod(0o755)
    return python.parent


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
