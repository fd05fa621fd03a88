"""Texts to term frequencies: scikit-learn's tokens, a vocabulary counted piece by piece, sparse rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
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


class TermCounts:
    """How often terms occur, counted piece by piece, in any number of places.

    Attributes:
        frequency: occurrences of each term.
        documents: rows that each term stands in.
        rows: rows counted.
    """

    def __init__(self, config: TextConfig) -> None:
        self.config = config
        self.frequency: Counter[str] = Counter()
        self.documents: Counter[str] = Counter()
        self.rows = 0

    def add(self, column: Column) -> None:
        """Count the rows of a column.

        Raises:
            InputError: a row is null.
        """
        analyze = _vectorizer(column.type, self.config).build_analyzer()
        for texts in _texts(column):
            self.rows += len(texts)
            for text in texts:
                if text is None:
                    raise InputError("features: a text is null; put such rows aside first")
                terms = analyze(text)
                self.frequency.update(terms)
                self.documents.update(set(terms))
            self._bound()

    def merge(self, other: TermCounts) -> None:
        """Count the rows that another has counted too."""
        self.frequency.update(other.frequency)
        self.documents.update(other.documents)
        self.rows += other.rows
        self._bound()

    def vocabulary(self) -> Vocabulary:
        """The most frequent terms; of those of equal frequency the first in the order of the alphabet.

        Document-frequency limits as in scikit-learn's CountVectorizer.

        Raises:
            InputError: there is no row, or no term is left.
        """
        if not self.rows:
            raise InputError("features: there is no row to fit them to")
        least, most = self.config.minimum_documents, self.config.maximum_document_fraction * self.rows
        kept = [term for term, count in self.documents.items() if least <= count <= most]
        if not kept:
            raise InputError(
                f"features.text: none of {len(self.documents):,} terms in {self.rows:,} texts is left in the "
                "vocabulary; check minimum_documents, maximum_document_fraction, minimum_length and stop_words"
            )
        kept.sort(key=lambda term: (-self.frequency[term], term))
        terms = sorted(kept[: self.config.vocabulary_size])
        return Vocabulary(terms, [self.documents[term] for term in terms], self.rows)

    def _bound(self) -> None:
        if len(self.frequency) <= MAX_CANDIDATES:
            return
        floor = 0
        while len(self.frequency) > MAX_CANDIDATES // 2:
            floor += 1
            for term in [term for term, count in self.frequency.items() if count <= floor]:
                del self.frequency[term], self.documents[term]


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
