"""Features: the fitted recipe that turns a column into the encoder's input, saved as Arrow and JSON."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy.sparse

from distindex.config import FeaturesConfig, ImageConfig, TextConfig
from distindex.corpus import images, text
from distindex.corpus.moments import Moments
from distindex.corpus.rows import BadRows, Column, ColumnCheck, FeatureKind, chunks
from distindex.errors import DamagedError, FormatError, InputError
from distindex.storage import Storage

if TYPE_CHECKING:
    from distindex.corpus.words import WordCounter

Matrix: TypeAlias = "npt.NDArray[np.float32] | npt.NDArray[np.uint8] | scipy.sparse.csr_matrix"

STATE_FILE = "features.arrow"
_TEXT_LENGTH = np.float32(10)


class Features(abc.ABC):
    """A fitted recipe.

    Attributes:
        kind: dense, text or image.
        width: number of input features V.
    """

    kind: FeatureKind
    width: int

    @abc.abstractmethod
    def transform(self, column: Column, checked: bool = False) -> Matrix:
        """The encoder's input `x_NV`: float32, dense and contiguous, or CSR for texts; for images uint8 pixels.

        Args:
            column: the feature column.
            checked: it is known to have no bad row, and is not looked through again.

        Raises:
            InputError: a row is bad (`bad_rows`), or the column has another type.
        """

    @abc.abstractmethod
    def target(self, x_NV: Matrix) -> Matrix:
        """What the decoder reconstructs, from the encoder's input: `target_width` columns of the same layout."""

    @property
    def target_width(self) -> int:
        """How many numbers the decoder reconstructs."""
        return self.width

    def network_input(self, x_NV: Matrix) -> Matrix:
        """The numbers that the network reads: `x_NV` itself, but for images standardized pixels."""
        return x_NV

    @abc.abstractmethod
    def save(self, storage: Storage) -> dict[str, Any]:
        """Write the fitted state; the JSON description it returns names the files it wrote (`files`)."""

    def bad_rows(self, column: Column) -> BadRows:
        """The rows that cannot be transformed, ascending, each with a reason that completes `column "x" ...`.

        Raises:
            InputError: the column's type does not hold features of this kind at all.
        """
        if self.kind == "text":
            return ColumnCheck("text").bad_rows(column)
        return ColumnCheck("dense", self.width).bad_rows(column)

    def _refuse_bad_rows(self, column: Column) -> None:
        bad = self.bad_rows(column)
        if bad:
            raise InputError(f"row {bad[0][0]}: the feature column {bad[0][1]}")

    @staticmethod
    def load(storage: Storage, description: Mapping[str, Any]) -> Features:
        """Load what `save` wrote and described.

        Raises:
            FormatError: features of a kind that this release does not know.
            DamagedError: the state does not fit its description.
        """
        kind = description.get("kind")
        if kind == "dense":
            return DenseFeatures.read(storage, description)
        if kind == "text":
            return TextFeatures.read(storage, description)
        if kind == "image":
            return ImageFeatures.read(storage, description)
        raise FormatError(f"{storage.uri}: features of kind {kind!r}; this release knows dense, text and image")


