"""Texts to term frequencies: scikit-learn's tokens, a vocabulary counted piece by piece, sparse rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import scipy.sparse

from distindex.config import TextConfig
from distindex.corpus.rows import Column, chunks, is_list
from distindex.errors import InputError

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import CountVectorizer

# Candidate terms that are counted at once, some 200 bytes each. Beyond it the rarest are dropped (lossy
# counting), which a vocabulary of frequent terms does not notice.
MAX_CANDIDATES = 5_000_000

_PIECE_ROWS = 8192


class Vocabulary(NamedTuple):
    """The terms that are kept, sorted, the number of documents that each stands in, and of all documents."""

    terms: list[str]
    documents: list[int]
    rows: int


def fit_vocabulary(columns: Iterable[Column], config: TextConfig) -> Vocabulary:
    """The most frequent terms; of those of equal frequency the first in the order of the alphabet.

    Document-frequency limits as in scikit-learn's CountVectorizer.

    Raises:
        InputError: there is no row, a row is null, or no term is left.
    """
    frequency: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    rows = 0
    for column in columns:
        analyze = _vectorizer(column.type, config).build_analyzer()
        for texts in _texts(column):
            rows += len(texts)
            for text in texts:
                if text is None:
                    raise InputError("features: a text is null; put such rows aside first")
                terms = analyze(text)
                frequency.update(terms)
                documents.update(set(terms))
            if len(frequency) > MAX_CANDIDATES:
                _drop_rarest(frequency, documents)
    if not rows:
        raise InputError("features: there is no row to fit them to")
    most = config.maximum_document_fraction * rows
    kept = [term for term, count in documents.items() if config.minimum_documents <= count <= most]
    if not kept:
        raise InputError(
            f"features.text: none of {len(documents):,} terms in {rows:,} texts is left in the vocabulary; "
            "check minimum_documents, maximum_document_fraction, minimum_length and stop_words"
        )
    kept.sort(key=lambda term: (-frequency[term], term))
    terms = sorted(kept[: config.vocabulary_size])
    return Vocabulary(terms, [documents[term] for term in terms], rows)


def count_terms(column: Column, terms: list[str], config: TextConfig) -> scipy.sparse.csr_matrix:
    """Term frequencies `tf_NV` as float32 CSR with sorted indices."""
    vectorizer = _vectorizer(column.type, config, {term: i for i, term in enumerate(terms)})
    parts = [vectorizer.transform(texts) for texts in _texts(column)]
    if not parts:
        return scipy.sparse.csr_matrix((0, len(terms)), dtype=np.float32)
    return scipy.sparse.csr_matrix(scipy.sparse.vstack(parts, format="csr"), dtype=np.float32)


def _vectorizer(kind: pa.DataType, config: TextConfig, vocabulary: dict[str, int] | None = None) -> CountVectorizer:
    # Here, since importing scikit-learn takes as long as torch, and every process of a job loads this module.
    from sklearn.feature_extraction.text import CountVectorizer

    common: dict[str, Any] = {
        "ngram_range": (1, config.ngrams),
        "vocabulary": vocabulary,
        "dtype": np.float32,
    }
    if is_list(kind):
        # Tokens count as they are: whoever made them has chosen case, length and stop words.
        keep: Callable[[Any], Any] = _as_it_is
        as_is: dict[str, Any] = {"tokenizer": keep, "preprocessor": keep, "token_pattern": None, "lowercase": False}
        return CountVectorizer(**common, **as_is)
    # A token that starts with a digit is no word; `\b` keeps its tail from counting as one.
    pattern = rf"(?u)\b[^\W\d]\w{{{max(0, config.minimum_length - 1)},}}\b"
    stop_words = "english" if config.stop_words == "english" else None
    return CountVectorizer(stop_words=stop_words, token_pattern=pattern, **common)


def _as_it_is(value: Any) -> Any:
    return value


def _texts(column: Column) -> Iterator[list[Any]]:
    for _, chunk in chunks(column):
        for start in range(0, len(chunk), _PIECE_ROWS):
            yield chunk.slice(start, _PIECE_ROWS).to_pylist()


def _drop_rarest(frequency: Counter[str], documents: Counter[str]) -> None:
    floor = 0
    while len(frequency) > MAX_CANDIDATES // 2:
        floor += 1
        for term in [term for term, count in frequency.items() if count <= floor]:
            del frequency[term], documents[term]
