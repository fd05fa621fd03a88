"""Large files in several tasks: the cut, what is read, and that the parts together are what one part would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distindex.codeset import OutputFile
from distindex.config import CorpusConfig, EncodeConfig, FeaturesConfig
from distindex.corpus.dataset import Corpus, CorpusFile
from distindex.corpus.features import fit_features
from distindex.encoding.part import encode_task
from distindex.encoding.tasks import Task, describe_plan, plan_differences, plan_tasks
from distindex.errors import InputError
from distindex.hashing.classic import fit_lsh
from distindex.hashing.hasher import Hasher
from distindex.storage import Storage

WIDTH, ROWS, GROUP = 12, 1000, 100


@pytest.fixture(scope="module")
def hasher(tmp_path_factory: pytest.TempPathFactory) -> Hasher:
    column = pa.array(list(np.random.default_rng(1).standard_normal((500, WIDTH))), pa.list_(pa.float32()))
    features = fit_features(FeaturesConfig(), "dense", [column])
    made = fit_lsh(features, features.transform(column), "vector", 16)
    made.save(str(tmp_path_factory.mktemp("hasher") / "lsh"))
    return made


def write_file(path: Path) -> pa.Table:
    vectors: list[Any] = list(np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32))
    vectors[333], vectors[777] = None, vectors[777] * np.nan
    table = pa.table(
        {
            "big": pa.array([f"{row}" * 50 for row in range(ROWS)]),
            "id": pa.array([f"doc-{row}" for row in range(ROWS)]),
            "vector": pa.array(vectors, pa.list_(pa.float32())),
            "title": pa.array([f"item {row}" for row in range(ROWS)]),
        }
    )
    pq.write_table(table, path, row_group_size=GROUP, compression="none", use_dictionary=False)
    return table


def open_corpus(path: Path) -> Corpus:
    return Corpus.open(CorpusConfig(str(path), "vector", payload_columns=["title"], on_bad_rows="reject"))


def encode_all(corpus: Corpus, tasks: list[Task], hasher: Hasher, output: Path) -> list[Any]:
    storage = Storage(str(output))
    return [encode_task(corpus, task, hasher, storage, 64, lambda: False) for task in tasks]


def read(output: Path, files: list[OutputFile]) -> pa.Table:
    return pa.concat_tables(pq.read_table(output / file.path) for file in files)


def test_a_large_file_becomes_several_parts_with_the_same_rows(tmp_path: Path, hasher: Hasher) -> None:
    write_file(tmp_path / "a.parquet")
    corpus = open_corpus(tmp_path / "a.parquet")
    (whole,) = plan_tasks(corpus, 256)
    cut = plan_tasks(corpus, 0.02)
    assert whole.rows == ROWS
    assert len(cut) > 3
    (one,), several = encode_all(corpus, [whole], hasher, tmp_path / "one"), encode_all(corpus, cut, hasher, tmp_path)
    assert read(tmp_path, [result.part for result in several]).equals(read(tmp_path / "one", [one.part]))
    rejected = read(tmp_path, [result.rejected_part for result in several if result.rejected_part])
    assert rejected.equals(read(tmp_path / "one", [one.rejected_part]))
    # Rows are numbered within the file, whatever task found them.
    assert rejected["row"].to_pylist() == [333, 777]
    assert sum(result.reasons.get('column "vector" holds NaN', 0) for result in several) == 1
    total = several[0].input_ids
    for result in several[1:]:
        total += result.input_ids
    assert total == one.input_ids
    assert len({task.names(corpus, "x").part.rsplit("-", 1)[1] for task in [whole, *cut]}) == 1 + len(cut)


def test_only_the_row_groups_and_columns_of_a_task_are_read(tmp_path: Path, hasher: Hasher) -> None:
    path = tmp_path / "a.parquet"
    write_file(path)
    corpus = open_corpus(path)
    tasks = plan_tasks(corpus, 0.02)
    expected = encode_all(corpus, tasks[1:2], hasher, tmp_path / "before")
    wanted, groups = {"id", "vector", "title"}, tasks[1].groups
    metadata, data = pq.read_metadata(path), bytearray(path.read_bytes())
    for number in range(metadata.num_row_groups):
        for place in range(metadata.num_columns):
            chunk = metadata.row_group(number).column(place)
            inside = groups.first <= number < groups.first + groups.count
            if not (inside and chunk.path_in_schema.split(".")[0] in wanted):
                start, size = chunk.data_page_offset, chunk.total_compressed_size
                data[start : start + size] = b"\xff" * size
    path.write_bytes(data)
    # What is left intact is the task's own row groups, in the columns that it needs.
    assert encode_all(corpus, tasks[1:2], hasher, tmp_path / "after") == expected
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read as Parquet"):
        encode_all(corpus, tasks[:1], hasher, tmp_path / "after")


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 1000)), max_size=12), min_size=1, max_size=4),
    st.integers(1, 1500),
)
def test_tasks_cover_every_row_group_once(files: list[list[tuple[int, int]]], size: int) -> None:
    made = []
    for number, groups in enumerate(files):
        rows, sizes = tuple(each[0] for each in groups), tuple(each[1] for each in groups)
        made.append(CorpusFile(f"{number}.parquet", 1, "", sum(rows), len(groups), rows, sizes))
    schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32()))])
    corpus = Corpus(CorpusConfig("x", "vector"), tuple(made), schema)
    tasks = plan_tasks(corpus, size / (1 << 20))
    assert [task.position for task in tasks] == list(range(len(tasks)))
    assert [task.input for task in tasks] == sorted(task.input for task in tasks)
    for number, groups in enumerate(files):
        own = [task for task in tasks if task.input == number]
        covered = [group for task in own for group in range(task.groups.first, task.groups.first + task.groups.count)]
        # Row groups without a row may be left out at a file's end.
        assert covered == list(range(len(covered)))
        assert all(groups[group][0] == 0 for group in range(len(covered), len(groups)))
        row = 0
        for task in own:
            assert task.groups.first_row == row
            inside = groups[task.groups.first : task.groups.first + task.groups.count]
            assert task.rows == sum(each[0] for each in inside)
            # Without its last row group, a task is smaller than asked for.
            assert sum(each[1] for each in inside[:-1]) < size
            row += task.rows
        assert row == made[number].rows
    assert [Task.from_json(task.to_json()) for task in tasks] == tasks


def test_what_changed_in_a_plan_is_named(tmp_path: Path, hasher: Hasher) -> None:
    for name in ("a", "b", "c"):
        write_file(tmp_path / f"{name}.parquet")

    def plan(names: str, task_mib: float = 256) -> dict[str, Any]:
        corpus = open_corpus(tmp_path)
        files = tuple(file for file in corpus.files if Path(file.uri).stem in names)
        config = EncodeConfig(corpus.config, "h", "o", task_mib=task_mib)
        return describe_plan(config, Corpus(corpus.config, files, corpus.schema), hasher)

    assert plan_differences(plan("ab"), plan("ab")) == ""
    assert plan_differences(plan("ab"), plan("ab", 1)) == "task_mib: 256 -> 1"
    found = plan_differences(plan("ab"), plan("bc"))
    assert "1 input file(s) new, first " in found
    assert "1 input file(s) gone, first " in found
    assert "c.parquet" in found.split(";")[0]
