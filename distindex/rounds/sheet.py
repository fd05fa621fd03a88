"""What people fill in: the items that a round asks about, with what is needed to answer."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from distindex.config import TrainConfig
from distindex.corpus.dataset import Corpus
from distindex.corpus.ids import as_ids, is_text
from distindex.corpus.label_store import Id

# Columns that `distindex label import` reads; those of the corpus must not pass for them.
_IMPORTED = ("id", "label", "other", "similar", "annotator", "time", "round")


def answer_sheet(config: TrainConfig, asked: Sequence[Id], number: int) -> bytes:
    """A CSV file with an empty label column; beside it the text of each item, where items are texts, and its payload.

    Args:
        config: whose corpus the items are from.
        asked: their ids, in the order of the rows.
        number: of the round.
    """
    corpus = Corpus.open(config.corpus)
    id_column, feature = config.corpus.id_column, config.corpus.feature_column
    shown = [*([feature] if is_text(corpus.schema.field(feature).type) else []), *config.corpus.payload_columns]
    content = _content(corpus, asked, list(dict.fromkeys(shown))) if shown else {}
    names = [f"corpus {name}" if name in (*_IMPORTED, id_column) else name for name in dict.fromkeys(shown)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "label", "round", *names])
    writer.writerows([identifier, "", number, *content.get(identifier, ())] for identifier in asked)
    return text.getvalue().encode()


def _content(corpus: Corpus, asked: Sequence[Id], columns: list[str]) -> dict[Any, list[Any]]:
    """These columns of these items."""
    wanted, id_column = pa.array(asked, corpus.id_type), corpus.config.id_column
    found: dict[Any, list[Any]] = {}
    for batch in corpus.batches([id_column, *columns]):
        ids = as_ids(batch.table[id_column], batch.file.uri)
        chosen = pc.is_in(ids, value_set=wanted)  # type: ignore[attr-defined]
        rows = batch.table.filter(chosen).select(columns).to_pylist()
        for identifier, row in zip(ids.filter(chosen).to_pylist(), rows, strict=True):
            found[identifier] = [row[name] for name in columns]
    return found
