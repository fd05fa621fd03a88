"""Planning an index from a sample of a code set, and building the kind that was asked for or chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distindex.building import append, build, compact
from distindex.building.plan import plan
from distindex.building.sample import Sample, sample_of
from distindex.change_config import AppendConfig, CompactConfig
from distindex.codeset import CodeSet
from distindex.config import BuildConfig
from distindex.errors import InputError
from distindex.index.index import Index
from distindex.index.manifest import read_manifest
from distindex.inspection import inspect
from distindex.plan_config import InspectConfig, PlanConfig
from distindex.storage import Storage
from tests.pipeline import run
from tests.test_building_build import codes_of, nothing_written, write_code_set


def test_a_plan_is_what_the_build_then_takes(tmp_path: Path, ray_cluster: None) -> None:
    code_NC = codes_of(30_000)
    source = write_code_set(tmp_path / "codes", code_NC, list(range(30_000)))
    planned = plan(PlanConfig(codes=source, sample=15_000, shards=2))
    distinct = len(np.unique(code_NC, axis=0))
    assert planned["rows"] == 30_000
    # The growth from half of the sample to all of it goes on too long where codes run out, as they do here.
    assert distinct <= planned["distinct codes"] <= 1.25 * distinct
    assert planned["kind"] == "flat"
    assert "few enough" in planned["why"]
    report = build(BuildConfig(codes=source, output=str(tmp_path / "index"), shards=2, kind="auto"))
    assert (report.kind, report.recall, report.distinct) == ("flat", None, distinct)
    assert planned["bytes per shard"] * 2 == pytest.approx(report.bytes, rel=0.25)
    assert planned["memory per build task"] > planned["bytes per shard"]


def test_shards_follow_from_the_memory_that_one_may_take(tmp_path: Path) -> None:
    source = write_code_set(tmp_path / "codes", codes_of(5000), list(range(5000)))
    assert plan(PlanConfig(codes=source))["shards"] == 1
    few = plan(PlanConfig(codes=source, memory_gib=0.00005))
    assert few["shards"] > 1
    assert few["memory per shard"] <= 0.00005 * 2**30 * 1.05


def test_a_code_set_without_rows_has_no_plan(tmp_path: Path) -> None:
    source = write_code_set(tmp_path / "codes", np.empty((0, 8), np.uint8), [])
    with pytest.raises(InputError, match="no rows to plan for"):
        plan(PlanConfig(codes=source))


def test_a_sample_stands_for_the_whole(tmp_path: Path) -> None:
    code_NC = codes_of(20_000)
    source = CodeSet.open(write_code_set(tmp_path / "codes", code_NC, list(range(20_000)), files=8))
    whole = sample_of(source, 1_000_000)
    assert (whole.rows, whole.distinct_of(20_000)) == (20_000, len(np.unique(code_NC, axis=0)))
    assert np.array_equal(whole.code_UC, np.unique(code_NC, axis=0))
    assert sample_of(source, 500).rows == 500
    unique = Sample(1000, np.zeros((1000, 8), np.uint8), 500, 8.0)
    assert unique.distinct_of(10**9) == 10**9
    short = Sample(1000, np.zeros((1000, 2), np.uint8), 500, 8.0)
    assert short.distinct_of(10**9) == 1 << 16


def test_a_build_records_the_recall_that_it_reached(tmp_path: Path, ray_cluster: None) -> None:
    code_NC = codes_of(30_000)
    source = write_code_set(tmp_path / "codes", code_NC, list(range(30_000)))
    output = str(tmp_path / "index")
    report = build(BuildConfig(codes=source, output=output, shards=2, kind="ivf", recall=0.5))
    assert report.recall is not None
    assert report.recall >= 0.5
    index = Index.open(output)
    assert index.kind == "ivf"
    assert index.manifest.parameters["recall"]["reached"] == report.recall
    assert index.search(code_NC[:5], 1).distance_M.tolist() == [0] * 5
    facts = inspect_of(output)
    assert facts["kind"] == "index, ivf"
    assert facts["recall"] == f"{report.recall} of the nearest 10, by distance"
    same = build(BuildConfig(codes=source, output=output, shards=2, kind="ivf", recall=0.5))
    assert (same.version, same.recall) == (1, report.recall)
    again = build(BuildConfig(codes=source, output=output, shards=2, kind="flat"))
    assert (again.version, again.kind, Index.open(output).manifest.parameters) == (2, "flat", {})


def test_append_and_compact_go_on_with_the_kind_of_the_index(tmp_path: Path, ray_cluster: None) -> None:
    code_NC = codes_of(12_000)
    first = write_code_set(tmp_path / "first", code_NC[:10_000], list(range(10_000)))
    second = write_code_set(tmp_path / "second", code_NC[10_000:], list(range(10_000, 12_000)))
    output = str(tmp_path / "index")
    build(BuildConfig(codes=first, output=output, kind="ivf", recall=0.5))
    assert append(AppendConfig(codes=second, index=output)).shards == 2
    assert compact(CompactConfig(index=output, shards=1)).shards == 1
    with Index.open(output) as index:
        assert (index.version, index.kind, index.rows) == (3, "ivf", 12_000)
        assert index.manifest.recall_target == 0.5
        assert index.manifest.parameters["recall"]["reached"] >= 0.5
    other = str(tmp_path / "other")
    whole = write_code_set(tmp_path / "whole", code_NC, list(range(12_000)))
    build(BuildConfig(codes=whole, output=other, kind="ivf", recall=0.5))
    assert read_manifest(Storage(other)).shards == read_manifest(Storage(output)).shards


def inspect_of(uri: str) -> dict[str, object]:
    return inspect(InspectConfig(uri=uri))


def test_a_recall_that_cannot_be_reached_leaves_no_version(tmp_path: Path, ray_cluster: None) -> None:
    random = np.random.default_rng(0)
    source = write_code_set(tmp_path / "codes", random.integers(0, 256, (4000, 8), dtype=np.uint8), list(range(4000)))
    for options, message in (
        ({"kind": "hash", "recall": 0.999}, "recall: hash reaches"),
        ({"kind": "ivf", "recall": 1.0}, "recall: ivf cannot promise 1"),
    ):
        output = tmp_path / str(options["kind"])
        with pytest.raises(InputError, match=message):
            build(BuildConfig(codes=source, output=str(output), **options))  # type: ignore[arg-type]
        assert nothing_written(output)


def test_plan_on_the_command_line(tmp_path: Path) -> None:
    source = write_code_set(tmp_path / "codes", codes_of(5000), list(range(5000)))
    shown = run("plan", "--codes", source)
    assert shown.code == 0
    assert "memory per build task" in shown.out
    assert run("plan", "--codes", source, "--json").json["rows"] == 5000
    refused = run("plan", "--codes", source, "--recall=1.5")
    assert (refused.code, "recall: 1.5 must lie in (0, 1]" in refused.err) == (2, True)
