"""The main job: corpus, training, codes, index, service, queries and evaluation, on two real data sets."""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distindex.building import build
from distindex.config import (
    BuildConfig,
    CorpusConfig,
    EncodeConfig,
    EvaluateConfig,
    FeaturesConfig,
    LabelsConfig,
    MethodConfig,
    OptimizationConfig,
    QuickstartConfig,
    TextConfig,
    TrainConfig,
)
from distindex.encoding import encode
from distindex.errors import InputError
from distindex.evaluation.gallery import GalleryItem, neighbour_gallery
from distindex.evaluation.plots import save_figure
from distindex.evaluation.run import evaluate
from distindex.evaluation.table import format_table
from distindex.index.matches import Matches
from distindex.progress import say
from distindex.quickstart.data import write_digits, write_documentation
from distindex.serve_config import ServeConfig
from distindex.serving.service import serve
from distindex.storage import Storage
from distindex.training import train

BITS = 64
LABELED = 0.1
_MARKER = "quickstart.json"
_COLUMNS = ("method", "bytes/item", "P@10", "P@100", "mAP@100", "distinct codes", "ms/query")
_SHOWN_QUERIES, _SHOWN_NEIGHBOURS = 6, 10
_SINGLE_REQUESTS = 50


@dataclasses.dataclass(frozen=True)
class Track:
    """One data set of the quickstart: how to write it, and the settings of training that differ."""

    name: str
    title: str
    write: Callable[[Storage], None]
    feature_column: str
    epochs: int
    features: FeaturesConfig = dataclasses.field(default_factory=FeaturesConfig)
    method: MethodConfig = dataclasses.field(default_factory=MethodConfig)

    def corpus(self, root: Storage, name: str = "corpus") -> CorpusConfig:
        uri = root.full_uri(f"{self.name}/{name}.parquet")
        return CorpusConfig(uri, self.feature_column, label_column="label", payload_columns=["label"])


TRACKS = (
    Track(
        "digits",
        "handwritten digits, 8 x 8 pixels, by class",
        write_digits,
        "pixels",
        30,
        # 64 dimensions carry less to spare, and 143 labels more to say, than words do.
        method=MethodConfig(class_weight=30, code_weight=30, pair_weight=100, input_dropout=0.3, dropout=0.3),
    ),
    Track(
        "documentation",
        "docstrings of installed packages, by package",
        write_documentation,
        "text",
        18,
        FeaturesConfig(text=TextConfig(minimum_documents=3)),
    ),
)


@dataclasses.dataclass
class QuickstartReport:
    """What the quickstart left behind and found.

    Attributes:
        uri: its directory.
        results: the table of each data set.
        single_request_ms: median time of a request with one query over HTTP, per data set.
        seconds: wall time in all.
    """

    uri: str
    results: dict[str, list[dict[str, Any]]]
    single_request_ms: dict[str, float]
    seconds: float


def quickstart(config: QuickstartConfig) -> QuickstartReport:
    """Train, encode, build, serve, query and evaluate on data that comes with the installation.

    Raises:
        InputError: the output directory holds something else than an earlier quickstart.
    """
    started = time.monotonic()
    root = Storage(config.output)
    if root.names() and not root.exists(_MARKER):
        raise InputError(f"{root.uri}: exists and was not made by quickstart; choose another output")
    root.remove("")
    report = QuickstartReport(config.output, {}, {}, 0.0)
    root.write_json(_MARKER, {"made_by": "distindex quickstart"})
    # Reading the documentation takes seconds, in which the first data set can be trained.
    with ThreadPoolExecutor(1) as pool:
        written = {track.name: pool.submit(track.write, root.child(track.name)) for track in TRACKS}
        for track in TRACKS:
            say(f"\n== {track.title}")
            written[track.name].result()
            _run(track, root, config.port, report)
    report.seconds = round(time.monotonic() - started, 1)
    root.write_json(_MARKER, {"made_by": "distindex quickstart", **dataclasses.asdict(report)})
    say(_summary(root, report))
    return report


