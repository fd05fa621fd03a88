"""An Azure Blob Storage endpoint on loopback: Azurite, where it is installed (`npm install -g azurite`)."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONTAINER = "container"
COMMAND = "azurite-blob"
# The one account that Azurite knows, and its key, which is no secret.
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def is_installed() -> bool:
    return shutil.which(COMMAND) is not None


@contextlib.contextmanager
def azure_server(directory: Path) -> Iterator[dict[str, Any]]:
    """Storage options for a running endpoint with the empty container `CONTAINER`; it logs into the directory."""
    import adlfs

    port = _free_port()
    options: dict[str, Any] = {
        "connection_string": f"DefaultEndpointsProtocol=http;AccountName={_ACCOUNT};AccountKey={_KEY};"
        f"BlobEndpoint=http://127.0.0.1:{port}/{_ACCOUNT};"
    }
    arguments = ["--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--blobPort", str(port)]
    with open(directory / "azurite.log", "wb") as log:
        process = subprocess.Popen([COMMAND, *arguments], cwd=directory, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((directory / "azurite.log").read_text())
            time.sleep(0.1)
        adlfs.AzureBlobFileSystem(**options).mkdir(CONTAINER)
        yield options
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
