"""Blocks of shell commands run by bash, whose `distindex` is the command line of this process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from unittest import mock

from tests.pipeline import Ran

# What a block finds as `distindex`: hands its words and its environment on, and ends as the command does.
_CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect({address!r})
    with asked.makefile("rw") as stream:
        stream.write(json.dumps([sys.argv[1:], dict(os.environ)]) + "\\n")
        stream.flush()
        code, out, err = json.loads(stream.readline())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""


class Shell:
    """bash in one directory, with a `distindex` that costs no new process.

    Args:
        tools: a new directory for that command, outside of the one that blocks see.
        command: what a `distindex` with these words gives; called in the thread that calls `run`.
    """

    def __init__(self, tools: Path, command: Callable[[Sequence[str]], Ran]) -> None:
        tools.mkdir()
        self._tools, self._command = tools, command
        address = str(tools / "asked")
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(address)
        self._listening.listen()
        self._listening.settimeout(0.05)
        client = tools / "distindex"
        client.write_text(_CLIENT.format(python=sys.executable, address=address))
        client.chmod(0o755)

    def run(self, text: str, directory: Path) -> str:
        """What the commands print; the first one that fails ends them, and the test."""
        process = subprocess.Popen(
            ["bash", "-e", "-o", "pipefail", "-c", text],
            cwd=directory,
            env={**os.environ, "PATH": f"{self._tools}:{os.environ['PATH']}"},
            stdout=(self._tools / "out").open("w"),
            stderr=(self._tools / "err").open("w"),
        )
        while process.poll() is None:
            try:
                asked, _ = self._listening.accept()
            except TimeoutError:
                continue
            with asked, asked.makefile("rw") as stream:
                words, environment = json.loads(stream.readline())
                stream.write(json.dumps(self._answer(words, environment)) + "\n")
        out, err = ((self._tools / name).read_text() for name in ("out", "err"))
        assert process.returncode == 0, f"{text}\n{out}{err}"
        return out

    def _answer(self, words: Sequence[str], environment: Mapping[str, str]) -> Ran:
        with mock.patch.dict(os.environ, environment):
            return self._command(words)

    def close(self) -> None:
        self._listening.close()
