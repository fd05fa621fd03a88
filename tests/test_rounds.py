"""Rounds of choosing, answering and training by the command line: what is there afterwards, also when stopped."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distindex.annotation.source import Source
from distindex.config import (
    CorpusConfig,
    LabelsConfig,
    OptimizationConfig,
    TrainConfig,
    ValidationConfig,
    WorkersConfig,
)
from distindex.corpus.label_store import LabelStore
from distindex.corpus.labels import read_labels
from distindex.errors import InputError
from distindex.hashing import Hasher
from distindex.label_config import CandidatesConfig, LabelRunConfig, LabelServeConfig, SelectionConfig
from distindex.label_run import LabelRun
from distindex.labeling import Pool, select
from distindex.labeling.pair_loss import PairLoss
from distindex.method_config import MethodConfig
from distindex.rounds import run as rounds
from distindex.rounds.scoring import choose, see
from distindex.rounds.sheet import answer_sheet
from distindex.training import train
from tests.pipeline import run, tree_of
from tests.test_labeling_selection import make_pool

ROWS, BITS = 240, 16

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CorpusConfig:
    """Three clusters in two files; every tenth row has no label at all."""
    home = tmp_path_factory.mktemp("rounds")
    random = np.random.default_rng(0)
    group_N = random.integers(0, 3, ROWS)
    vector_NV = (random.normal(size=(3, 8))[group_N] * 2 + random.normal(size=(ROWS, 8))).astype(np.float32)
    label = [None if i % 10 == 0 else "abc"[group] for i, group in enumerate(group_N)]
    table = pa.table({"id": [f"item {i}" for i in range(ROWS)], "vector": list(vector_NV), "label": label})
    pq.write_table(table.slice(0, 130), home / "0.parquet")
    pq.write_table(table.slice(130), home / "1.parquet")
    return CorpusConfig(str(home), "vector", label_column="label")


def config_of(corpus: CorpusConfig, output: Path, **changes: Any) -> LabelRunConfig:
    settings = TrainConfig(
        corpus,
        str(output),
        bits=BITS,
        method=MethodConfig(name="ssb-vae", hidden=[16]),
        optimization=OptimizationConfig(epochs=2, batch_size=60, checkpoint_seconds=0),
        validation=ValidationConfig(0),
        workers=WorkersConfig(count=1, cpus=1),
    )
    few = SelectionConfig("dh-aps", candidates=CandidatesConfig(pairs=2000))
    defaults = {"rounds": 2, "budget": 21, "oracle": "simulated", "selection": few, "queries": corpus, "k": 10}
    # It costs a training, and one test of it is enough.
    defaults["pretrain"] = False
    return LabelRunConfig(settings, **defaults | changes)


def picks_of(output: Path, number: int) -> list[str]:
    return json.loads((output / f"rounds/{number:03d}/picks.json").read_text())["ids"]


@pytest.fixture(scope="module")
def undisturbed(
    ray_cluster: None, corpus: CorpusConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, rounds.LabelRunReport]:
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    return output, rounds.run(config_of(corpus, output))


def test_the_simulated_oracle_answers_what_is_asked(
    undisturbed: tuple[Path, rounds.LabelRunReport], corpus: CorpusConfig
) -> None:
    output, report = undisturbed
    assert (report.state, report.missing, [each["labeled"] for each in report.rounds]) == ("finished", 0, [11, 21])
    truth = {row["id"]: row["label"] for row in pq.read_table(corpus.uri).to_pylist()}
    asked = [(number, item) for number in (1, 2) for item in picks_of(output, number)]
    votes = LabelStore.open(report.store).votes()
    assert {(vote.round, vote.id) for vote in votes} == set(asked)
    assert len({item for _, item in asked}) == 21, "nothing is asked twice"
    run_files = LabelRun.open(str(output))
    assert (run_files.newest_round, run_files.store_uri, run_files.corpus) == (2, report.store, corpus)
    assert run_files.metrics() == report.rounds
    assert run_files.picks(1)["pairs"] == [], "without a hasher rows are drawn at random"
    pairs = run_files.picks(2)["pairs"]
    assert pairs
    assert all(set(pair) & set(picks_of(output, 2)) for pair in pairs)
    assert all(vote.labels == (truth[vote.id],) and vote.annotator == "simulated" for vote in votes)
    for number, each in enumerate(report.rounds, 1):
        hasher = Hasher.load(str(output / f"rounds/{number:03d}/hasher"))
        assert hasher.metadata["labeled"] == each["labeled"], "no other label is read"
        assert 0 < each["precision"] <= 1
        assert 0 < each["mean_average_precision"] <= 1
    before = tree_of(output)
    assert rounds.run(config_of(corpus, output)) == report
    assert tree_of(output) == before, "done work is not done again"
    with pytest.raises(InputError, match=r"other settings \(budget: 21 -> 30\)"):
        rounds.run(config_of(corpus, output, budget=30))


def test_a_run_that_was_stopped_goes_on_with_the_same_picks(
    ray_cluster: None, corpus: CorpusConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(config: TrainConfig) -> Any:
        if "rounds/002" in config.output:
            raise KeyboardInterrupt
        return train(config)

    def settings(output: str) -> LabelRunConfig:
        made = config_of(corpus, tmp_path / output)
        # In closed form, which takes a second.
        return dataclasses.replace(made, train=dataclasses.replace(made.train, bits=8, method=MethodConfig("ssh")))

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "train", stopped)
        with pytest.raises(KeyboardInterrupt):
            rounds.run(settings("run"))
    first = tree_of(tmp_path / "run")
    report, expected = rounds.run(settings("run")), rounds.run(settings("undisturbed"))
    for number in (1, 2):
        assert picks_of(tmp_path / "run", number) == picks_of(tmp_path / "undisturbed", number)
    kept = {name: content for name, content in tree_of(tmp_path / "run").items() if name in first}
    assert kept == first, "what was there has not been written again"
    names = ("labeled", "precision", "mean_average_precision")
    assert [[each[n] for n in names] for each in report.rounds] == [[e[n] for n in names] for e in expected.rounds]


def test_people_answer_through_the_store(ray_cluster: None, corpus: CorpusConfig, tmp_path: Path) -> None:
    text_of = {row["id"]: row["label"] or "a" for row in pq.read_table(corpus.uri).to_pylist()}
    unlabeled = dataclasses.replace(corpus, label_column=None)
    arguments = [
        "label", "run", f"--train.corpus.uri={unlabeled.uri}", "--train.corpus.feature_column=vector",
        f"--train.output={tmp_path / 'run'}", f"--train.bits={BITS}", "--train.method.name=ssb-vae",
        "--train.method.hidden=[16]", "--train.optimization.epochs=1", "--train.validation.fraction=0.4",
        "--train.workers.count=1", "--train.workers.cpus=1", "--rounds=2", "--budget=20",
        "--selection.strategy=entropy",
    ]  # fmt: skip
    waiting = run(*arguments)
    assert waiting.code == 0, waiting.err
    assert "waiting for 10 answers" in waiting.out
    assert run(*arguments).out == waiting.out, "the same picks until they are answered"
    sheet = tmp_path / "run" / "rounds" / "001" / "picks.csv"
    with sheet.open() as stream:
        asked = list(csv.DictReader(stream))
    answers = tmp_path / "answers.csv"
    answers.write_text("id,label,round\n" + "".join(f"{row['id']},{text_of[row['id']]},1\n" for row in asked[:9]))
    answered = ["label", "import", f"--store={tmp_path / 'run' / 'labels'}", f"--input={answers}"]
    assert run(*answered).code == 0
    assert "waiting for 1 answers" in run(*arguments).out
    answers.write_text(f"id,label\n{asked[9]['id']},{text_of[asked[9]['id']]}\n")
    assert run(*answered, "--annotator=bob").code == 0
    second = run(*arguments, "--json").json
    assert (second["state"], second["missing"], len(second["rounds"])) == ("waiting", 10, 1)
    assert second["rounds"][0]["labeled"] == 10
    assert not set(picks_of(tmp_path / "run", 2)) & {row["id"] for row in asked}


def test_pairs_are_asked_about_and_trained_on(ray_cluster: None, corpus: CorpusConfig, tmp_path: Path) -> None:
    settings = config_of(corpus, tmp_path / "run", ask="pairs")
    report = rounds.run(settings)
    truth = {row["id"]: row["label"] for row in pq.read_table(corpus.uri).to_pylist()}
    votes = LabelStore.open(report.store).votes()
    assert all(vote.similar == (truth[vote.id] == truth[vote.other]) for vote in votes)
    picks = [LabelRun.open(str(tmp_path / "run")).picks(number) for number in (1, 2)]
    assert [len(each["ids"]) for each in picks] == [11, 10], "the budget counts items"
    assert not set(picks[0]["ids"]) & set(picks[1]["ids"]), "no item twice"
    for each in picks:
        assert set(each["ids"]) <= {item for pair in each["pairs"] for item in pair}, "every item is in a pair"
    asked = {tuple(sorted(pair)) for each in picks for pair in each["pairs"]}
    assert asked == {vote.subject for vote in votes}
    assert len(asked) == sum(len(each["pairs"]) for each in picks), "no pair twice"
    assert [(each["labeled"], each["pairs"]) for each in report.rounds] == [
        (0, len(picks[0]["pairs"])),
        (0, len(asked)),
    ]
    assert Hasher.load(str(tmp_path / "run/rounds/002/hasher")).metadata["pairs"]["used"] > 0
    before = tree_of(tmp_path)
    assert rounds.run(settings) == report
    assert tree_of(tmp_path) == before


def test_people_answer_about_pairs(ray_cluster: None, corpus: CorpusConfig, tmp_path: Path) -> None:
    truth = {row["id"]: row["label"] for row in pq.read_table(corpus.uri).to_pylist()}
    unlabeled = dataclasses.replace(corpus, label_column=None)
    settings = config_of(unlabeled, tmp_path / "run", ask="pairs", oracle="store", queries=None, budget=12)
    waiting = rounds.run(settings)
    assert (waiting.state, waiting.missing, waiting.ask) == ("waiting", 3, "pairs")
    with open(str(waiting.picks)) as stream:
        asked = list(csv.DictReader(stream))
    assert list(asked[0]) == ["id", "other", "similar", "round"]
    said = ["same" if truth[row["id"]] == truth[row["other"]] else "different" for row in asked]
    rows = [f"{row['id']},{row['other']},{answer},1\n" for row, answer in zip(asked, said, strict=True)]
    answers = tmp_path / "answers.csv"
    answers.write_text("id,other,similar,round\n" + "".join(rows[:2]))
    assert run("label", "import", f"--store={waiting.store}", f"--input={answers}").code == 0
    again = rounds.run(settings)
    assert (again.state, again.missing, again.rounds) == ("waiting", 1, [])
    shown = dataclasses.replace(unlabeled, payload_columns=["label"])
    task = Source(LabelServeConfig(run=str(tmp_path / "run"), items=shown, ask="pairs")).read()
    given = LabelStore.open(waiting.store).resolved().pairs
    assert [(subject in given) for subject in task.subjects] == [True, True, False]


def test_the_first_choice_is_made_by_a_hasher_of_the_unlabeled_rows(
    ray_cluster: None, corpus: CorpusConfig, tmp_path: Path
) -> None:
    """By the simulated oracle, so that there are labels to be passed over."""
    settings = config_of(corpus, tmp_path / "run", pretrain=True, rounds=1, selection=SelectionConfig("typical"))
    report = rounds.run(settings)
    first = Hasher.load(str(tmp_path / "run/pretrained/hasher"))
    assert first.metadata["labeled"] == 0
    table = pq.read_table(corpus.uri)
    table = table.filter(table["label"].is_valid())
    nothing = read_labels(pa.nulls(len(table), pa.string()))
    pool = Pool(first.logits_of(table), nothing, PairLoss(settings.train.method, BITS))
    expected = select(pool, SelectionConfig("typical"), 21).rows
    assert picks_of(tmp_path / "run", 1) == table["id"].take(expected).to_pylist()
    begun = json.loads((tmp_path / "run/rounds/001/hasher/training/config.json").read_text())["config"]["initial"]
    assert begun == str(tmp_path / "run/pretrained/hasher"), "training goes on from there"
    before = tree_of(tmp_path)
    assert rounds.run(settings) == report
    assert tree_of(tmp_path) == before


def test_no_hasher_is_trained_for_what_needs_labels_or_none(
    ray_cluster: None, corpus: CorpusConfig, tmp_path: Path
) -> None:
    unlabeled = dataclasses.replace(corpus, label_column=None)
    for strategy, method in (("random", "ssb-vae"), ("badge", "ssb-vae"), ("typical", "dpsh")):
        output = tmp_path / strategy
        settings = config_of(
            unlabeled, output, oracle="store", queries=None, pretrain=True,
            selection=SelectionConfig(strategy),  # type: ignore[arg-type]
        )  # fmt: skip
        settings.train.method = MethodConfig(name=method)  # type: ignore[arg-type]
        assert rounds.run(settings).missing == 11
        assert not (output / "pretrained").exists()


def test_ray_tasks_choose_what_one_process_chooses(ray_cluster: None) -> None:
    config = SelectionConfig("dh-aps", candidates=CandidatesConfig(pairs=40_000, partners=300))
    pool = make_pool(2000, 50)
    for found, expected in zip(choose(pool, config, 30), select(make_pool(2000, 50), config, 30), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_corpus_is_seen_in_the_order_that_training_numbers_it(
    undisturbed: tuple[Path, rounds.LabelRunReport], corpus: CorpusConfig
) -> None:
    uri = str(undisturbed[0] / "rounds/002/hasher")
    seen = see(config_of(corpus, Path("unused")).train, uri)
    table = pq.read_table(corpus.uri)
    assert seen.ids.to_pylist() == table["id"].to_pylist()
    np.testing.assert_allclose(seen.logit_NK, Hasher.load(uri).logits_of(table), rtol=1e-4, atol=1e-5)


def test_streamed_training_reads_the_store_and_begins_where_another_ended(
    undisturbed: tuple[Path, rounds.LabelRunReport], corpus: CorpusConfig, tmp_path: Path
) -> None:
    output, report = undisturbed
    earlier = str(output / "rounds/002/hasher")
    base = config_of(corpus, tmp_path / "hasher").train
    labels = LabelsConfig(0.0, store=report.store)
    settings = dataclasses.replace(base, labels=labels, memory_gib=1e-6, initial=earlier)
    settings.optimization = dataclasses.replace(settings.optimization, epochs=1, learning_rate=1e-12)
    streamed = train(settings)
    assert streamed.labeled == 21
    # With no learning to speak of, what comes out is what it began with.
    logits = [Hasher.load(uri).logits_of(pq.read_table(corpus.uri)) for uri in (earlier, settings.output)]
    assert np.corrcoef(logits[0].ravel(), logits[1].ravel())[0, 1] > 0.95
    other = dataclasses.replace(settings, output=str(tmp_path / "other"), bits=8)
    with pytest.raises(InputError, match=r"other settings \(bits: 16 -> 8\)"):
        train(other)


def test_an_answer_sheet_shows_what_is_asked_about(tmp_path: Path) -> None:
    table = pa.table(
        {"id": [3, 1, 2], "text": ['a "b",\nc', "two", None], "label": ["x", "y", "z"], "year": [1, 2, 3]}
    )
    pq.write_table(table, tmp_path / "corpus.parquet")
    corpus = CorpusConfig(str(tmp_path / "corpus.parquet"), "text", payload_columns=["year", "label"])
    sheet = answer_sheet(TrainConfig(corpus, "unused"), [(2,), (3,)], 7).decode()
    rows = list(csv.DictReader(io.StringIO(sheet)))
    assert rows == [
        {"id": "2", "label": "", "round": "7", "text": "", "year": "3", "corpus label": "z"},
        {"id": "3", "label": "", "round": "7", "text": 'a "b",\nc', "year": "1", "corpus label": "x"},
    ]
    (tmp_path / "sheet.csv").write_text(sheet.replace("3,,7", "3,answered,7"))
    ran = run("label", "import", f"--store={tmp_path / 's'}", f"--input={tmp_path / 'sheet.csv'}")
    assert ran.code == 0, ran.err
    assert [(v.id, v.labels, v.round) for v in LabelStore.open(str(tmp_path / "s")).votes()] == [
        (3, ("answered",), 7)
    ]


def test_settings_that_cannot_work_are_refused(corpus: CorpusConfig, tmp_path: Path) -> None:
    unlabeled = dataclasses.replace(corpus, label_column=None)
    with pytest.raises(InputError, match=r"and there is none; name it, or take store"):
        config_of(unlabeled, tmp_path, queries=None)
    with pytest.raises(InputError, match="needs the simulated oracle"):
        config_of(corpus, tmp_path, oracle="store", selection=SelectionConfig("balanced-random"))
    with pytest.raises(InputError, match="at least one item for each round"):
        config_of(corpus, tmp_path, budget=1)
    with pytest.raises(InputError, match="at least the two items of a pair for each round"):
        config_of(corpus, tmp_path, budget=3, ask="pairs")
    for method, strategy, message in (
        ("vdsh-s", "random", "vdsh-s has no loss over pairs"),
        ("dpsh", "random", "dpsh needs labels, and answers about pairs give none"),
        ("ssb-vae", "entropy", "entropy needs labels, and answers about pairs give none"),
    ):
        settings = config_of(corpus, tmp_path, ask="pairs", selection=SelectionConfig(strategy))  # type: ignore[arg-type]
        settings.train.method = MethodConfig(name=method)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=message):
            rounds.run(settings)