class DenseFeatures(Features):
    """Vectors of one width, standardized, scaled to length 1, or as they are.

    Attributes:
        scale: standardize, unit or none.
        mean_V: float32, subtracted when standardizing.
        deviation_V: float32, divided by when standardizing; 1 for a constant dimension.
    """

    kind: FeatureKind = "dense"

    def __init__(
        self,
        width: int,
        scale: str,
        mean_V: npt.NDArray[np.float32] | None = None,
        deviation_V: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self.width = width
        self.scale = scale
        self.mean_V = np.zeros(width, np.float32) if mean_V is None else mean_V
        self.deviation_V = np.ones(width, np.float32) if deviation_V is None else deviation_V

    def transform(self, column: Column, checked: bool = False) -> npt.NDArray[np.float32]:
        if not checked:
            self._refuse_bad_rows(column)
        x_NV = np.empty((len(column), self.width), np.float32)
        for first, chunk in chunks(column):
            x_NV[first : first + len(chunk)] = _vectors(chunk, self.width)
        if self.scale == "standardize":
            x_NV -= self.mean_V
            x_NV /= self.deviation_V
        elif self.scale == "unit":
            # In float64: the squares of large float32 numbers overflow.
            length_N1 = np.sqrt(np.einsum("nv,nv->n", x_NV, x_NV, dtype=np.float64))[:, None]
            np.divide(x_NV, length_N1, out=x_NV, where=length_N1 > 0, casting="same_kind")
        return x_NV

    def target(self, x_NV: Matrix) -> Matrix:
        """The input itself."""
        return x_NV

    def save(self, storage: Storage) -> dict[str, Any]:
        description = {"kind": self.kind, "width": self.width, "scale": self.scale, "files": []}
        if self.scale == "standardize":
            state = {"mean": pa.array(self.mean_V), "deviation": pa.array(self.deviation_V)}
            _write_state(storage, pa.table(state))
            description["files"] = [STATE_FILE]
        return description

    @classmethod
    def read(cls, storage: Storage, description: Mapping[str, Any]) -> DenseFeatures:
        width, scale = int(description["width"]), str(description["scale"])
        if scale not in ("standardize", "unit", "none"):
            raise FormatError(f"{storage.uri}: scale {scale!r} of dense features is not known to this release")
        if scale != "standardize":
            return cls(width, scale)
        state = _read_state(storage, ("mean", "deviation"), width)
        return cls(width, scale, *(state.column(name).to_numpy() for name in ("mean", "deviation")))


class TextFeatures(Features):
    """Terms of a learned vocabulary, sparse from end to end, and runs of characters where they are asked for.

    With weighting tf-idf a row is (1 + log tf) (1 + log((1 + rows) / (1 + df))), scikit-learn's with sublinear
    frequencies, scaled to length 10, that of a standardized vector of 100 dimensions; with weighting log it is
    log(1 + tf) as it is. Runs of characters are weighted likewise; then they and the terms, each for themselves, are
    scaled to length 10 / sqrt(2). The decoder reconstructs the terms alone.

    Attributes:
        terms: the vocabulary, sorted, and after it the runs of characters, sorted; term j is input feature j.
        words: how many are of the vocabulary.
        config: how texts become terms, and terms features.
        idf_V: float32, the weight of each term; None with weighting log.
    """

    kind: FeatureKind = "text"

    def __init__(
        self,
        terms: list[str],
        config: TextConfig,
        idf_V: npt.NDArray[np.float32] | None = None,
        words: int | None = None,
    ) -> None:
        self.terms = terms
        self.words = len(terms) if words is None else words
        self.config = config
        self.idf_V = idf_V
        self.width = len(terms)

    @property
    def target_width(self) -> int:
        return self.words

    def transform(self, column: Column, checked: bool = False) -> scipy.sparse.csr_matrix:
        if not checked:
            self._refuse_bad_rows(column)
        word_NW, gram_NG = self._counter.count(column)
        if not self.config.character_ngrams:
            return self._weighted(word_NW, 0, _TEXT_LENGTH)
        length = _TEXT_LENGTH * np.float32(np.sqrt(0.5))
        parts = [self._weighted(word_NW, 0, length), self._weighted(gram_NG, self.words, length)]
        return scipy.sparse.csr_matrix(scipy.sparse.hstack(parts, format="csr"), dtype=np.float32)

    @functools.cached_property
    def _counter(self) -> WordCounter:
        # It takes as long to import as the rest of this module, and vectors have no use for it.
        from distindex.corpus.words import WordCounter

        return WordCounter(self.terms[: self.words], self.terms[self.words :], self.config)

    def __getstate__(self) -> dict[str, Any]:
        # Made anew where it is needed: what Ray hands on is read-only, and numba would compile once more for it.
        return {name: value for name, value in vars(self).items() if name != "_counter"}

    def _weighted(
        self, tf_NV: scipy.sparse.csr_matrix, first: int, length: npt.NDArray[np.float32] | np.float32
    ) -> scipy.sparse.csr_matrix:
        """Frequencies of the terms from `first` on, weighted, and scaled to a length where there are idf weights."""
        if self.idf_V is None:
            np.log1p(tf_NV.data, out=tf_NV.data)
            return tf_NV
        # It takes as long to import as torch, and vectors have no use for it.
        from sklearn.preprocessing import normalize

        tf_NV.data = (1 + np.log(tf_NV.data)) * self.idf_V[first + tf_NV.indices]
        return normalize(tf_NV, copy=False) * length

    def target(self, x_NV: Matrix) -> scipy.sparse.csr_matrix:
        """What each word of a row is worth, over the row's sum: tf-idf weights, or term frequencies with log.

        Zero for a document without a known word.
        """
        target_NV = scipy.sparse.csr_matrix(x_NV if self.words == self.width else x_NV[:, : self.words], copy=True)  # type: ignore[index]
        if self.idf_V is None:
            # Term frequencies are whole numbers, so rounding undoes the logarithm exactly.
            target_NV.data = np.rint(np.expm1(target_NV.data))
        sum_N = np.asarray(target_NV.sum(axis=1)).ravel()
        target_NV.data /= np.repeat(np.where(sum_N > 0, sum_N, 1), np.diff(target_NV.indptr))
        return target_NV

    def save(self, storage: Storage) -> dict[str, Any]:
        state = {"term": pa.array(self.terms, pa.string())}
        if self.idf_V is not None:
            state["idf"] = pa.array(self.idf_V)
        _write_state(storage, pa.table(state))
        text_config = dataclasses.asdict(self.config)
        sizes = {"width": self.width, "words": self.words}
        return {"kind": self.kind, **sizes, "text": text_config, "files": [STATE_FILE]}

    @classmethod
    def read(cls, storage: Storage, description: Mapping[str, Any]) -> TextFeatures:
        try:
            # Hashers of before there was a choice.
            config = TextConfig(**{"weighting": "log", **description["text"]})
        except TypeError as error:
            raise FormatError(
                f"{storage.uri}: text features with settings unknown to this release ({error})"
            ) from error
        weighted = config.weighting == "tf-idf"
        state = _read_state(storage, ("term", "idf") if weighted else ("term",), int(description["width"]))
        idf_V = state.column("idf").to_numpy() if weighted else None
        # Hashers of before there were runs of characters have words alone.
        return cls(state.column("term").to_pylist(), config, idf_V, description.get("words"))


class ImageFeatures(Features):
    """Images of one size, kept as uint8 pixels; the network standardizes them batch by batch.

    Attributes:
        config: their size and channels.
        mean_C: float32, mean of each channel's pixels, which lie in [0, 1].
        deviation_C: float32, deviation of each channel's pixels; 1 for a constant channel.
    """

    kind: FeatureKind = "image"

    def __init__(
        self,
        config: ImageConfig,
        mean_C: npt.NDArray[np.float32] | None = None,
        deviation_C: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self.config = config
        self.width = config.height * config.width * config.channels
        self.mean_C = np.zeros(config.channels, np.float32) if mean_C is None else mean_C
        self.deviation_C = np.ones(config.channels, np.float32) if deviation_C is None else deviation_C
        self._decoded: tuple[pa.ChunkedArray, images.Pixels, BadRows] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decoded": None}

    def transform(self, column: Column, checked: bool = False) -> npt.NDArray[np.uint8]:
        if not checked:
            self._refuse_bad_rows(column)
        return self._decode(column)[0]

    def bad_rows(self, column: Column) -> BadRows:
        return self._decode(column)[1]

    def target(self, x_NV: Matrix) -> Matrix:
        """The pixels themselves; the decoder's likelihood decides on their scale."""
        return x_NV

    def network_input(self, x_NV: Matrix) -> npt.NDArray[np.float32]:
        """Standardized pixels `x_NV`, float32: four times the memory of the pixels."""
        channels = self.config.channels
        scale_V = np.tile(1 / (255 * self.deviation_C), self.width // channels).astype(np.float32)
        shift_V = np.tile(self.mean_C / self.deviation_C, self.width // channels)
        standard_NV = np.multiply(np.asarray(x_NV), scale_V, dtype=np.float32)
        standard_NV -= shift_V
        return standard_NV

    def save(self, storage: Storage) -> dict[str, Any]:
        _write_state(storage, pa.table({"mean": pa.array(self.mean_C), "deviation": pa.array(self.deviation_C)}))
        settings = dataclasses.asdict(self.config)
        return {"kind": self.kind, "width": self.width, "image": settings, "files": [STATE_FILE]}

    @classmethod
    def read(cls, storage: Storage, description: Mapping[str, Any]) -> ImageFeatures:
        try:
            config = ImageConfig(**description["image"])
        except TypeError as error:
            raise FormatError(
                f"{storage.uri}: image features with settings unknown to this release ({error})"
            ) from error
        state = _read_state(storage, ("mean", "deviation"), config.channels)
        return cls(config, *(state.column(name).to_numpy() for name in ("mean", "deviation")))

    def _decode(self, column: Column) -> tuple[images.Pixels, BadRows]:
        # Rows are checked, then fitted or transformed: decoding dominates, so the last column is kept.
        column = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
        last = self._decoded
        if last is None or not last[0].equals(column):
            last = self._decoded = (column, *images.decode(column, self.config))
        return last[1], last[2]


class Fit:
    """Features that are being fitted to a column that comes in pieces, in any number of places.

    Args:
        config: the settings.
        kind: what the column holds (`Corpus.feature_kind`).

    Raises:
        InputError: the settings ask for the other kind.
    """

    def __init__(self, config: FeaturesConfig, kind: FeatureKind) -> None:
        if config.kind not in ("auto", kind):
            raise InputError(
                f"features.kind: {config.kind}, but the feature column holds {kind} features; use auto or {kind}"
            )
        self.config, self.kind = config, kind
        self.terms, self.moments = text.TermCounts(config.text), Moments()
        self.images, self.pixels = ImageFeatures(config.image), images.PixelCounts(config.image.channels)

    def add(self, column: Column) -> None:
        """Take a piece into account.

        Raises:
            InputError: a row is bad.
        """
        if self.kind == "image":
            self.pixels.add(self.images.transform(column))
        elif self.kind == "text":
            self.terms.add(column)
        elif len(column) and (self.config.dense.scale == "standardize" or self.moments.width is None):
            if not column[0].is_valid:
                raise InputError("features: the first vector is null; put such rows aside first")
            width = len(column[0]) if self.moments.width is None else self.moments.width
            self.moments.add(DenseFeatures(width, "none").transform(column))

    def merge(self, other: Fit) -> None:
        """Take into account what another has, fitted with the same settings."""
        self.pixels.merge(other.pixels)
        self.terms.merge(other.terms)
        self.moments.merge(other.moments)

    def features(self) -> Features:
        """The recipe.

        Raises:
            InputError: there was no row, the vectors have no dimension, or no term is left.
        """
        if self.kind == "image":
            # The same object, since it still has the pixels of the last column.
            self.images.mean_C, self.images.deviation_C = self.pixels.mean_and_deviation()
            return self.images
        if self.kind == "text":
            vocabulary = self.terms.vocabulary()
            idf_V = None
            if self.config.text.weighting == "tf-idf":
                share_V = (1 + vocabulary.rows) / (1 + np.asarray(vocabulary.documents))
                idf_V = (1 + np.log(share_V)).astype(np.float32)
            return TextFeatures(vocabulary.terms, self.config.text, idf_V, vocabulary.words)
        width, scale = self.moments.width, self.config.dense.scale
        if width is None:
            raise InputError("features: there is no row to fit them to")
        if width == 0:
            raise InputError("features: the vectors have no dimension")
        state = self.moments.mean_and_deviation() if scale == "standardize" else ()
        return DenseFeatures(width, scale, *state)


def fit_features(config: FeaturesConfig, kind: FeatureKind, columns: Iterable[Column]) -> Features:
    """Fit the recipe to a feature column that comes in pieces; one piece is in memory at a time.

    Args:
        config: the settings.
        kind: what the column holds (`Corpus.feature_kind`).
        columns: the pieces, without bad rows.

    Raises:
        InputError: the settings ask for the other kind, there is no row, a row is bad, or no term is left.
    """
    fit = Fit(config, kind)
    for column in columns:
        fit.add(column)
    return fit.features()


def _vectors(chunk: pa.Array, width: int) -> np.ndarray:
    return chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)


def _write_state(storage: Storage, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    storage.write_bytes(STATE_FILE, sink.getvalue().to_pybytes())


def _read_state(storage: Storage, columns: tuple[str, ...], width: int) -> pa.Table:
    where = storage.full_uri(STATE_FILE)
    try:
        table = pa.ipc.open_file(storage.read_bytes(STATE_FILE)).read_all()
    except pa.ArrowException as error:
        raise DamagedError(f"{where}: not a readable Arrow file; train again") from error
    if not set(columns) <= set(table.column_names) or table.num_rows != width:
        raise DamagedError(f"{where}: does not hold {', '.join(columns)} of {width} features; train again")
    return table
