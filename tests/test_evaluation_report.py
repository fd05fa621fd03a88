"""Comparisons, tables, reports and pictures, as a user meets them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse
from matplotlib.colors import to_hex
from PIL import Image

from distindex.codes import pack
from distindex.config import DenseConfig, FeaturesConfig
from distindex.corpus.features import fit_features
from distindex.corpus.labels import read_labels
from distindex.errors import InputError
from distindex.evaluation import MethodResult, compare_methods, cosine_score, format_table, table_row
from distindex.evaluation.gallery import OTHER, SAME, UNKNOWN, GalleryItem, neighbour_gallery
from distindex.evaluation.plots import (
    bit_balance_figure,
    precision_at_k_figure,
    precision_over_labels_figure,
    precision_recall_figure,
    save_figure,
)
from distindex.evaluation.report import write_report
from distindex.evaluation.run import Judged, judge
from distindex.hashing.classic import fit_lsh
from distindex.storage import Storage


@pytest.fixture(scope="module")
def results() -> list[MethodResult]:
    random = np.random.default_rng(0)
    label_Q, label_N = random.integers(0, 3, 20), random.integers(0, 3, 90)
    x_QV = (np.eye(3)[label_Q] + 0.2 * random.random((20, 3))).astype(np.float32)
    x_NV = (np.eye(3)[label_N] + 0.2 * random.random((90, 3))).astype(np.float32)
    class_code = pack(random.integers(0, 2, (3, 16)))
    codes = {
        "one code per class": (class_code[label_Q], class_code[label_N]),
        "random": (
            random.integers(0, 256, (20, 2), np.uint8),
            random.integers(0, 256, (90, 2), np.uint8),
        ),
    }
    return compare_methods(
        codes,
        lambda start, stop: label_Q[start:stop, None] == label_N[None],
        ks=(5, 20),
        cosine=(x_QV, x_NV),
    )


def test_logits_add_a_rescored_line_behind_their_method(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    label_Q, label_N = random.integers(0, 3, 20), random.integers(0, 3, 90)
    # The first bit says nothing and has no weight; the others are the class.
    logit_QK = np.concatenate([0.01 * random.standard_normal((20, 1)), 2.0 * np.eye(3)[label_Q] - 1], axis=1)
    logit_QK = np.concatenate([logit_QK] * 2, axis=1).astype(np.float32)
    noise_N1 = random.integers(0, 2, (90, 1))
    bit_NK = np.concatenate([noise_N1, np.eye(3)[label_N], noise_N1, np.eye(3)[label_N]], axis=1)
    codes = {"own": (pack(logit_QK > 0), pack(bit_NK)), "other": (pack(logit_QK < 0), pack(bit_NK))}
    results = compare_methods(
        codes,
        lambda start, stop: label_Q[start:stop, None] == label_N[None],
        ks=(20,),
        logits={"own": logit_QK},
    )
    assert [result.method for result in results] == ["own", "own, rescored", "other"]
    assert [table_row(result)["P@20"] for result in results[:2]] == [1.0, 1.0]
    assert (results[1].bits, results[1].bytes_per_item, results[1].statistics) == (8, 1.0, None)
    assert len(write_report(Storage(str(tmp_path)), results)) == 4


def test_comparison_ranks_methods_as_their_codes_deserve(results: list[MethodResult]) -> None:
    ideal, chance, cosine = results
    assert [result.method for result in results] == ["one code per class", "random", "float cosine"]
    assert ideal.metrics.precision[20] == cosine.metrics.precision[20] == 1.0
    assert 0.2 < chance.metrics.precision[20] < 0.5
    assert ideal.statistics is not None
    assert ideal.statistics.distinct == 3
    assert (ideal.bytes_per_item, cosine.bytes_per_item) == (2.0, 12.0)
    assert cosine.statistics is None
    assert cosine.bits is None


def test_comparison_names_the_method_whose_codes_are_bad() -> None:
    codes = {"broken": (np.zeros((2, 1), np.uint8), np.zeros((2, 2), np.uint8))}
    with pytest.raises(InputError, match="broken: queries of 8 bits"):
        compare_methods(codes, lambda start, stop: np.ones((2, 2), bool))


def test_cosine_of_sparse_and_dense_rows_is_the_same() -> None:
    random = np.random.default_rng(1)
    x_QV = (random.random((4, 30)) * (random.random((4, 30)) < 0.3)).astype(np.float32)
    x_NV = (random.random((7, 30)) * (random.random((7, 30)) < 0.3)).astype(np.float32)
    x_NV[2] = 0
    dense = cosine_score(x_QV, x_NV)(1, 4)
    sparse = cosine_score(scipy.sparse.csr_matrix(x_QV), scipy.sparse.csr_matrix(x_NV))(1, 4)
    with np.errstate(invalid="ignore"):
        oracle = (x_QV @ x_NV.T) / np.linalg.norm(x_QV, axis=1)[:, None] / np.linalg.norm(x_NV, axis=1)
    assert dense == pytest.approx(np.nan_to_num(oracle)[1:], abs=1e-6)
    assert sparse == pytest.approx(dense, abs=1e-6)
    with pytest.raises(InputError, match="widths differ"):
        cosine_score(x_QV, x_NV[:, :5])
    with pytest.raises(InputError, match="both be sparse"):
        cosine_score(x_QV, scipy.sparse.csr_matrix(x_NV))


TABLES = {
    "numbers": (
        [{"method": "a", "P@10": 0.5, "rows": 12345}, {"method": "longer", "P@10": 1.0, "rows": np.int64(7)}],
        "method    P@10    rows\n------  ------  ------\na       0.5000  12,345\nlonger  1.0000       7",
    ),
    "gaps": (
        [{"a": 1, "b": None}, {"a": None, "c": 2.5}],
        "  a      c\n---  -----\n  1      -\n  -  2.500",
    ),
    "scales": (
        [{"x": 1536.0, "y": 12.345, "z": 123.4}, {"x": 8.0, "y": 0.1, "z": 1.0}],
        "    x      y      z\n-----  -----  -----\n1,536  12.35  123.4\n    8   0.10    1.0",
    ),
    "several lines in a cell": (
        [{"text": "two\nlines", "yes": True}],
        "text       yes\n---------  ----\ntwo lines  True",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_table(name: str) -> None:
    rows, expected = TABLES[name]
    assert format_table(rows) == expected


def test_markdown_table_escapes_bars() -> None:
    assert format_table([{"a|b": "c|d", "n": 1}], "markdown") == ("| a\\|b |   n |\n| ---- | --: |\n| c\\|d |   1 |")


def test_table_of_methods_has_all_metrics(results: list[MethodResult]) -> None:
    lines = format_table([table_row(result) for result in results]).splitlines()
    assert len(lines) == 5
    for column in ("method", "bits", "bytes/item", "P@5", "R@20", "mAP@20", "distinct codes", "largest bucket"):
        assert column in lines[0]
    assert "ms/query" not in lines[0]
    assert lines[4].startswith("float cosine")


def test_report_holds_every_figure_and_readable_pictures(tmp_path: Path, results: list[MethodResult]) -> None:
    storage = Storage(str(tmp_path / "report"))
    uris = write_report(storage, results, {"hasher": "h"})
    assert [Path(uri).name for uri in uris] == [
        "metrics.json",
        "precision-recall.png",
        "precision-at-k.png",
        "bit-balance.png",
    ]
    written = storage.read_json("metrics.json")
    assert written["format_version"] == 1
    assert written["details"] == {"hasher": "h"}
    for stored, result in zip(written["methods"], results, strict=True):
        assert stored["method"] == result.method
        assert stored["metrics"]["precision"]["20"] == result.metrics.precision[20]
    assert written["methods"][0]["codes"]["distinct"] == 3
    assert written["methods"][2]["codes"] is None
    for name in storage.names():
        if name.endswith(".png"):
            colours = np.asarray(Image.open(io.BytesIO(storage.read_bytes(name))).convert("RGB"))
            assert len(np.unique(colours.reshape(-1, 3), axis=0)) > 20


def test_report_refuses_two_methods_of_one_name(tmp_path: Path, results: list[MethodResult]) -> None:
    with pytest.raises(InputError, match="different names"):
        write_report(Storage(str(tmp_path)), [results[0], results[0]])
    assert not list(tmp_path.iterdir())


def test_lines_show_the_measured_values(results: list[MethodResult]) -> None:
    metrics = {result.method: result.metrics for result in results}
    lines = precision_at_k_figure(metrics).axes[0].get_lines()
    assert [line.get_label() for line in lines] == list(metrics)
    for line, metric in zip(lines, metrics.values(), strict=True):
        assert list(line.get_xdata()) == [5, 20]  # type: ignore[arg-type]
        assert list(line.get_ydata()) == list(metric.precision.values())  # type: ignore[arg-type]
    curves = precision_recall_figure(metrics).axes[0].get_lines()
    assert [list(line.get_ydata()) for line in curves] == [  # type: ignore[arg-type]
        metric.curve.precision for metric in metrics.values()
    ]


def test_bars_show_the_share_of_ones(results: list[MethodResult]) -> None:
    statistics = {result.method: result.statistics for result in results if result.statistics}
    figure = bit_balance_figure(statistics)
    for axes, codes in zip(figure.axes, statistics.values(), strict=True):
        assert [bar.get_height() for bar in axes.patches] == list(codes.bit_balance_K)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="at least one method"):
        bit_balance_figure({})


def test_same_figures_give_the_same_file(tmp_path: Path, results: list[MethodResult]) -> None:
    storage = Storage(str(tmp_path))
    for name in ("a.png", "b.png"):
        save_figure(precision_at_k_figure({"m": results[0].metrics}), storage, name)
    assert storage.read_bytes("a.png") == storage.read_bytes("b.png")


def test_image_gallery_frames_tell_same_from_other_labels() -> None:
    image = np.arange(64).reshape(8, 8)
    colour_image = np.zeros((8, 8, 3), np.uint8)
    query = GalleryItem(image, "7")
    line = [
        GalleryItem(image, "7", 0),
        GalleryItem(colour_image, "1", 1),
        GalleryItem(image, None, 2),
        GalleryItem(image, ["1", "7"], 3),
    ]
    figure = neighbour_gallery([query, query], [line, line[:1]])
    frames = [to_hex(axes.spines["top"].get_edgecolor()).upper() for axes in figure.axes[1:5]]
    assert frames == [SAME, OTHER, UNKNOWN, SAME]
    assert [axes.get_title() for axes in figure.axes[:5]] == [
        "query: 7",
        "7, 0 bits",
        "1, 1 bit",
        "2 bits",
        "1, 7, 3 bits",
    ]
    # Ten places, of which the second query fills two.
    assert sum(bool(axes.images) for axes in figure.axes) == 7


def test_long_labels_leave_the_distance_readable() -> None:
    image = np.zeros((4, 4))
    figure = neighbour_gallery([GalleryItem(image, "a")], [[GalleryItem(image, "education-science", 100)]])
    assert figure.axes[1].get_title() == "education..., 100 bits"


def test_text_gallery_shows_texts_as_they_are_and_clips_long_ones(tmp_path: Path) -> None:
    query = GalleryItem("a $10 bill and a $5 bill", "money")
    line = [GalleryItem("word " * 100, "money", 4), GalleryItem("lines\nof text", "other", 17)]
    figure = neighbour_gallery([query], [line], title="Texts")
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert shown[:4] == ["Texts", "query", "money", "a $10 bill and a $5 bill"]
    assert shown[4:6] == ["4 bits", "money"]
    assert shown[6].endswith("...")
    assert len(shown[6]) <= 92
    assert shown[7:] == ["17 bits", "other", "lines of text"]
    save_figure(figure, Storage(str(tmp_path)), "texts.png")
    assert (tmp_path / "texts.png").stat().st_size > 1000


def test_gallery_refuses_what_it_cannot_show() -> None:
    image, text = GalleryItem(np.zeros((2, 2)), "a"), GalleryItem("text", "a")
    for queries, neighbours in (([], []), ([image], []), ([image], [[text]])):
        with pytest.raises(InputError, match="gallery"):
            neighbour_gallery(queries, neighbours)


def test_a_classic_hasher_is_not_replaced_by_the_baseline_of_its_name() -> None:
    random = np.random.default_rng(0)
    x_NV = random.standard_normal((300, 24)).astype(np.float32)
    features = fit_features(FeaturesConfig(dense=DenseConfig("none")), "dense", [pa.array(list(x_NV))])
    labels = read_labels(pa.array((x_NV[:, 0] > 0).astype(int)))
    database, queries = Judged(x_NV, labels), Judged(x_NV[:50] + 0.1, labels.take(np.arange(50)))
    hasher = fit_lsh(features, x_NV, "vector", 16, seed=7)
    alone = judge(hasher, queries, database, [10], 2, baselines=False)
    beside = judge(hasher, queries, database, [10], 2, baselines=True)
    assert [result.method for result in beside] == ["lsh", "lsh, rescored", "pca-sign", "itq", "float cosine"]
    assert beside[0].metrics == alone[0].metrics


def test_curves_over_the_labels_show_every_mean_and_every_level() -> None:
    curves = {"ours": {1.0: (0.8, 0.01), 0.1: (0.6, 0.02)}, "theirs": {0.1: (0.3, 0.0)}}
    axes = precision_over_labels_figure(curves, {"pca-sign": 0.25}, 100, "digits, 16 bits").axes[0]
    lines = {str(line.get_label()): np.asarray(line.get_xydata()).tolist() for line in axes.get_lines()}
    assert lines["ours"] == [[0.1, 0.6], [1.0, 0.8]]
    assert lines["theirs"] == [[0.1, 0.3]]
    assert {y for _, y in lines["pca-sign (no labels)"]} == {0.25}
    assert "precision@100" in axes.get_ylabel()
    assert (axes.get_ylim(), axes.get_xscale()) == ((0, 1.02), "linear")
    close = precision_over_labels_figure(curves, {}, 100, "digits, 16 bits", close=True).axes[0]
    assert (close.get_xscale(), list(close.get_xticks())) == ("log", [0.1, 1.0])
    assert 0.2 < close.get_ylim()[0] < 0.3 < 0.81 < close.get_ylim()[1] < 0.9
