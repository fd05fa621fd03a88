"""Votes in, labels out: what counts, what is refused, and what training makes of it."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distindex.config import CorpusConfig, LabelsConfig, TrainConfig, ValidationConfig
from distindex.corpus.label_store import LabelStore, Vote
from distindex.corpus.labels import label_mask
from distindex.errors import InputError, NotFoundError
from distindex.method_config import MethodConfig
from distindex.training.data import read_training_set
from tests.pipeline import run, tree_of

NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)


def vote(identifier: Any, *labels: str, by: str = "ann", minute: int = 0, round: int = 0) -> Vote:
    return Vote(identifier, labels, None, None, by, NOON + datetime.timedelta(minutes=minute), round)


def pair(first: Any, second: Any, similar: bool, by: str = "ann", minute: int = 0) -> Vote:
    return Vote(first, (), second, similar, by, NOON + datetime.timedelta(minutes=minute), 0)


def test_the_majority_counts_and_conflicts_are_kept(tmp_path: Path) -> None:
    store = LabelStore.create(str(tmp_path / "s"), pa.int64())
    store.add([vote(1, "a"), vote(1, "b", by="bob"), vote(1, "a", by="cy"), vote(2, "a"), vote(2, "b", by="bob")])
    store.add([vote(3, "b"), vote(3, "a", "c", minute=5), pair(5, 4, True), pair(4, 5, False, by="bob", minute=9)])
    resolved = store.resolved()
    assert resolved.labels == {1: ("a",), 3: ("a", "c")}, "two lead for item 2; ann corrected herself on item 3"
    assert resolved.pairs == {}
    assert [(c.subject, c.winner) for c in resolved.conflicts] == [((1,), ("a",)), ((2,), None), ((4, 5), None)]
    assert resolved.conflicts[0].answers == {("a",): ["ann", "cy"], ("b",): ["bob"]}
    store.add([pair(4, 5, True, by="cy")])
    assert LabelStore.open(str(tmp_path / "s")).resolved().pairs == {(4, 5): True}


def test_an_answer_that_was_taken_back_counts_no_more(tmp_path: Path) -> None:
    store = LabelStore.create(str(tmp_path / "s"), pa.int64())
    store.add([vote(1, "a"), vote(1, "b", by="bob"), pair(4, 5, True), vote(2, "c"), vote(2, minute=1)])
    store.add([vote(1, by="bob", minute=3), pair(5, 4, True, minute=1)._replace(similar=None)])
    resolved = store.resolved()
    assert (resolved.labels, resolved.pairs, resolved.conflicts) == ({1: ("a",)}, {}, [])
    store.add([vote(2, "d", minute=2), vote(9, minute=5)])
    assert store.resolved().labels == {1: ("a",), 2: ("d",)}


@settings(deadline=None, max_examples=12)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from("abc"), st.sampled_from(["x", "y", "z"]), st.integers(0, 99)),
        min_size=1,
        max_size=25,
        unique_by=lambda each: each[3],
    ),
    st.integers(1, 5),
)
def test_the_order_of_adding_does_not_matter(tmp_path_factory: Any, drawn: list[Any], parts: int) -> None:
    uri = str(tmp_path_factory.mktemp("store") / "s")
    store = LabelStore.create(uri, pa.int64())
    for part in range(parts):
        store.add(vote(i, label, by=by, minute=minute) for i, label, by, minute in drawn[part::parts])
    before, fingerprint = tree_of(Path(uri)), store.fingerprint
    store.add(vote(i, label, by=by, minute=minute) for i, label, by, minute in drawn[::parts])
    assert (tree_of(Path(uri)), store.fingerprint) == (before, fingerprint), "the same votes again change nothing"
    assert len(store.votes()) == len(drawn)
    newest = {(i, by): label for i, label, by, _ in sorted(drawn, key=lambda each: each[3])}
    for i in range(4):
        counts = Counter(label for (item, _), label in newest.items() if item == i).most_common()
        leading = [label for label, count in counts if count == counts[0][1]]
        assert store.resolved().labels.get(i) == ((leading[0],) if len(leading) == 1 else None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (vote("1", "a"), "of type int64"),
        (vote(1, "a")._replace(other=2), "either labels, or another item"),
        (vote(1, "b", "a"), "must be sorted"),
        (vote(1, ""), "not empty"),
        (vote(1, "a", by=""), "name of its annotator"),
        (pair(1, 1, True), "with itself"),
        (pair(1, "2", True), "of type int64"),
        (vote(1, "a")._replace(similar=True), "either labels, or another item"),
        (vote(1, "a")._replace(time=datetime.datetime(2026, 1, 1)), "needs a time zone"),
    ],
)
def test_a_vote_that_is_none_changes_nothing(tmp_path: Path, wrong: Vote, message: str) -> None:
    store = LabelStore.create(str(tmp_path / "s"), pa.int64())
    before = tree_of(tmp_path)
    with pytest.raises(InputError, match=message):
        store.add([vote(7, "a"), wrong])
    assert tree_of(tmp_path) == before


def test_stores_are_opened_as_they_were_made(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="label import"):
        LabelStore.open(str(tmp_path))
    LabelStore.create(str(tmp_path), pa.string()).add([vote("x", "a")])
    with pytest.raises(InputError, match="of type string, not int64"):
        LabelStore.create(str(tmp_path), pa.int64())
    file = next((tmp_path / "votes").iterdir())
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(InputError, match="damaged"):
        LabelStore.open(str(tmp_path)).votes()
    (tmp_path / "label_store.json").write_text('{"format_version": 99}')
    with pytest.raises(InputError, match="format 99"):
        LabelStore.open(str(tmp_path))


# Import and export


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_votes_survive_export_and_import(tmp_path: Path, suffix: str) -> None:
    store = LabelStore.create(str(tmp_path / "s"), pa.string())
    given_votes = [vote("007", "a", "b,c"), vote("ü", "x", by="bob", round=3), pair("007", "ü", False)]
    given_votes += [vote("z", "x"), vote("z", minute=1), pair("z", "y", True), pair("z", "y", True, "bob")]
    given_votes += [pair("z", "y", True, minute=1)._replace(similar=None)]
    store.add(given_votes)
    file = tmp_path / f"votes.{suffix}"
    assert run("label", "export", f"--store={tmp_path / 's'}", f"--output={file}", "--json").json["rows"] == 8
    report = run("label", "import", f"--store={tmp_path / 't'}", f"--input={file}", "--json").json
    assert (report["votes"], report["labeled"], report["pairs"], report["skipped"]) == (8, 2, 2, 0)
    assert LabelStore.open(str(tmp_path / "t")).votes() == store.votes()
    again = run("label", "export", f"--store={tmp_path / 's'}", f"--output={file}")
    assert (again.code, "exists; choose another name" in again.err) == (2, True)


def test_labels_and_conflicts_for_people(tmp_path: Path) -> None:
    LabelStore.create(str(tmp_path / "s"), pa.int64()).add([vote(1, "a"), vote(1, "b", by="bob"), vote(2, "c")])
    facts = run("inspect", f"--uri={tmp_path / 's'}", "--json").json
    assert (facts["kind"], facts["votes"], facts["annotators"]) == ("label store", 3, "ann, bob")
    assert (facts["labeled items"], facts["labels"]) == (1, "c")
    assert facts["conflicts"] == "1, 1 of them undecided"
    for what, expected in (
        ("labels", [{"id": 2, "label": ["c"], "other": None, "similar": None}]),
        ("conflicts", [{"id": 1, "other": None, "winner": None, "answers": '{"a": ["ann"], "b": ["bob"]}'}]),
    ):
        file = tmp_path / f"{what}.jsonl"
        assert run("label", "export", f"--store={tmp_path / 's'}", f"--output={file}", f"--what={what}").code == 0
        assert [json.loads(line) for line in file.read_text().splitlines()] == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "id,label\n1,a\nb,c,d\n", "line 3: more fields"),
        ("x.csv", "name,label\n1,a\n", "line 1: no column id"),
        ("x.csv", "id,label\n,a\n", "line 2: the id is missing"),
        ("x.csv", "id,label\n1,\n", "none of its 1 rows"),
        ("x.csv", "id,other,similar\n1,2,maybe\n", "line 2: similar is 'maybe'; it must be true or false"),
        ("x.csv", "id,similar\n1,same\n", "other and similar go together"),
        ("x.csv", "id,label,other,similar\n1,a,2,same\n", "not both"),
        ("x.csv", "id,label,retracted\n1,a,yes\n", "line 2: retracted takes back"),
        ("x.csv", "id,label,retracted\n1,,perhaps\n", "line 2: retracted is 'perhaps'; it must be true or false"),
        ("x.csv", "id,label,time\n1,a,yesterday\n", "Invalid isoformat"),
        ("x.jsonl", '{"id": 1, "label": "a"}\n[1]\n', "line 2: expected an object"),
        ("x.jsonl", "{\n", "line 1: not valid JSON"),
        ("x.txt", "1 a", "must end in .csv or .jsonl"),
    ],
)
def test_a_file_that_is_wrong_makes_no_store(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    ran = run("label", "import", f"--store={tmp_path / 's'}", f"--input={tmp_path / name}")
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert not (tmp_path / "s").exists()


def test_ids_are_integers_where_all_of_them_are(tmp_path: Path) -> None:
    for text, expected in (("1,a\n-20,b\n", pa.int64()), ("1,a\n007,b\n", pa.string())):
        uri = str(tmp_path / str(expected))
        (tmp_path / "x.csv").write_text("id,label\n" + text)
        assert run("label", "import", f"--store={uri}", f"--input={tmp_path / 'x.csv'}").code == 0
        assert LabelStore.open(uri).id_type == expected
    (tmp_path / "x.csv").write_text("id,label\nseven,a\n")
    refused = run("label", "import", f"--store={tmp_path / 'int64'}", f"--input={tmp_path / 'x.csv'}")
    assert "'seven' is not an integer" in refused.err


# Training


@pytest.fixture
def corpus(tmp_path: Path) -> CorpusConfig:
    random = np.random.default_rng(0)
    label = [None if i % 4 == 0 else "ab"[i % 2] for i in range(40)]
    table = pa.table({"id": np.arange(40) * 10, "vector": list(random.normal(size=(40, 6))), "label": label})
    pq.write_table(table, tmp_path / "corpus.parquet")
    return CorpusConfig(str(tmp_path / "corpus.parquet"), "vector", label_column="label")


def config_of(corpus: CorpusConfig, store: str | None, fraction: float = 0.0) -> TrainConfig:
    return TrainConfig(
        corpus,
        "unused",
        bits=8,
        labels=LabelsConfig(fraction, store=store),
        method=MethodConfig(name="ssb-vae"),
        validation=ValidationConfig(0),
    )


def labels_of(found: Any) -> dict[int, list[str]]:
    return {
        row * 10: [found.known.names[i] for i in found.label_NC[row].indices]
        for row in range(found.rows)
        if found.label_NC[row].nnz
    }


def test_training_reads_the_store_over_the_corpus(tmp_path: Path, corpus: CorpusConfig) -> None:
    uri = str(tmp_path / "s")
    store = LabelStore.create(uri, pa.int64())
    store.add(
        [vote(0, "c"), vote(10, "a"), vote(30, "a", "b"), vote(99999, "z"), vote(50, "a"), vote(50, "b", by="x")]
    )
    alone = read_training_set(config_of(corpus, uri))
    given_labels = {0: ["c"], 10: ["a"], 30: ["a", "b"]}
    assert labels_of(alone) == given_labels, "an undecided item and one of another corpus have no label"
    half = read_training_set(config_of(corpus, uri, 0.5))
    kept_N = label_mask(40, 0.5, 20)
    own = {i * 10: ["ab"[i % 2]] for i in range(40) if kept_N[i] and i % 4}
    assert labels_of(half) == own | given_labels
    unlabeled = CorpusConfig(corpus.uri, "vector")
    assert labels_of(read_training_set(config_of(unlabeled, uri))) == given_labels
    plain = read_training_set(config_of(corpus, None, 1.0))
    assert len({alone.fingerprint, plain.fingerprint}) == 2
    store.add([vote(70, "c")])
    assert read_training_set(config_of(corpus, uri)).fingerprint != alone.fingerprint


def test_training_refuses_stores_that_do_not_fit(tmp_path: Path, corpus: CorpusConfig) -> None:
    for name, kind, votes, message in (
        ("empty", pa.int64(), [vote(0, "a"), vote(0, minute=1)], "no item of this store has a label, and of no two"),
        ("pairs", pa.int64(), [pair(0, 5, True)], "of none of its 1 pairs both ids are in the corpus, such as 0"),
        ("texts", pa.string(), [vote("0", "a")], "ids of type string, the corpus of type int64"),
        ("strangers", pa.int64(), [vote(5, "a")], "none of its 1 labeled ids is in the corpus, such as 5"),
    ):
        LabelStore.create(str(tmp_path / name), kind).add(votes)
        with pytest.raises(InputError, match=message):
            read_training_set(config_of(corpus, str(tmp_path / name)))
    with pytest.raises(NotFoundError, match="no label store"):
        read_training_set(config_of(corpus, str(tmp_path / "nothing")))
