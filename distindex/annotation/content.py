"""What people see of an item: its text or its image, and its payload."""

from __future__ import annotations

import datetime
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from distindex.corpus.dataset import Corpus
from distindex.corpus.ids import as_ids, check_ids
from distindex.corpus.images import FORMATS
from distindex.corpus.label_store import Id
from distindex.corpus.lookup import rows_of
from distindex.corpus.rows import is_bytes
from distindex.errors import InputError, NotFoundError

# All that is asked about is in memory.
MOST_BYTES = 2 << 30


class Content:
    """The rows that are asked about.

    Args:
        corpus: where they are from.
        ids: which ones; None takes all.
        raw_shape: height, width and channels of images that are raw pixels.

    Raises:
        InputError: there is nothing to show, too much of it, an id that is not there, or one that is there twice.
    """

    def __init__(self, corpus: Corpus, ids: Sequence[Id] | None, raw_shape: Sequence[int] | None) -> None:
        config = corpus.config
        self._feature, self._kind = config.feature_column, corpus.feature_kind
        self._payload = [name for name in config.payload_columns if name not in (self._feature, config.id_column)]
        self._raw_shape = tuple(raw_shape) if raw_shape else None
        if self._kind == "dense" and not self._payload:
            raise InputError(
                f'{config.uri}: column "{self._feature}" holds vectors, which tell people nothing; name columns to '
                "show in items.payload_columns"
            )
        shown = [*([] if self._kind == "dense" else [self._feature]), *self._payload]
        if ids is None:
            self._table = _all_rows(corpus, shown)
        else:
            self._table = rows_of(corpus, ids, shown)
        column = self._table.column(config.id_column)
        check_ids(column, f'{config.uri}: column "{config.id_column}"')
        self.ids: list[Id] = as_ids(column, config.uri).to_pylist()
        self._row_of = {identifier: row for row, identifier in enumerate(self.ids)}
        missing = [identifier for identifier in ids or () if identifier not in self._row_of]
        if missing:
            raise InputError(
                f"{config.uri}: id {missing[0]!r}, which was chosen, is not there ({len(missing):,} are not)"
            )
        if self._kind == "image" and not self._files and self._raw_shape is None:
            raise InputError(
                f'{config.uri}: column "{self._feature}" holds raw pixels; '
                "set raw_shape to height, width and channels"
            )

    def describe(self, identifier: Id) -> dict[str, Any]:
        """An item as JSON: its id as text, its text where it is one, whether it is an image, its payload as texts."""
        row = self._row_of[identifier]
        text = self._table.column(self._feature)[row].as_py() if self._kind == "text" else None
        return {
            "id": str(identifier),
            "text": " ".join(map(str, text)) if isinstance(text, list) else text,
            "image": self._kind == "image",
            "payload": {name: _as_text(self._table.column(name)[row].as_py()) for name in self._payload},
        }

    def image(self, identifier: Id) -> tuple[bytes, str]:
        """The file of an item's image, and its media type.

        Raises:
            NotFoundError: there is no such image.
            InputError: what is stored is no image that browsers and distindex know.
        """
        row = self._row_of.get(identifier)
        value = None if row is None or self._kind != "image" else self._table.column(self._feature)[row].as_py()
        if value is None:
            raise NotFoundError(f"id {identifier!r} has no image")
        if not self._files:
            return self._from_pixels(identifier, value), "image/png"
        try:
            with Image.open(io.BytesIO(value), formats=FORMATS) as opened:
                return value, opened.get_format_mimetype() or "image/png"
        except Exception as error:  # Pillow raises whatever a broken file leads it to.
            raise InputError(f"id {identifier!r}: is no image ({', '.join(FORMATS)})") from error

    @property
    def _files(self) -> bool:
        return is_bytes(self._table.schema.field(self._feature).type)

    def _from_pixels(self, identifier: Id, value: bytes) -> bytes:
        pixels = np.frombuffer(value, np.uint8)
        if self._raw_shape is None or pixels.size != np.prod(self._raw_shape):
            raise InputError(
                f"id {identifier!r}: {pixels.size} bytes are no image of "
                f"{' x '.join(map(str, self._raw_shape or ()))}; set raw_shape"
            )
        image_HWC = pixels.reshape(self._raw_shape)
        sink = io.BytesIO()
        Image.fromarray(image_HWC[:, :, 0] if image_HWC.shape[2] == 1 else image_HWC).save(sink, "png")
        return sink.getvalue()


def _all_rows(corpus: Corpus, columns: Sequence[str]) -> pa.Table:
    tables, held = [], 0
    for batch in corpus.batches([corpus.config.id_column, *columns]):
        tables.append(batch.table)
        held += batch.table.nbytes
        if held > MOST_BYTES:
            raise InputError(
                f"{corpus.config.uri}: more than {MOST_BYTES >> 30} GiB to show; name some of the files, or have "
                "`distindex label run` choose"
            )
    return pa.concat_tables(tables)


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return json.dumps(value, ensure_ascii=False, default=str)
