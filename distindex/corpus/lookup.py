"""Rows of a corpus by their ids."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from distindex.corpus.dataset import Corpus
from distindex.corpus.ids import as_ids


def rows_of(corpus: Corpus, ids: Sequence[int | str], columns: Sequence[str]) -> pa.Table:
    """Columns of the rows with these ids, the id column among them, as the corpus orders them.

    One pass over these columns; an id that is not there has no row.
    """
    name, wanted = corpus.config.id_column, pa.array(ids, corpus.id_type)
    found = [
        batch.table.filter(pc.is_in(as_ids(batch.table[name], batch.file.uri), value_set=wanted))
        for batch in corpus.batches([name, *columns])
    ]
    return pa.concat_tables(found)
