# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# (scikit-learn and scipy declare narrower types than they accept and return)

from __future__ import annotations

import dataclasses
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.preprocessing import StandardScaler, normalize

from distindex.config import DenseConfig, FeaturesConfig, TextConfig
from distindex.corpus import text
from distindex.corpus.features import DenseFeatures, Features, Fit, TextFeatures, fit_features
from distindex.corpus.words import WordCounter
from distindex.errors import DamagedError, FormatError, InputError
from distindex.storage import Storage

WORDS = ["apple", "Banana", "cherry", "the", "and", "3rd", "grape42", "été", "2024", "plum_tree", "x", "of", "apple"]
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), min_size=1, max_size=25)


def random_vectors(rows: int, width: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.standard_normal((rows, width)) * random.uniform(0.1, 30, width) + 5).astype(np.float32)


def column_of(x_NV: np.ndarray, kind: pa.DataType, pieces: int = 3) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(list(part), kind) for part in np.array_split(x_NV, pieces)], kind)


KINDS = [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float32(), 6), pa.list_(pa.float16())]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", ["standardize", "unit", "none"])
def test_dense_against_sklearn(tmp_path: Path, kind: pa.DataType, scale: Any) -> None:
    x_NV = random_vectors(50, 6)
    if kind.value_type == pa.float16():
        x_NV = x_NV.astype(np.float16)
    x_NV[:, 3] = 0.125
    x_NV[7] = 0
    column = column_of(x_NV, kind)
    pieces = [column.slice(0, 1), column.slice(1, 30), column.slice(31)]
    features = fit_features(FeaturesConfig(dense=DenseConfig(scale)), "dense", pieces)
    wide_NV = x_NV.astype(np.float64)
    expected = {
        "standardize": lambda: StandardScaler().fit_transform(wide_NV),
        "unit": lambda: normalize(wide_NV),
        "none": lambda: wide_NV,
    }[scale]()
    out_NV = features.transform(column)
    assert out_NV.dtype == np.float32
    assert out_NV.flags.c_contiguous
    np.testing.assert_allclose(out_NV, expected, rtol=2e-5, atol=2e-6)
    np.testing.assert_array_equal(features.target(out_NV), out_NV)

    storage = Storage(str(tmp_path))
    loaded = Features.load(storage, features.save(storage))
    np.testing.assert_array_equal(loaded.transform(column), out_NV)
    np.testing.assert_array_equal(loaded.transform(column.slice(31)), out_NV[31:])


def test_a_large_constant_is_not_amplified() -> None:
    x_NV = np.full((1000, 1), 0.1, np.float32)
    features = fit_features(FeaturesConfig(), "dense", [column_of(x_NV, KINDS[0])])
    np.testing.assert_allclose(features.transform(column_of(x_NV, KINDS[0])), 0, atol=1e-6)


def test_small_deviations_survive_a_large_mean() -> None:
    x_NV = (1000 + np.random.default_rng(0).standard_normal((4000, 1)) * 0.1).astype(np.float32)
    features = fit_features(
        FeaturesConfig(), "dense", [column_of(x_NV, KINDS[0], pieces=40).slice(i * 100, 100) for i in range(40)]
    )
    assert isinstance(features, DenseFeatures)
    np.testing.assert_allclose(features.deviation_V, x_NV.astype(np.float64).std(axis=0), rtol=1e-4)


def test_dense_refuses_bad_rows_and_other_columns() -> None:
    features = fit_features(FeaturesConfig(), "dense", [column_of(random_vectors(5, 6), KINDS[0])])
    with pytest.raises(InputError, match="row 1: the feature column has 5 dimensions, expected 6"):
        features.transform(pa.array([[0.0] * 6, [0.0] * 5]))
    with pytest.raises(InputError, match="does not hold dense features"):
        features.transform(pa.array(["text"]))
    with pytest.raises(InputError, match="features of type int64"):
        features.bad_rows(pa.array([1]))
    with pytest.raises(InputError, match="the first vector is null"):
        fit_features(FeaturesConfig(), "dense", [pa.array([None], KINDS[0])])
    with pytest.raises(InputError, match="no row to fit"):
        fit_features(FeaturesConfig(), "dense", [])
    with pytest.raises(InputError, match=r"features.kind: text, but the feature column holds dense"):
        fit_features(FeaturesConfig(kind="text"), "dense", [])


def sklearn_vectorizer(config: TextConfig) -> CountVectorizer:
    plain = CountVectorizer(token_pattern=r"(?u)\b\w+\b").build_analyzer()
    stop = CountVectorizer(stop_words="english").get_stop_words() if config.stop_words == "english" else set()

    def analyze(document: str) -> list[str]:
        words = [
            word
            for word in plain(document)
            if len(word) >= config.minimum_length and not word[0].isdigit() and word not in stop
        ]
        return [" ".join(words[i : i + n]) for n in range(1, config.ngrams + 1) for i in range(len(words) - n + 1)]

    return CountVectorizer(
        analyzer=analyze, min_df=config.minimum_documents, max_df=float(config.maximum_document_fraction)
    )


