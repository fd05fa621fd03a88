"""Runs of encoding as users start them: limits, changed plans, new files, dry runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import distindex
from distindex.change_config import AppendConfig
from distindex.codeset import CodeSet
from distindex.config import BuildConfig, CorpusConfig, EncodeConfig, FeaturesConfig, WorkersConfig
from distindex.corpus.dataset import Corpus
from distindex.corpus.features import fit_features
from distindex.encoding import encode
from distindex.encoding.directory import begin
from distindex.encoding.part import encode_task
from distindex.encoding.tasks import describe_plan, plan_tasks
from distindex.errors import ConflictError, DamagedError, InputError, NotFoundError, TooManyRejectedError
from distindex.hashing.classic import fit_lsh
from distindex.hashing.hasher import Hasher
from distindex.storage import Storage
from tests.pipeline import run, tree_of
from tests.test_corpus_id_sum import digits_of

WIDTH, BITS, ROWS = 12, 16, 600
NAN, NULL = 'column "vector" holds NaN', 'column "vector" is null'


def write_file(path: Path, first: int, bad: bool = False) -> None:
    """`ROWS` rows in 6 row groups; with `bad` a NaN in row 7, a null in row 311 and a null id in row 400."""
    path.parent.mkdir(exist_ok=True)
    vectors: list[Any] = list(np.random.default_rng(first).standard_normal((ROWS, WIDTH)).astype(np.float32))
    ids: list[Any] = list(range(first, first + ROWS))
    if bad:
        vectors[7], vectors[311], ids[400] = vectors[7] * np.nan, None, None
    columns = {"id": pa.array(ids, pa.int64()), "vector": pa.array(vectors, pa.list_(pa.float32()))}
    pq.write_table(pa.table(columns), path, row_group_size=100)


@pytest.fixture(scope="module")
def hasher_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_hasher(tmp_path_factory.mktemp("hasher") / "lsh", seed=99)


def write_hasher(path: Path, seed: int) -> str:
    column = pa.array(list(np.random.default_rng(seed).standard_normal((500, WIDTH))), pa.list_(pa.float32()))
    features = fit_features(FeaturesConfig(), "dense", [column])
    fit_lsh(features, features.transform(column), "vector", BITS).save(str(path))
    return str(path)


def config_of(tmp_path: Path, hasher_uri: str, output: str = "codes", **settings: Any) -> EncodeConfig:
    corpus = CorpusConfig(str(tmp_path / "corpus"), "vector", on_bad_rows="reject")
    workers = WorkersConfig(count=1, cpus=1)
    return EncodeConfig(corpus, hasher_uri, str(tmp_path / output), batch_rows=64, workers=workers, **settings)


def leave_unfinished(config: EncodeConfig, tasks: int) -> list[str]:
    """What a run leaves that was killed after some tasks; the paths of their parts."""
    hasher, corpus, output = Hasher.load(config.hasher), Corpus.open(config.corpus), Storage(config.output)
    begin(output, describe_plan(config, corpus, hasher))
    planned = plan_tasks(corpus, config.task_mib)[:tasks]
    return [encode_task(corpus, task, hasher, output, 64, lambda: False).part.path for task in planned]


def parts_of(uri: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(uri).glob("part-*.parquet"))}


def test_parts_of_a_file_their_sums_and_the_report(tmp_path: Path, hasher_uri: str, ray_cluster: None) -> None:
    write_file(tmp_path / "corpus" / "a.parquet", 0, bad=True)
    write_file(tmp_path / "corpus" / "b.parquet", 5000)
    report = encode(config_of(tmp_path, hasher_uri, task_mib=0.01))
    manifest = CodeSet.open(report.uri).manifest
    ids = [pq.read_table(Path(report.uri) / file.path)["id"].to_pylist() for file in manifest.files]
    every = [identifier for part in ids for identifier in part]
    assert every == [*(i for i in range(ROWS) if i not in (7, 311, 400)), *range(5000, 5000 + ROWS)]
    # A part says where its rows come from, and readers of before can do without.
    assert len(manifest.sources) == len(manifest.files) == report.parts > 3
    assert [source.input for source in manifest.sources] == sorted(source.input for source in manifest.sources)
    for number, file in enumerate(manifest.inputs):
        own = [source for source in manifest.sources if source.input == number]
        assert [source.first_row for source in own] == np.cumsum([0, *(s.rows for s in own)])[:-1].tolist()
        assert sum(source.rows for source in own) == file.rows
    assert [source.ids for source in manifest.sources] == [digits_of(part) for part in ids]
    assert manifest.ids == digits_of(every)

    reasons = {'column "id" is null': 1, NAN: 1, NULL: 1}
    assert (report.rows, report.rejected, report.files, report.reasons) == (2 * ROWS - 3, 3, 2, reasons)
    assert report.startup_seconds + report.encoding_seconds + report.checking_seconds <= report.seconds
    assert report.rows_per_second == pytest.approx(report.rows / report.encoding_seconds)
    assert report.peak_memory > 50e6
    stored = json.loads((tmp_path / "codes" / "report.json").read_text())
    assert (stored["kind"], stored["rows"], stored["reasons"]) == ("encode-report", report.rows, reasons)
    assert '3 rows rejected, see rejected/: 1 column "id" is null' in report.text()


def test_ids_that_came_out_otherwise_than_they_went_in(tmp_path: Path, hasher_uri: str, ray_cluster: None) -> None:
    write_file(tmp_path / "corpus" / "a.parquet", 0, bad=True)
    config = config_of(tmp_path, hasher_uri, task_mib=0.01)
    path = tmp_path / "codes" / leave_unfinished(config, 100)[1]
    # As a fault would leave it: the same number of rows and bytes, one id in place of another.
    table = pq.read_table(path)
    ids = table["id"].to_pylist()
    ids[5] = 90_000
    pq.write_table(table.set_column(0, "id", pa.array(ids, pa.int64())), path)
    (record,) = (tmp_path / "codes" / "_progress").glob(f"{path.stem}.json")
    value = json.loads(record.read_text())
    value["part"]["bytes"] = path.stat().st_size
    record.write_text(json.dumps(value))
    with pytest.raises(DamagedError, match=rf"{path.name}: its ids .* are not the ids of .*a\.parquet from row \d+"):
        encode(config)
    assert not (tmp_path / "codes" / "manifest.json").exists()
    assert parts_of(tmp_path / "codes") == {}, "what is not to be trusted does not stay for the next run"


def test_too_many_rejected_rows_stop_a_run_that_can_go_on(tmp_path: Path, hasher_uri: str, ray_cluster: None) -> None:
    for number in range(3):
        write_file(tmp_path / "corpus" / f"{number}.parquet", number * 1000, bad=True)
    config = config_of(tmp_path, hasher_uri, max_rejected=4)
    with pytest.raises(
        TooManyRejectedError, match=r"6 rows are rejected so far.*allows 4: .*0\.parquet row 7: column"
    ):
        encode(config)
    assert not (tmp_path / "codes" / "manifest.json").exists()
    kept = parts_of(tmp_path / "codes")
    assert len(kept) >= 2
    # In one task alone; 3 of 1,800 rows are allowed.
    planned, corpus = plan_tasks(Corpus.open(config.corpus), 256), Corpus.open(config.corpus)
    with pytest.raises(TooManyRejectedError, match=r"3 rows are rejected so far, and max_rejected allows 2"):
        encode_task(corpus, planned[0], Hasher.load(hasher_uri), Storage(str(tmp_path / "x")), 600, lambda: False, 2)
    report = encode(dataclasses.replace(config, max_rejected=0.0051))
    assert (report.rejected, report.reused) == (9, len(kept))
    assert kept.items() <= parts_of(tmp_path / "codes").items()


def test_the_limit_of_rejected_rows_is_checked(tmp_path: Path, hasher_uri: str) -> None:
    for limit in (-1, 1.5):
        with pytest.raises(InputError, match="max_rejected"):
            config_of(tmp_path, hasher_uri, max_rejected=limit)
    with pytest.raises(InputError, match=r"has no effect while corpus.on_bad_rows is fail"):
        EncodeConfig(CorpusConfig("x", "vector"), hasher_uri, "y", max_rejected=3)


def test_an_unfinished_run_of_another_plan(tmp_path: Path, hasher_uri: str, ray_cluster: None) -> None:
    write_file(tmp_path / "corpus" / "a.parquet", 0)
    config = config_of(tmp_path, hasher_uri)
    (old,) = leave_unfinished(config, 1)
    write_file(tmp_path / "corpus" / "b.parquet", 1000)
    (tmp_path / "codes" / "notes.txt").write_text("not ours")
    before = tree_of(tmp_path / "codes")
    for settings, difference in (
        ({}, r"1 input file\(s\) new, first .*b\.parquet"),
        ({"task_mib": 1.0}, r"task_mib: 256.0 -> 1.0; 1 input file\(s\) new"),
    ):
        with pytest.raises(ConflictError, match=rf"was encoding something else here \({difference}.*set restart"):
            encode(dataclasses.replace(config, **settings))
    other = write_hasher(tmp_path / "other", seed=7)
    with pytest.raises(ConflictError, match=r"hasher: '[0-9a-f]{16}' -> '[0-9a-f]{16}'"):
        encode(dataclasses.replace(config, hasher=other))
    assert tree_of(tmp_path / "codes") == before

    report = encode(dataclasses.replace(config, restart=True, hasher=other))
    assert (report.rows, report.reused) == (2 * ROWS, 0)
    parts = {file.path for file in CodeSet.open(report.uri).manifest.files}
    assert old not in parts
    assert {path.name for path in (tmp_path / "codes").iterdir()} == {
        *parts, "manifest.json", "report.json", "notes.txt"
    }  # fmt: skip
    before = tree_of(tmp_path / "codes")
    with pytest.raises(ConflictError, match="a finished code set, which restart does not remove"):
        encode(dataclasses.replace(config, restart=True, hasher=other))
    assert tree_of(tmp_path / "codes") == before


def test_files_that_came_since(tmp_path: Path, hasher_uri: str, ray_cluster: None) -> None:
    corpus, codes, index = tmp_path / "corpus", tmp_path / "codes", str(tmp_path / "index")
    write_file(corpus / "1.parquet", 0)
    with pytest.raises(NotFoundError, match="the first time, leave since out"):
        encode(config_of(tmp_path, hasher_uri, "codes/1", since=str(codes)))
    encode(config_of(tmp_path, hasher_uri, "codes/1"))
    distindex.build(BuildConfig(str(codes / "1"), index))
    write_file(corpus / "2.parquet", 1000)
    second = config_of(tmp_path, hasher_uri, "codes/2", since=str(codes))
    report = encode(second)
    assert (report.rows, report.files) == (ROWS, 1)
    manifest = CodeSet.open(report.uri).manifest
    assert [Path(file.uri).name for file in manifest.inputs] == ["2.parquet"]
    assert [Path(file.uri).name for file in manifest.earlier] == ["1.parquet"]
    assert distindex.append(AppendConfig(report.uri, index)).rows == 2 * ROWS
    before = tree_of(codes)
    assert encode(second).reused == 1, "the same command again is done already"
    assert tree_of(codes) == before
    # A night without new files; the newest code set alone knows the files of those before it.
    third = encode(config_of(tmp_path, hasher_uri, "codes/3", since=str(codes / "2")))
    assert (third.rows, third.files, third.parts) == (0, 0, 0)
    appended = distindex.append(AppendConfig(third.uri, index))
    assert (appended.added, appended.rows) == (0, 2 * ROWS)

    before = tree_of(codes)
    other = write_hasher(tmp_path / "other", seed=7)
    with pytest.raises(ConflictError, match="was encoded by another hasher"):
        encode(config_of(tmp_path, other, "codes/4", since=str(codes)))
    write_file(corpus / "1.parquet", 3000)
    with pytest.raises(ConflictError, match=r"1\.parquet: encoded before, but changed since"):
        encode(config_of(tmp_path, hasher_uri, "codes/4", since=str(codes)))
    (corpus / "1.parquet").unlink()
    with pytest.raises(ConflictError, match=r"1\.parquet: encoded before, but gone from the corpus since"):
        encode(config_of(tmp_path, hasher_uri, "codes/4", since=str(codes)))
    assert tree_of(codes) == before


def test_a_dry_run_writes_nothing(tmp_path: Path, hasher_uri: str, ray_cluster: None) -> None:
    for number in range(2):
        write_file(tmp_path / "corpus" / f"{number}.parquet", number * 1000, bad=True)
    arguments = [
        *("encode", f"--corpus.uri={tmp_path / 'corpus'}", "--corpus.feature_column=vector"),
        *("--corpus.on_bad_rows=reject", f"--hasher={hasher_uri}", f"--output={tmp_path / 'codes'}"),
        *("--task_mib=0.01", "--workers.count=2", "--dry_run=true"),
    ]
    before = tree_of(tmp_path)
    plan = run(*arguments, "--json").json
    tasks = plan_tasks(Corpus.open(CorpusConfig(str(tmp_path / "corpus"), "vector")), 0.01)
    assert (plan["files"], plan["rows"], plan["tasks"], plan["tasks_done"]) == (2, 2 * ROWS, len(tasks), 0)
    assert (plan["encoders"], plan["sample_rows"], plan["sample_rejected"]) == (2, 2 * ROWS, 6)
    assert plan["seconds"] == pytest.approx(2 * ROWS / plan["rows_per_second"] / 2)
    # 2 bytes of code, which do not compress, 8 bytes of id, and what Parquet adds.
    assert 2 < plan["bytes_out"] / (2 * ROWS) < 20
    shown = run(*arguments)
    assert shown.code == 0, shown.err
    assert f"tasks     {len(tasks)}\n" in shown.out
    assert tree_of(tmp_path) == before
    leave_unfinished(config_of(tmp_path, hasher_uri, task_mib=0.01), 3)
    before = tree_of(tmp_path)
    assert run(*arguments, "--json").json["tasks_done"] == 3
    assert tree_of(tmp_path) == before
