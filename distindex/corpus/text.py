"""Texts to term frequencies: scikit-learn's tokens, a vocabulary counted piece by piece, sparse rows."""

from __future__ import annotations

import dataclasses
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
    """What is kept of the texts.

    Attributes:
        terms: words and runs of words, sorted, and after them runs of characters, sorted.
        words: how many of these are the former.
        documents: number of documents that each stands in.
        rows: of all documents.
    """

    terms: list[str]
    words: int
    documents: list[int]
    rows: int


class Counts:
    """How often some terms occur.

    Attributes:
        frequency: occurrences of each term.
        documents: rows that each term stands in.
    """

    def __init__(self) -> None:
        self.frequency: Counter[str] = Counter()
        self.documents: Counter[str] = Counter()

    def merge(self, other: Counts) -> None:
        self.frequency.update(other.frequency)
        self.documents.update(other.documents)
        self.bound()

    def bound(self) -> None:
        """Drop the rarest where there are too many."""
        if len(self.frequency) <= MAX_CANDIDATES:
            return
        floor = 0
        while len(self.frequency) > MAX_CANDIDATES // 2:
            floor += 1
            for term in [term for term, count in self.frequency.items() if count <= floor]:
                del self.frequency[term], self.documents[term]

    def most_frequent(self, size: int, config: TextConfig, rows: int) -> list[str]:
        """The most frequent terms, sorted, within the document-frequency limits of the config.

        Of those of equal frequency the first in the order of the alphabet.
        """
        least, most = config.minimum_documents, config.maximum_document_fraction * rows
        kept = [term for term, count in self.documents.items() if least <= count <= most]
        kept.sort(key=lambda term: (-self.frequency[term], term))
        return sorted(kept[:size])


class TermCounts:
    """How often terms and runs of characters occur, counted piece by piece, in any number of places.

    Attributes:
        terms: words and runs of words.
        grams: runs of characters within words; empty without `character_ngrams`.
        rows: rows counted.
    """

    def __init__(self, config: TextConfig) -> None:
        self.config = config
        self.terms, self.grams = Counts(), Counts()
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
                self.terms.frequency.update(terms)
                self.terms.documents.update(set(terms))
            self.terms.bound()
            if self.config.character_ngrams:
                self._add_grams(texts, column.type)

    def merge(self, other: TermCounts) -> None:
        """Count the rows that another has counted too."""
        self.terms.merge(other.terms)
        self.grams.merge(other.grams)
        self.rows += other.rows

    def vocabulary(self) -> Vocabulary:
        """The most frequent terms, and after them the most frequent runs of characters.

        Document-frequency limits as in scikit-learn's CountVectorizer.

        Raises:
            InputError: there is no row, or no term is left.
        """
        if not self.rows:
            raise InputError("features: there is no row to fit them to")
        words = self.terms.most_frequent(self.config.vocabulary_size, self.config, self.rows)
        if not words:
            raise InputError(
                f"features.text: none of {len(self.terms.documents):,} terms in {self.rows:,} texts is left in the "
                "vocabulary; check minimum_documents, maximum_document_fraction, minimum_length and stop_words"
            )
        grams = self.grams.most_frequent(self.config.character_vocabulary_size, self.config, self.rows)
        documents = [self.terms.documents[word] for word in words] + [self.grams.documents[gram] for gram in grams]
        return Vocabulary([*words, *grams], len(words), documents, self.rows)

    def _add_grams(self, texts: list[Any], kind: pa.DataType) -> None:
        place: dict[str, int] = {}
        tf_NG = _count_grams(texts, kind, self.config, place, grow=True)
        frequency_G, documents_G = np.asarray(tf_NG.sum(axis=0)).ravel(), tf_NG.getnnz(axis=0)
        self.grams.frequency.update(dict(zip(place, frequency_G.astype(int).tolist(), strict=True)))
        self.grams.documents.update(dict(zip(place, documents_G.tolist(), strict=True)))
        self.grams.bound()


def count_terms(column: Column, terms: list[str], config: TextConfig) -> scipy.sparse.csr_matrix:
    """Term frequencies `tf_NV` as float32 CSR with sorted indices."""
    vectorizer = _vectorizer(column.type, config, {term: i for i, term in enumerate(terms)})
    parts = [vectorizer.transform(texts) for texts in _texts(column)]
    if not parts:
        return scipy.sparse.csr_matrix((0, len(terms)), dtype=np.float32)
    return scipy.sparse.csr_matrix(scipy.sparse.vstack(parts, format="csr"), dtype=np.float32)


def count_grams(column: Column, grams: list[str], config: TextConfig) -> scipy.sparse.csr_matrix:
    """How often each of these runs of characters stands in each row's words, float32 CSR with sorted indices."""
    place = {gram: number for number, gram in enumerate(grams)}
    parts = [_count_grams(texts, column.type, config, place, grow=False) for texts in _texts(column)]
    if not parts:
        return scipy.sparse.csr_matrix((0, len(grams)), dtype=np.float32)
    found = scipy.sparse.csr_matrix(scipy.sparse.vstack(parts, format="csr"), dtype=np.float32)
    found.sort_indices()
    return found


def _count_grams(
    texts: list[Any], kind: pa.DataType, config: TextConfig, place: dict[str, int], grow: bool
) -> scipy.sparse.csr_matrix:
    """Counts `tf_NG` by way of the distinct words, of which there are far fewer than words.

    Args:
        texts: of the rows.
        kind: of the column.
        config: how texts become words, and words runs of characters.
        place: the number of each run.
        grow: give numbers to those that have none yet; else these do not count.
    """
    vectorizer = _vectorizer(kind, dataclasses.replace(config, ngrams=1))
    try:
        tf_NW = scipy.sparse.csr_matrix(vectorizer.fit_transform(texts))
    except ValueError:
        # scikit-learn refuses texts without a word.
        return scipy.sparse.csr_matrix((len(texts), len(place)), dtype=np.float32)
    rows, columns = [], []
    words = vectorizer.get_feature_names_out()
    for number, word in enumerate(words):
        for gram in _grams_of(word, config.character_ngrams):
            column = place.setdefault(gram, len(place)) if grow else place.get(gram, -1)
            if column >= 0:
                rows.append(number)
                columns.append(column)
    ones = np.ones(len(rows), np.float32)
    member_WG = scipy.sparse.csr_matrix((ones, (rows, columns)), (len(words), len(place)))
    return scipy.sparse.csr_matrix(tf_NW @ member_WG)


def _grams_of(word: str, length: int) -> list[str]:
    """The runs of characters of a word between two spaces; all of it where it is shorter.

    Source: Bojanowski, Grave, Joulin, Mikolov, Enriching Word Vectors with Subword Information, TACL 2017, who mark
    the ends by < and >.
    """
    marked = f" {word} "
    return [marked[start : start + length] for start in range(max(1, len(marked) - length + 1))]


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


def stop_words(config: TextConfig) -> list[str]:
    """The words that are left out."""
    if config.stop_words != "english":
        return []
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return sorted(ENGLISH_STOP_WORDS)


def _as_it_is(value: Any) -> Any:
    return value


def _texts(column: Column) -> Iterator[list[Any]]:
    for _, chunk in chunks(column):
        for start in range(0, len(chunk), _PIECE_ROWS):
            yield chunk.slice(start, _PIECE_ROWS).to_pylist()
