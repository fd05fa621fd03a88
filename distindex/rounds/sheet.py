"""What people fill in: the items that a round asks about, with what is needed to answer."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from distindex.config import TrainConfig
from distindex.corpus.dataset import Corpus
from distindex.corpus.ids import is_text
from distindex.corpus.label_store import Subject
from distindex.corpus.lookup import rows_of

# Columns that `distindex label import` reads; those of the corpus must not pass for them.
_IMPORTED = ("id", "label", "other", "similar", "annotator", "time", "round", "retracted")


def answer_sheet(config: TrainConfig, asked: Sequence[Subject], number: int) -> bytes:
    """A CSV file with an empty column `label`, or for pairs `similar` (same or different).

    Beside it stand the text of each item, where items are texts, and its payload; of a pair those of both.

    Args:
        config: whose corpus the items are from.
        asked: the items, or pairs of them, in the order of the rows.
        number: of the round.
    """
    corpus = Corpus.open(config.corpus)
    id_column, feature = config.corpus.id_column, config.corpus.feature_column
    shown = [*([feature] if is_text(corpus.schema.field(feature).type) else []), *config.corpus.payload_columns]
    shown = list(dict.fromkeys(shown))
    ids = list(dict.fromkeys(identifier for subject in asked for identifier in subject))
    rows = rows_of(corpus, ids, shown).to_pylist() if shown else []
    content = {row[id_column]: [row[name] for name in shown] for row in rows}
    names = [f"corpus {name}" if name in (*_IMPORTED, id_column) else name for name in shown]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    pairs = any(len(subject) > 1 for subject in asked)
    others = [f"other {name}" for name in names] if pairs else []
    writer.writerow(["id", *(["other", "similar"] if pairs else ["label"]), "round", *names, *others])
    for subject in asked:
        shown_of = [each for identifier in subject for each in content.get(identifier, [""] * len(names))]
        writer.writerow([*subject, "", number, *shown_of])
    return text.getvalue().encode()