def _run(track: Track, root: Storage, port: int, report: QuickstartReport) -> None:
    home = root.child(track.name)
    hasher, codes, index = (home.full_uri(name) for name in ("hasher", "codes", "index"))
    train(
        TrainConfig(
            track.corpus(root),
            hasher,
            bits=BITS,
            features=track.features,
            labels=LabelsConfig(fraction=LABELED),
            method=track.method,
            optimization=OptimizationConfig(epochs=track.epochs, batch_size=100),
        )
    )
    encode(EncodeConfig(track.corpus(root), hasher, codes))
    build(BuildConfig(codes, index, hasher=hasher))
    queries = _read(home, "queries")
    with serve(ServeConfig(index, port=port or _free_port()), blocking=False) as service:
        report.single_request_ms[track.name], found = _ask(service.connect(), track, queries)
    _draw(track, home, queries, found)
    evaluation = evaluate(
        EvaluateConfig(
            hasher,
            track.corpus(root),
            track.corpus(root, "queries"),
            home.full_uri("evaluation"),
            k=[10, 100],
            baselines=True,
        )
    )
    report.results[track.name] = [{name: row.get(name) for name in _COLUMNS} for row in evaluation.rows()]


def _ask(searcher: Any, track: Track, queries: pa.Table) -> tuple[float, Matches]:
    """The median time of single requests in milliseconds, and the answers to all queries in one batch."""
    kind = "texts" if track.feature_column == "text" else "vectors"
    values = queries[track.feature_column].to_pylist()
    with searcher:
        times = []
        for value in values[:_SINGLE_REQUESTS]:
            began = time.perf_counter()
            searcher.search(**{kind: [value]}, k=_SHOWN_NEIGHBOURS)
            times.append((time.perf_counter() - began) * 1000)
        found = searcher.search(**{kind: values}, k=_SHOWN_NEIGHBOURS, columns=["label"])
    labels = np.array(queries["label"].to_pylist())
    same = found.payload["label"].to_numpy() == labels[found.query_M]
    say(
        f"query: {len(values)} held-out queries over HTTP; {same.mean():.0%} of their {_SHOWN_NEIGHBOURS} nearest "
        f"neighbours have the same label"
    )
    return round(float(np.median(times)), 2), found


def _draw(track: Track, home: Storage, queries: pa.Table, found: Matches) -> None:
    """The picture: a few queries with the neighbours that the service returned."""
    corpus = _read(home, "corpus")
    row_of = {key: row for row, key in enumerate(corpus["id"].to_pylist())}

    def item(table: pa.Table, row: int, distance: int | None = None) -> GalleryItem:
        value = table[track.feature_column][row].as_py()
        content = value if isinstance(value, str) else np.array(value).reshape(8, 8)
        return GalleryItem(content, table["label"][row].as_py(), distance)

    chosen = np.linspace(0, len(queries) - 1, _SHOWN_QUERIES).astype(int)
    shown = [item(queries, row) for row in chosen]
    neighbours = [[item(corpus, row_of[match.id], match.distance) for match in found[row]] for row in chosen]
    if track.feature_column == "text":
        shown, neighbours = shown[:3], [line[:5] for line in neighbours[:3]]
    title = f"{track.name}: queries and their nearest neighbours by {BITS}-bit codes"
    save_figure(neighbour_gallery(shown, neighbours, title), home, "neighbours.png")


def _read(home: Storage, name: str) -> pa.Table:
    with home.open_input(f"{name}.parquet") as stream:
        return pq.read_table(stream)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _summary(root: Storage, report: QuickstartReport) -> str:
    parts = []
    for track in TRACKS:
        best, cosine = report.results[track.name][0], report.results[track.name][-1]
        parts += [
            f"\n== {track.title}; {BITS} bits, {LABELED:.0%} of the labels",
            format_table(report.results[track.name]),
            f"precision@100 {best['P@100']:.3f} with {best['bytes/item']:.0f} bytes an item, float cosine "
            f"{cosine['P@100']:.3f} with {cosine['bytes/item']:.0f}; one query over HTTP "
            f"{report.single_request_ms[track.name]:.1f} ms",
        ]
    uri = root.uri
    return "\n".join(
        [
            *parts,
            "",
            f"pictures: {uri}/digits/neighbours.png, {uri}/documentation/neighbours.png, "
            f"{uri}/*/evaluation/precision-recall.png",
            f"done in {report.seconds:.0f} s. Next:",
            f"  distindex inspect --uri {uri}/documentation/index",
            f"  distindex query --target {uri}/documentation/index "
            "--texts '[\"draw a histogram\"]' --columns '[label]'",
            f"  distindex serve --index {uri}/documentation/index",
            "  your own Parquet: README.md, section 'The pipeline by hand'",
        ]
    )
