"""The quality protocol: preparation, plan, label masks, resumable runs and what is reported."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.datasets import load_digits

from benchmarks.quality import __main__ as quality
from benchmarks.quality import datasets
from benchmarks.quality.datasets import DATASETS, prepared
from benchmarks.quality.plan import Cell, Expected, Plan, chosen
from benchmarks.quality.runs import masked
from benchmarks.quality.store import Results
from distindex.config import LabelsConfig
from distindex.errors import FormatError, InputError
from distindex.training.data import read_training_set

NAME = "web_snippets_minilm"
PLAN: dict[str, Any] = {
    "protocol": {"bits": [16, 24], "labels": [0.1, 0.5], "seeds": [20, 144], "cutoffs": [10, 50]},
    "optimization": {"epochs": 1, "batch_size": 100, "learning_rate": 0.001},
    "datasets": {NAME: {}},
    "methods": {
        "ssb-vae": {
            "method": {"name": "ssb-vae", "hidden": [32]},
            "kinds": {"dense": {"optimization": {"epochs": 2}}},
        },
        "ssh": {"method": {"name": "ssh"}},
        "pca-sign": {"method": {"name": "pca-sign"}, "labels": "none", "seeds": [20]},
        "float cosine": {},
    },
    "expected": {NAME: {"pca-sign": [[16, None, 0.1, 0.02]], "ssh": [[16, 0.5, 0.99, 0.5]]}},
    "reference_code": {NAME: {"ssh": [[16, 0.5, 0.625]]}},
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with `plan.yaml` and, under the name of a data set of vectors, 400 digits as `data/NAME`."""
    pixels_NV, digit_N = load_digits(return_X_y=True)
    table = pa.table(
        {
            "id": np.arange(400),
            "embedding": pa.array(list(np.asarray(pixels_NV[:400], np.float32))),
            "label": pa.array([str(digit) for digit in digit_N[:400]]),
        }
    )
    (tmp_path / "data" / NAME).mkdir(parents=True)
    pq.write_table(table.slice(0, 300), tmp_path / "data" / NAME / "train.parquet")
    pq.write_table(table.slice(300), tmp_path / "data" / NAME / "test.parquet")
    write_plan(tmp_path)
    return tmp_path


def write_plan(home: Path, **changes: Any) -> Plan:
    (home / "plan.yaml").write_text(yaml.safe_dump({**PLAN, **changes}, sort_keys=False))
    return Plan(home / "plan.yaml")


def run(home: Path, *options: str) -> int:
    places = [
        "--plan",
        home / "plan.yaml",
        "--data",
        home / "data",
        "--work",
        home / "work",
        "--output",
        home / "out",
    ]
    return quality.main([*map(str, places), *options])


def lines(home: Path) -> list[dict[str, Any]]:
    path = home / "out" / "quality" / f"{NAME}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_is_kept_and_not_done_again_until_its_settings_change(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = ("--only", "method=ssb-vae,method=pca-sign,method=float cosine,bits=16,bits=none,labels=0.5,labels=none")
    assert run(home, *only) == 0
    first = lines(home)
    assert {(line["method"], line["labels"], line["seed"]) for line in first} == {
        ("ssb-vae", 0.5, 20),
        ("ssb-vae", 0.5, 144),
        ("pca-sign", None, 20),
        ("float cosine", None, 20),
    }
    assert run(home, *only) == 0
    assert lines(home) == first

    methods = {**PLAN["methods"], "ssb-vae": {"method": {"name": "ssb-vae", "hidden": [32], "kl_weight": 0.5}}}
    plan = write_plan(home, methods=methods)
    mine = [cell for cell in plan.cells() if cell.method == "ssb-vae" and cell.bits == 16 and cell.labels == 0.5]
    assert Results(home / "out" / "quality").outdated(plan, plan.cells()) == set(mine)
    capsys.readouterr()
    assert run(home, "--list", *only) == 0
    assert "ssb-vae          2      0        2         2" in capsys.readouterr().out
    assert run(home, *only) == 0
    assert lines(home)[:4] == first
    assert len(lines(home)) == 6

    # Back to the first settings: their runs count again.
    write_plan(home)
    assert run(home, *only) == 0
    assert len(lines(home)) == 6
    assert run(home, "--again", *only) == 0
    assert len(lines(home)) == 10


