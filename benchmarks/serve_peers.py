"""Other ways to search the same codes: faiss behind a bare web server, LanceDB, usearch; more in `peer_engines`."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import httpx
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import uvicorn
from fastapi import FastAPI, Request

from benchmarks.serve_load import K
from distindex.codes import CodeArray, from_strings

Distances = npt.NDArray[np.integer]
Search = Callable[[CodeArray], Distances]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def usearch_search(code_NC: CodeArray, directory: Path) -> Search | None:
    """usearch's exact scan on one thread: the distances of the K nearest; None where it is not installed."""
    try:
        compiled = importlib.import_module("usearch.compiled")
        scan = importlib.import_module("usearch.index").search
    except ImportError:
        return None
    hamming = compiled.MetricKind.Hamming

    def search(query_QC: CodeArray) -> Distances:
        found = scan(code_NC, query_QC, K, hamming, exact=True, threads=1)
        return np.sort(np.asarray(found.distances).reshape(len(query_QC), -1).astype(np.int64), axis=1)

    return search


def lance_search(code_NC: CodeArray, directory: Path) -> Search | None:
    """LanceDB's exact scan of a table on disk, on all cores; None where it is not installed."""
    try:
        lancedb = importlib.import_module("lancedb")
    except ImportError:
        return None
    column = pa.FixedSizeListArray.from_arrays(pa.array(code_NC.reshape(-1)), code_NC.shape[1])
    content = pa.table({"id": np.arange(len(code_NC)), "code": column})
    table = lancedb.connect(str(directory)).create_table("codes", content)

    def search(query_QC: CodeArray) -> Distances:
        asked = query_QC[0] if len(query_QC) == 1 else list(query_QC)
        found = table.search(asked, vector_column_name="code").distance_type("hamming").limit(K).to_arrow()
        if len(query_QC) > 1:
            # The answers to many queries come in any order.
            found = found.sort_by([("query_index", "ascending"), ("_distance", "ascending")])
        return np.asarray(found["_distance"]).astype(np.int64).reshape(len(query_QC), -1)

    return search


def _serve_faiss(code_NC: CodeArray, port: int) -> None:
    faiss.omp_set_num_threads(1)
    index: Any = faiss.IndexBinaryFlat(code_NC.shape[1] * 8)
    index.add(code_NC)
    api = FastAPI()

    @api.post("/v1/search")
    async def search(request: Request) -> dict[str, Any]:
        asked = await request.json()
        distance_QK, row_QK = index.search(from_strings(asked["codes"], index.d), asked["k"])
        return {"ids": row_QK.tolist(), "distances": distance_QK.tolist()}

    uvicorn.run(api, port=port, log_level="error", access_log=False)


@contextlib.contextmanager
def faiss_service(code_NC: CodeArray) -> Iterator[str]:
    """The address of IndexBinaryFlat behind FastAPI and uvicorn, as one would write it in an hour."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=_serve_faiss, args=(code_NC, port))
    process.start()
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                httpx.get(url)
                break
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.join()