@settings(max_examples=60, deadline=None)
@given(
    TEXTS,
    st.integers(1, 3),
    st.sampled_from(["english", "none"]),
    st.integers(1, 5),
    st.sampled_from([0.5, 1.0]),
    st.sampled_from(["tf-idf", "log"]),
)
def test_text_against_sklearn(
    documents: list[str], ngrams: int, stop: Any, length: int, fraction: float, weighting: Any
) -> None:
    config = TextConfig(
        ngrams=ngrams,
        stop_words=stop,
        minimum_length=length,
        maximum_document_fraction=fraction,
        weighting=weighting,
    )
    column = pa.chunked_array([documents[:3], documents[3:]], pa.string())
    oracle = sklearn_vectorizer(config)
    try:
        tf_NV = oracle.fit_transform(documents)
    except ValueError:
        with pytest.raises(InputError, match="terms"):
            fit_features(FeaturesConfig(text=config), "text", [column])
        return
    features = fit_features(FeaturesConfig(text=config), "text", [column.slice(0, 2), column.slice(2)])
    assert isinstance(features, TextFeatures)
    assert features.terms == oracle.get_feature_names_out().tolist()
    x_NV = features.transform(column)
    assert scipy.sparse.issparse(x_NV)
    assert x_NV.dtype == np.float32
    if weighting == "log":
        worth_NV = tf_NV.toarray()
        np.testing.assert_allclose(x_NV.toarray(), np.log1p(worth_NV), rtol=1e-6)
    else:
        worth_NV = TfidfTransformer(sublinear_tf=True).fit_transform(tf_NV).toarray()
        np.testing.assert_allclose(x_NV.toarray(), 10 * worth_NV, rtol=1e-5)
    sum_N1 = worth_NV.sum(axis=1, keepdims=True)
    expected = np.divide(worth_NV, sum_N1, where=sum_N1 > 0, out=np.zeros(tf_NV.shape))
    target_NV = features.target(x_NV)
    assert target_NV.dtype == np.float32
    np.testing.assert_allclose(target_NV.toarray(), expected, rtol=1e-5)


def test_vocabulary_keeps_the_most_frequent(tmp_path: Path) -> None:
    column = pa.array(["wolf wolf wolf bear", "bear lynx", "otter lynx"], pa.large_string())
    config = TextConfig(vocabulary_size=2, maximum_document_fraction=1.0)
    features = fit_features(FeaturesConfig(text=config), "text", [column])
    assert isinstance(features, TextFeatures)
    # bear and lynx occur twice each: the alphabet decides.
    assert features.terms == ["bear", "wolf"]
    storage = Storage(str(tmp_path))
    description = features.save(storage)
    loaded = Features.load(storage, description)
    assert (loaded.transform(column) != features.transform(column)).nnz == 0
    with pytest.raises(DamagedError, match=r"features\.arrow"):
        Features.load(storage, {**description, "width": 3})
    storage.write_bytes("features.arrow", b"nonsense")
    with pytest.raises(DamagedError, match=r"features\.arrow"):
        Features.load(storage, description)
    with pytest.raises(FormatError, match="'sound'"):
        Features.load(storage, {**description, "kind": "sound"})


def test_text_features_of_before_there_were_weights(tmp_path: Path) -> None:
    storage, column = Storage(str(tmp_path)), pa.array(["wolf wolf bear", "lynx"])
    fitted = fit_features(FeaturesConfig(text=TextConfig(weighting="log")), "text", [column])
    description = fitted.save(storage)
    del description["text"]["weighting"]
    loaded = Features.load(storage, description)
    assert (loaded.transform(column) != fitted.transform(column)).nnz == 0