def test_figures_are_those_of_a_brute_force_ranking(home: Path) -> None:
    assert run(home, "--only", "method=float cosine") == 0
    train, test = (pq.read_table(home / "data" / NAME / f"{part}.parquet") for part in ("train", "test"))
    x_NV, x_QV = (np.stack(table["embedding"].to_numpy()).astype(np.float64) for table in (train, test))
    deviation_V = x_NV.std(0)
    deviation_V[deviation_V == 0] = 1
    x_QV, x_NV = ((x - np.stack(train["embedding"].to_numpy()).mean(0)) / deviation_V for x in (x_QV, x_NV))
    cosine_QN = (x_QV / np.linalg.norm(x_QV, axis=1)[:, None]) @ (x_NV / np.linalg.norm(x_NV, axis=1)[:, None]).T
    label_N, label_Q = (np.array(table["label"].to_pylist()) for table in (train, test))
    nearest = np.argsort(-cosine_QN, axis=1)[:, :10]
    assert lines(home)[0]["precision"]["10"] == pytest.approx((label_N[nearest] == label_Q[:, None]).mean(), abs=1e-3)


def test_the_report_holds_means_spread_expected_scores_and_curves(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(home, "--processes", "2", "--only", "method=ssh,bits=16", "--only", "method=pca-sign,bits=16") == 0
    printed = capsys.readouterr().out
    # A part of the runs leaves the others in the table.
    assert run(home, "--only", "method=float cosine") == 0
    kept = json.loads((home / "out" / "quality" / f"{NAME}.json").read_text())
    assert [(row["method"], row["labels"], row["seeds"]) for row in kept["rows"]] == [
        ("float cosine", "none", 1),
        ("ssh", "10%", 2),
        ("ssh", "50%", 2),
        ("pca-sign", "none", 1),
    ]
    ssh = [line["precision"]["10"] for line in lines(home) if line["method"] == "ssh" and line["labels"] == 0.5]
    row = kept["rows"][2]
    assert row["P@10"] == pytest.approx(np.mean(ssh))
    assert row["spread"] == pytest.approx(np.std(ssh, ddof=1))
    assert (row["reference code"], row["met"]) == (0.625, "met")
    assert kept["rows"][3]["met"] == "above"
    assert kept["baselines"] == {"ssh_16_50%": 0.625}
    assert json.loads(printed.splitlines()[-1])["benchmark"] == f"quality/{NAME}"
    assert (home / "out" / "quality" / f"{NAME}-16-bits.png").read_bytes().startswith(b"\x89PNG")
    assert (home / "out" / "quality" / f"{NAME}.md").exists()
    for path in (home / "out" / "quality").glob("*.md"):
        assert str(home) not in path.read_text()


def test_masks_are_those_of_distindex_train_and_the_same_for_every_method(home: Path) -> None:
    plan = Plan(home / "plan.yaml")
    directory = prepared(NAME, home / "data", home / "work")
    cells = [cell for cell in plan.cells() if cell.bits == 16 and cell.labels == 0.1 and cell.seed == 144]
    data = read_training_set(plan.features(cells[0], directory))
    assert {cell.method for cell in cells} == {"ssb-vae", "ssh"}
    for cell in cells:
        config = plan.config(cell, directory)
        expected, found = read_training_set(config), masked(data, config)
        np.testing.assert_array_equal(found.label_NC.toarray(), expected.label_NC.toarray())
        assert len(found.labeled) == 30
        assert found.known.names == expected.known.names
        assert config.optimization.seed == config.labels.seed == 144
        assert config.optimization.epochs == (2 if cell.method == "ssb-vae" else 1)
    unlabeled = dataclasses.replace(config, corpus=dataclasses.replace(config.corpus, label_column=None))
    assert not len(masked(data, unlabeled).labeled)
    assert masked(data, unlabeled).known.names == ()
    fewer = masked(data, dataclasses.replace(config, labels=LabelsConfig(0.05, 144)))
    assert np.isin(fewer.labeled, found.labeled).all()


def test_a_result_cut_off_by_a_crash_is_run_again_and_harms_no_other(home: Path) -> None:
    only = ("--only", "method=pca-sign")
    assert run(home, *only) == 0
    path = home / "out" / "quality" / f"{NAME}.jsonl"
    whole = path.read_text().splitlines(keepends=True)
    path.write_text(whole[0] + whole[1][:40])
    assert run(home, *only) == 0
    again = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    assert [line["bits"] for line in again] == [16, 24]
    path.write_text(whole[0].replace('"format_version": 1', '"format_version": 99'))
    plan = Plan(home / "plan.yaml")
    with pytest.raises(FormatError, match=r"jsonl line 1: a result of format 99"):
        Results(path.parent).read(plan, plan.cells())


def test_what_cannot_be_run_is_skipped_or_told_in_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_plan(home, datasets={"web_snippets": {}}, methods={"ssh": PLAN["methods"]["ssh"]})
    assert run(home) == 0
    assert "skipped: web_snippets: the data set is not there" in capsys.readouterr().out
    # 30 labeled rows, but more bits than dimensions.
    write_plan(home, protocol={**PLAN["protocol"], "bits": [128]}, methods={"ssh": PLAN["methods"]["ssh"]})
    assert run(home, "--only", "labels=0.1,seed=20") == 1
    assert "bits=128,labels=0.1,seed=20: bits: 128 directions asked" in capsys.readouterr().err
    assert not (home / "out").exists()
    for options, message in [
        (("--only", "speed=1"), "'speed=1' is no NAME=VALUE"),
        (("--only", "method=dsh"), "no run of the plan is like this"),
        (("--processes", "0", "--only", "seed=20"), "it takes at least one"),
    ]:
        assert run(home, *options) == 1
        assert message in capsys.readouterr().err
    for changes, message in [
        ({"datasets": {"moon": {}}}, "no data set moon"),
        ({"methods": {"ssh": {"metod": {}}}}, "method ssh has metod"),
    ]:
        with pytest.raises(InputError, match=message):
            write_plan(home, **changes)
    plan = write_plan(home, methods={"ssh": {"method": {"name": "ssh", "speed": 1}}})
    with pytest.raises(InputError, match="speed"):
        plan.config(plan.cells()[0], home)


def test_selections_take_any_of_the_values_of_a_name() -> None:
    cells = [Cell("a", "m", bits, labels, 20) for bits in (16, 32, None) for labels in (0.1, 1.0, None)]
    assert chosen(cells, []) == cells
    assert chosen(cells, ["bits=16,labels=1"]) == [cells[1]]
    assert chosen(cells, ["bits=16,bits=none,labels=none"]) == [cells[2], cells[8]]
    assert chosen(cells, ["bits=32", "labels=0.10"]) == [cells[0], *cells[3:6], cells[6]]


def test_the_repositorys_plan_makes_a_config_of_every_cell(tmp_path: Path) -> None:
    plan = Plan(quality.PLAN)
    assert set(plan.datasets) == set(DATASETS)
    fingerprints = set()
    for cell in plan.cells():
        fingerprints.add(plan.fingerprint(cell))
        if cell.bits is None or cell.seed != 20 or not DATASETS[cell.dataset].supported:
            continue
        config = plan.config(cell, tmp_path)
        assert (config.bits, config.labels.seed, config.optimization.seed) == (cell.bits, 20, 20)
    assert len(fingerprints) == len(plan.cells())
    wanted = {(cell.dataset, cell.method, cell.bits, cell.labels) for cell in plan.cells()}
    assert set(plan.expected) <= wanted
    assert set(plan.reference_code) <= wanted
    # The reference's table at 50% for 20newsgroups: alpha 1e5, gamma 1e5; pairs are a sum over 100 x 100.
    config = plan.config(Cell("20newsgroups", "ssb-vae reference", 32, 0.5, 20), tmp_path)
    assert (config.method.class_weight, config.method.pair_weight) == (1e10, 1e9)
    assert config.method.kl_weight == 1 / 64
    assert plan.config(Cell("tmc2007_500", "vdsh-s reference", 32, 0.8, 20), tmp_path).method.class_weight == 100


def test_a_score_is_met_within_its_tolerance() -> None:
    assert [Expected(0.6, 0.02).met(value) for value in (0.615, 0.625, 0.575)] == ["met", "above", "below"]


def test_published_data_becomes_corpus_and_queries_once(tmp_path: Path, shared_data: Path) -> None:
    directory = prepared("20newsgroups", shared_data, tmp_path)
    queries = pq.read_table(directory / "queries.parquet")
    published = pq.read_table(shared_data / "20newsgroups" / "test.parquet")
    assert queries.num_rows == 2_000
    position = {row: number for number, row in enumerate(published["id"].to_pylist())}
    numbers = [position[row] for row in queries["id"].to_pylist()]
    assert numbers == sorted(set(numbers))
    raw = published.take(numbers)
    assert queries["label"].to_pylist() == raw["label"].to_pylist()
    headed = sum(text.startswith(("From:", "Subject:", "Organization:")) for text in raw["text"].to_pylist())
    left = [text for text in queries["text"].to_pylist() if text.startswith(("From:", "Organization:"))]
    quoted = [line for text in queries["text"].to_pylist() for line in text.split("\n") if line.startswith(">")]
    assert headed > 1_500
    assert len(left) < 20
    assert not quoted
    stamp = (directory / "train.parquet").stat().st_mtime_ns
    assert prepared("20newsgroups", shared_data, tmp_path) == directory
    assert (directory / "train.parquet").stat().st_mtime_ns == stamp

    texts, embeddings = (
        prepared(name, shared_data, tmp_path) for name in ("stackoverflow_short", "stackoverflow_short_minilm")
    )
    parts = [
        [pq.read_table(d / f"{p}.parquet")["id"].to_pylist() for p in ("train", "queries")]
        for d in (texts, embeddings)
    ]
    assert parts[0] == parts[1]
    assert (len(parts[0][0]), len(parts[0][1])) == (18_000, 2_000)
    assert not set(parts[0][0]) & set(parts[0][1])
    with pytest.raises(InputError, match="name the directory above it with --data"):
        prepared("web_snippets", tmp_path, tmp_path)


@pytest.mark.parametrize("how", ["held-out", "held-out blocks"])
def test_held_out_queries_are_training_rows_that_the_database_does_not_have(
    home: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "BLOCK_ROWS", 10)
    write_plan(home, protocol={**PLAN["protocol"], "queries": how, "name": "trial"})
    assert run(home, "--only", "method=float cosine") == 0
    line = json.loads((home / "out" / "trial" / f"{NAME}.jsonl").read_text())
    assert (line["queries"], line["rows"]) == (30, 270)
    assert "held out" in (home / "out" / "trial" / f"{NAME}.md").read_text()
    (directory,) = (home / "work").iterdir()
    held, kept = (
        set(pq.read_table(directory / f"{part}.parquet")["id"].to_pylist()) for part in ("queries", "train")
    )
    assert held | kept == set(range(300))
    blocks = {row // 10 for row in held}
    assert (len(blocks) == 3) == (how == "held-out blocks"), "three times ten rows that stand together"
    with pytest.raises(InputError, match=r"protocol\.queries: 'validation' is not one of test, held-out"):
        write_plan(home, protocol={**PLAN["protocol"], "queries": "validation"})


def test_the_plans_of_the_repository_are_sound(tmp_path: Path) -> None:
    for path in sorted((Path(quality.__file__).parent.parent / "configs").glob("*.yaml")):
        plan = Plan(path)
        cells = [cell for cell in plan.cells() if cell.bits is not None]
        assert len({plan.fingerprint(cell) for cell in cells}) == len(cells)
        for cell in cells:
            plan.config(cell, tmp_path)
