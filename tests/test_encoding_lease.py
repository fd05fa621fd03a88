"""The lease on an output directory: of runs at the same time one goes on, and a dead one is not waited for long."""

from __future__ import annotations

import dataclasses
import importlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from distindex.encoding import encode, lease
from distindex.encoding.lease import Lease, LeaseLostError
from distindex.errors import ConflictError
from distindex.storage import Storage
from tests.pipeline import tree_of
from tests.test_encoding_runs import ROWS, config_of, parts_of, write_file, write_hasher

ENCODE: Any = importlib.import_module("distindex.encoding.encode")


@pytest.fixture(scope="module")
def hasher_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_hasher(tmp_path_factory.mktemp("hasher") / "lsh", seed=99)


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(lease, "STALE_S", 2.0)


@pytest.fixture(params=["disk", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "disk":
        yield Storage(str(tmp_path / "codes"))
    else:
        yield Storage(f"s3://bucket/lease/{tmp_path.name}", request.getfixturevalue("s3_options"))


def stop_beating(held: Lease) -> None:
    """As if its process had been killed."""
    held._ended.set()
    held._thread.join()


def test_one_of_many_gets_it_and_a_dead_one_is_followed(output: Storage) -> None:
    refusals: list[str] = []

    def take(_: int) -> Lease | None:
        try:
            return Lease.take(output)
        except ConflictError as error:
            refusals.append(str(error))
            return None

    with ThreadPoolExecutor(6) as pool:
        (first,) = [held for held in pool.map(take, range(6)) if held is not None]
    stop_beating(first)
    began = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        (second,) = [held for held in pool.map(take, range(3)) if held is not None]
    assert time.monotonic() - began >= lease.STALE_S
    # The first was only asleep.
    first._ended.clear()
    first._beat()
    assert first.lost
    first.__exit__()
    assert take(0) is None, "the one that lost it leaves it to the other"
    second.__exit__()
    holder = f"another run is encoding here ({os.uname().nodename}, process {os.getpid()}, since 20"
    assert len(refusals) == 8
    assert all(holder in refusal for refusal in refusals)
    assert output.names() == []


def test_a_lease_of_long_ago_is_not_waited_for(output: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    output.write_bytes("notes.txt", b"not ours")
    monkeypatch.setattr(lease, "STALE_S", 3600.0)
    output.write_json("_lease/00000007.json", {"holder": "x", "heartbeat": "2026-01-01T00:00:00+00:00"})
    with Lease.take(output):
        assert output.names("_lease") == ["00000007.json", "00000008.json"]
    assert output.names() == ["notes.txt"]


def test_a_second_run_is_refused_and_damages_nothing(
    tmp_path: Path, hasher_uri: str, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(tmp_path / "corpus" / "a.parquet", 0, bad=True)
    config = config_of(tmp_path, hasher_uri, task_mib=0.01)
    whole = encode(dataclasses.replace(config, output=str(tmp_path / "whole")))

    def left() -> dict[str, Any]:
        return {name: data for name, data in tree_of(tmp_path / "codes").items() if "_lease" not in str(name)}

    def second(*arguments: Any) -> Any:
        monkeypatch.setattr(ENCODE, "read_back", found)
        before = left()
        for settings in ({}, {"restart": True}):
            with pytest.raises(ConflictError, match=r"another run is encoding here .*goes on with what is done"):
                encode(dataclasses.replace(config, **settings))
        assert left() == before
        return found(*arguments)

    found = ENCODE.read_back
    monkeypatch.setattr(ENCODE, "read_back", second)
    report = encode(config)
    assert (report.rows, report.rejected) == (ROWS - 3, 3)
    assert parts_of(report.uri) == parts_of(whole.uri)
    assert {path.name for path in Path(report.uri).iterdir()} == {path.name for path in Path(whole.uri).iterdir()}


@pytest.mark.parametrize("moment", ["encode_tasks", "read_back"])
def test_two_runs_that_both_think_they_hold_it(
    tmp_path: Path, hasher_uri: str, ray_cluster: None, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The second begins, commits and sweeps while the first is about to encode, or has encoded and checks."""
    monkeypatch.setattr(lease, "STALE_S", 0.0)
    write_file(tmp_path / "corpus" / "a.parquet", 0, bad=True)
    config = config_of(tmp_path, hasher_uri, task_mib=0.01)
    first_step, trees = getattr(ENCODE, moment), []

    def second(*arguments: Any) -> Any:
        monkeypatch.setattr(ENCODE, moment, first_step)
        assert encode(config).reused == (0 if moment == "encode_tasks" else len(parts_of(config.output)))
        trees.append(tree_of(Path(config.output)))
        return first_step(*arguments)

    monkeypatch.setattr(ENCODE, moment, second)
    report = encode(config)
    assert (report.rows, report.rejected) == (ROWS - 3, 3)
    assert [tree_of(Path(config.output))] == trees, "the first finds the second's code set and leaves it as it is"


def test_a_run_that_lost_its_lease_stops_and_keeps_what_is_done(
    tmp_path: Path, hasher_uri: str, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(tmp_path / "corpus" / "a.parquet", 0)
    config = config_of(tmp_path, hasher_uri, task_mib=0.01)
    output = Storage(config.output)
    others = threading.Event()

    def taken_over(*arguments: Any) -> Any:
        stop_beating(arguments[-1])
        output.create_json("_lease/00000002.json", {"holder": "another", "heartbeat": "2026-01-01T00:00:00+00:00"})
        arguments[-1]._ended = others
        arguments[-1]._beat()
        return found(*arguments)

    found = ENCODE.encode_tasks
    monkeypatch.setattr(ENCODE, "encode_tasks", taken_over)
    with pytest.raises(LeaseLostError, match="another run took this one for dead"):
        encode(config)
    monkeypatch.undo()
    assert output.names("_lease") == ["00000001.json", "00000002.json"]
    assert not any(name.startswith("failed-") for name in output.names("_progress"))
    done = len(parts_of(config.output))
    assert done >= 1
    report = encode(config)
    assert (report.rows, report.reused) == (ROWS, done)
    assert not output.exists("_lease")
