"""`distindex evaluate`: encode queries and database with a hasher and judge what Hamming search finds."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distindex.codes import CodeArray, asymmetric, byte_weights, hamming, pack
from distindex.config import CorpusConfig, EvaluateConfig
from distindex.corpus.dataset import Corpus, split_bad_rows
from distindex.corpus.labels import Labels, read_labels, share_a_label
from distindex.errors import InputError
from distindex.evaluation.metrics import Similar
from distindex.evaluation.protocol import MethodResult, compare_methods, cosine_score, rescored_name, table_row
from distindex.evaluation.report import write_report
from distindex.hashing import Hasher
from distindex.hashing.classic import CLASSIC
from distindex.progress import say
from distindex.storage import Storage

_TIMED_QUERIES = 256
# What `Index.search` rescores for the k of interest, unless told otherwise.
_TIMED_CANDIDATES = 1000


@dataclasses.dataclass
class EvaluateReport:
    """What an evaluation found.

    Attributes:
        uri: directory with metrics.json and the plots.
        files: what was written there.
        methods: one result per method, the hasher's first, then the hasher's rescored.
    """

    uri: str
    files: list[str]
    methods: list[MethodResult]

    def rows(self) -> list[dict[str, Any]]:
        """The table, one row per method."""
        return [table_row(result) for result in self.methods]


@dataclasses.dataclass
class Judged:
    """A corpus in memory, ready to be judged: features `x_NV` as the hasher's `transform` gives them, and labels."""

    x_NV: Any
    labels: Labels


def evaluate(config: EvaluateConfig) -> EvaluateReport:
    """Measure retrieval of `config.queries` in `config.database` by shared labels.

    All labels of both corpora count, also those that were hidden in training. Every figure is its
    expectation under random tie-breaking, beside the figure in the reference's argsort order. The hasher is
    judged a second time by the asymmetric ranking of its codes, which is what `rescore` searches for.

    Raises:
        InputError: a corpus or the hasher is missing or unfit, or a corpus has no labels.
    """
    hasher = Hasher.load(config.hasher, config.database.storage_options)
    database = read_judged(config.database, hasher)
    queries = read_judged(config.queries, hasher)
    say(f"evaluate: {len(queries.labels):,} queries in {len(database.labels):,} rows, {hasher.bits} bits")
    methods = judge(hasher, queries, database, config.k, config.radius, config.baselines, config.seed)
    storage = Storage(config.output, config.database.storage_options)
    details = {
        "hasher": {"uri": config.hasher, "fingerprint": hasher.fingerprint, "method": hasher.method},
        "queries": config.queries.uri,
        "database": config.database.uri,
        "rows": {"queries": len(queries.labels), "database": len(database.labels)},
    }
    return EvaluateReport(config.output, write_report(storage, methods, details), methods)


def read_judged(config: CorpusConfig, hasher: Hasher) -> Judged:
    """Read a labeled corpus as the hasher sees it.

    Raises:
        InputError: the corpus names no label column, or is unfit for the hasher.
    """
    if config.label_column is None:
        raise InputError(f"{config.uri}: evaluation needs labels; name their column with label_column")
    corpus = Corpus.open(config)
    batches = corpus.batches([config.id_column, config.feature_column, config.label_column])
    table = pa.concat_tables([split_bad_rows(batch, hasher.features, config)[0] for batch in batches])
    labels = read_labels(table[config.label_column])
    if not labels.labeled().any():
        raise InputError(f'{config.uri}: all labels in column "{config.label_column}" are null')
    return Judged(hasher.features.transform(table[config.feature_column]), labels)


def similarity(queries: Labels, database: Labels) -> Similar:
    """Which rows are relevant to which queries: those that share a label."""
    return lambda start, stop: share_a_label(queries.take(np.arange(start, stop)), database)


def judge(
    hasher: Hasher,
    queries: Judged,
    database: Judged,
    ks: list[int],
    radius: int,
    baselines: bool,
    seed: int = 0,
) -> list[MethodResult]:
    """Judge a hasher, and with `baselines` PCA-sign, ITQ and LSH of the same length and float cosine.

    The hasher is judged by Hamming distance and by the asymmetric distance of its logits. The baselines are
    fitted on the database's features without labels, but for the one that the hasher itself is. Query times are
    of a numpy scan in this process over the codes (rescored: and the scores of the 1000 nearest rows), and of
    the matrix product for float cosine.
    """
    hashers = {hasher.method: hasher}
    cosine = None
    if baselines:
        cosine = (hasher.features.network_input(queries.x_NV), hasher.features.network_input(database.x_NV))
        for name, fit in CLASSIC.items():
            if name == hasher.method:
                continue
            try:
                hashers[name] = fit(hasher.features, cosine[1], hasher.feature_column, hasher.bits, seed)
            except InputError as error:
                say(f"evaluate: {name} is left out: {error}")
    logits = {name: each.logits(queries.x_NV) for name, each in hashers.items()}
    codes = {name: (pack(logits[name] > 0), pack(each.logits(database.x_NV) > 0)) for name, each in hashers.items()}
    similar = similarity(queries.labels, database.labels)
    own = {hasher.method: logits[hasher.method]}
    results = compare_methods(codes, similar, ks, radius, cosine, logits=own)
    for result in results:
        if result.method == rescored_name(hasher.method):
            result.milliseconds_per_query = _rescore_time(own[hasher.method], codes[hasher.method][1], ks[0])
        elif result.method in codes:
            result.milliseconds_per_query = _scan_time(*codes[result.method], ks[0])
        elif cosine is not None:
            result.milliseconds_per_query = _cosine_time(*cosine, ks[0])
    return results


def _scan_time(query_QC: CodeArray, database_NC: CodeArray, k: int) -> float:
    def search() -> None:
        distance_QN = hamming(query_QC[:_TIMED_QUERIES], database_NC)
        np.argpartition(distance_QN, min(k, distance_QN.shape[1]) - 1, axis=1)

    return _milliseconds(search) / min(_TIMED_QUERIES, len(query_QC))


def _rescore_time(logit_QK: npt.NDArray[np.float32], database_NC: CodeArray, k: int) -> float:
    logits = logit_QK[:_TIMED_QUERIES]
    candidates = min(_TIMED_CANDIDATES, len(database_NC))

    def search() -> None:
        query_QC = pack(logits > 0)
        nearest_QA = np.argpartition(hamming(query_QC, database_NC), candidates - 1, axis=1)[:, :candidates]
        score_QA = asymmetric(byte_weights(logits), query_QC[:, None] ^ database_NC[nearest_QA])
        np.argpartition(score_QA, min(k, candidates) - 1, axis=1)

    return _milliseconds(search) / len(logits)


def _cosine_time(query_QV: Any, database_NV: Any, k: int) -> float:
    score = cosine_score(query_QV[:_TIMED_QUERIES], database_NV)
    queries = min(_TIMED_QUERIES, query_QV.shape[0])

    def search() -> None:
        score_QN = score(0, queries)
        np.argpartition(-score_QN, min(k, score_QN.shape[1]) - 1, axis=1)

    return _milliseconds(search) / queries


def _milliseconds(work: Any) -> float:
    work()
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000
