"""A service that is told to stop: it ends as it should, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from distindex.index.index import Index
from distindex.serving.client import connect
from tests.serving_backend import free_port


@pytest.mark.slow
def test_signals_stop_the_service_cleanly(tmp_path: Path) -> None:
    Index.create(str(tmp_path / "index"), np.zeros((3, 8), np.uint8), [1, 2, 3]).close()
    port = free_port()
    # The second service shows that the first, of the same process, has left nothing behind.
    program = (
        "from distindex.serve_config import ServeConfig\n"
        "from distindex.serving.service import serve\n"
        "for stop in ('stopped', 'stopped again'):\n"
        f"    serve(ServeConfig({str(tmp_path / 'index')!r}, port={port}))\n"
        "    print(stop, flush=True)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    # A service that never gets ready must not hold the tests.
    watchdog = threading.Timer(180, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        check_until_ready(process, port)
        # A supervisor sends its signal to the process, a terminal Ctrl-C to the whole process group.
        process.send_signal(signal.SIGTERM)
        # Only the result goes to standard output.
        assert process.stdout.readline() == "stopped\n"
        check_until_ready(process, port)
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        watchdog.cancel()
        process.kill()
    assert process.returncode == 0, errors
    assert output == "stopped again\n"
    assert "Traceback" not in errors


def check_until_ready(process: subprocess.Popen[str], port: int) -> None:
    """Read what the service says until it is ready, and ask it."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "Ctrl-C" in line:
            break
    said = "".join(lines)
    assert "ready after" in said, said
    assert "Traceback" not in said
    with connect(f"http://127.0.0.1:{port}") as served:
        assert served.search("00" * 8, k=5).id_M.to_pylist() == [1, 2, 3]