@settings(max_examples=40, deadline=None)
@given(TEXTS, st.integers(2, 6), st.sampled_from([1, 3]), st.sampled_from(["tf-idf", "log"]))
def test_character_ngrams_against_sklearn(documents: list[str], length: int, ngrams: int, weighting: Any) -> None:
    """Beside the terms, scikit-learn's char_wb over the words that are left of a text; the decoder has the terms."""
    config = TextConfig(ngrams=ngrams, maximum_document_fraction=1.0, weighting=weighting)
    column = pa.chunked_array([documents[:3], documents[3:]], pa.string())
    words = sklearn_vectorizer(dataclasses.replace(config, ngrams=1)).build_analyzer()
    oracle = CountVectorizer(analyzer="char_wb", ngram_range=(length, length), lowercase=False)
    try:
        tf_NG = oracle.fit_transform([" ".join(words(document)) for document in documents])
    except ValueError:
        return
    fit = Fit(FeaturesConfig(text=dataclasses.replace(config, character_ngrams=length)), "text")
    other = Fit(fit.config, "text")
    fit.add(column.slice(0, 2))
    other.add(column.slice(2))
    fit.merge(other)
    features = fit.features()
    plain = fit_features(FeaturesConfig(text=config), "text", [column])
    assert isinstance(features, TextFeatures)
    assert isinstance(plain, TextFeatures)
    assert features.terms == [*plain.terms, *oracle.get_feature_names_out().tolist()]
    assert features.target_width == plain.width
    if weighting == "log":
        gram_NG, share = np.log1p(tf_NG.toarray()), 1.0
    else:
        gram_NG, share = 10 * TfidfTransformer(sublinear_tf=True).fit_transform(tf_NG).toarray(), np.sqrt(0.5)
    x_NV = features.transform(column)
    assert x_NV.dtype == np.float32
    expected_NV = share * np.hstack([plain.transform(column).toarray(), gram_NG])
    np.testing.assert_allclose(x_NV.toarray(), expected_NV, rtol=1e-5, atol=1e-7)
    target_NV, plain_NV = features.target(x_NV), plain.target(plain.transform(column))
    np.testing.assert_allclose(target_NV.toarray(), plain_NV.toarray(), rtol=1e-5)


def test_character_ngrams_speak_of_words_that_were_not_seen(tmp_path: Path) -> None:
    column = pa.array(["festival music", "devices driver festivals"])
    config = TextConfig(character_ngrams=4, maximum_document_fraction=1.0, character_vocabulary_size=20)
    features = fit_features(FeaturesConfig(text=config), "text", [column])
    assert isinstance(features, TextFeatures)
    assert (features.words, features.width) == (5, 25)
    x_NV = features.transform(pa.array(["festivalfinder", "zzz"])).toarray()
    assert not x_NV[:, :5].any()
    assert set(np.array(features.terms)[x_NV[0] > 0]) >= {" fes", "fest", "esti", "stiv", "tiva", "ival"}
    assert not x_NV[1].any()
    storage = Storage(str(tmp_path))
    for loaded in (Features.load(storage, features.save(storage)), pickle.loads(pickle.dumps(features))):
        assert loaded.target_width == 5
        assert not any(isinstance(value, WordCounter) for value in vars(loaded).values())
        assert (loaded.transform(column) != features.transform(column)).nnz == 0


def test_token_lists_count_as_they_are() -> None:
    tokens: list[list[str]] = [["The", "3rd", "The"], [], ["a b", "The"]]
    features = fit_features(
        FeaturesConfig(text=TextConfig(maximum_document_fraction=1.0, weighting="log")), "text", [pa.array(tokens)]
    )
    assert isinstance(features, TextFeatures)
    assert features.terms == ["3rd", "The", "a b"]
    tf_NV = np.expm1(features.transform(pa.array(tokens)).toarray())
    np.testing.assert_allclose(tf_NV, [[1, 2, 0], [0, 0, 0], [0, 1, 1]], rtol=1e-6)
    bad = features.bad_rows(pa.array([["x"], None, ["y", None], []]))
    assert bad == [(1, "is null"), (2, "holds a null token")]
    assert features.bad_rows(pa.array(["text", None])) == [(1, "is null")]


def test_rare_candidates_are_dropped_before_memory_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_CANDIDATES", 1000)
    monkeypatch.setattr(text, "_PIECE_ROWS", 100)
    documents = [f"common word{i % 5} unique{'abcdefghij'[i % 10]}{i}" for i in range(5000)]
    config = TextConfig(vocabulary_size=6, maximum_document_fraction=1.0)
    counts = text.TermCounts(config)
    counts.add(pa.array(documents))
    vocabulary = counts.vocabulary()
    assert vocabulary.terms == ["common", "word0", "word1", "word2", "word3", "word4"]


def test_wide_documents_stay_sparse() -> None:
    """20,000 documents over 10,000 terms would take 800 MB as dense rows."""
    random = np.random.default_rng(0)
    vocabulary = np.array([f"term{i:05d}" for i in range(10_000)])
    tokens = pa.array(vocabulary[random.integers(0, 10_000, 200_000)])
    column = pa.ListArray.from_arrays(np.arange(0, 200_001, 10, dtype=np.int32), tokens)
    features = fit_features(FeaturesConfig(), "text", [column])
    assert features.width == 10_000
    tracemalloc.start()
    x_NV = features.transform(column)
    features.target(x_NV)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert x_NV.shape == (20_000, 10_000)
    assert peak < 100e6
