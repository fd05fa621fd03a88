"""Six commands from corpus to figures; and bad input: one line of what, where and what to do, and nothing written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distindex import codeset
from distindex.hashing import Hasher
from distindex.hashing.classic import fit_lsh
from distindex.storage import Storage
from tests import oracle
from tests.pipeline import (
    BITS,
    EPOCHS,
    ROWS,
    WIDTH,
    Ran,
    World,
    pipeline,
    run,
    table_of,
    tree_of,
    write_parts,
)

pytestmark = pytest.mark.slow

PREFIX = "distindex: error: "


@pytest.fixture(scope="module")
def world(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> World:
    return pipeline(tmp_path_factory.mktemp("commands"))


def result(world: World, verb: str) -> Any:
    return world.results[verb][1]


def test_reports_say_what_was_made(world: World) -> None:
    trained, encoded, built = (result(world, verb) for verb in ("train", "encode", "build"))
    assert (trained["uri"], trained["rows"], trained["labeled"]) == (str(world.path("hasher")), ROWS, ROWS // 2)
    assert (trained["epochs"], len(trained["history"])) == (EPOCHS, EPOCHS), "the override wins over the file"
    assert Hasher.load(str(world.path("hasher"))).fingerprint == trained["fingerprint"]
    assert (encoded["rows"], encoded["rejected"], encoded["files"]) == (ROWS, 0, 2)
    assert (built["version"], built["rows"], built["shards"]) == (1, ROWS, 1)


def test_a_query_on_disk_equals_the_oracle(world: World) -> None:
    hasher = Hasher.load(str(world.path("hasher")))
    corpus = pq.read_table(world.path("corpus"))
    code_NC = hasher.encode(corpus)
    assert result(world, "build")["distinct"] == len(np.unique(code_NC, axis=0))
    ids = corpus["id"].to_pylist()
    expected = oracle.search(code_NC[:3], code_NC, ids, k=7)
    found = result(world, "query")
    assert found["version"] == 1
    assert [[(m["distance"], m["code"], m["id"]) for m in answers] for answers in found["results"]] == expected
    title_of = dict(zip(ids, corpus["title"].to_pylist(), strict=True))
    assert all(m["payload"] == {"title": title_of[m["id"]]} for answers in found["results"] for m in answers)

    text = code_NC[5].tobytes().hex()
    within = run("query", f"--target={world.path('index')}", f"--codes=[{text!r}]", "--radius=3", "--json").json
    answers = [(m["distance"], m["code"], m["id"]) for m in within["results"][0]]
    assert answers == oracle.search(code_NC[5:6], code_NC, ids, radius=3)[0]


def test_a_rescored_query_equals_the_definition(world: World) -> None:
    hasher = Hasher.load(str(world.path("hasher")))
    corpus = pq.read_table(world.path("corpus"))
    logit_NK = hasher.logits_of(corpus)
    arguments = [f"--target={world.path('index')}", "--k=5", "--candidates=9", "--rescore=true"]
    vectors = f"--vectors={json.dumps(world.vector_NV[:3].tolist())}"
    found = run("query", *arguments, vectors, "--json").json["results"]
    ids = corpus["id"].to_pylist()
    expected = oracle.asymmetric_search(logit_NK[:3], hasher.encode(corpus), ids, k=5, candidates=9)
    assert [[(m["distance"], m["code"], m["id"]) for m in answers] for answers in found] == [
        [row[1:] for row in answers] for answers in expected
    ]
    scores = [[m["score"] for m in answers] for answers in found]
    assert scores == [pytest.approx([row[0] for row in answers], rel=1e-4, abs=1e-5) for answers in expected]
    shown = run("query", *arguments, vectors)
    assert shown.out.splitlines()[0].split()[:5] == ["query", "id", "score", "distance", "code"]
    assert "score" not in result(world, "query")["results"][0][0]
    refused = run("query", *arguments, "--codes=['0000']")
    assert (refused.code, refused.err) == (
        2,
        "distindex: error: rescore: codes have no logits to rank by; send vectors, texts, images or logits\n",
    )


def test_evaluation_writes_what_it_reports(world: World) -> None:
    evaluated = result(world, "evaluate")
    directory = world.path("evaluation")
    assert {Path(file).name for file in evaluated["files"]} == {path.name for path in directory.iterdir()}
    written = json.loads((directory / "metrics.json").read_text())
    assert evaluated["methods"] == written["methods"]
    assert [method["method"] for method in written["methods"]] == ["csb-vae", "csb-vae, rescored"]


def test_inspect_knows_all_three(world: World) -> None:
    fingerprint = result(world, "train")["fingerprint"]
    hasher, codes, index = (
        run("inspect", "--uri", world.path(n), "--json").json for n in ("hasher", "codes", "index")
    )
    assert (hasher["kind"], hasher["fingerprint"], hasher["bits"]) == ("hasher", fingerprint, BITS)
    assert hasher["network"] == f"{WIDTH} -> 32 -> {BITS}"
    assert (codes["kind"], codes["rows"], codes["payload"]) == ("code set", ROWS, "title")
    assert fingerprint in codes["hasher"]
    assert (index["kind"], index["rows"], index["bits"]) == ("index, flat", ROWS, BITS)
    assert index == result(world, "inspect")


def test_the_same_commands_for_people(world: World) -> None:
    before = tree_of(world.root)
    shown = {verb: run(verb, *arguments) for verb, (arguments, _) in world.results.items()}
    assert {verb: ran.code for verb, ran in shown.items()} == dict.fromkeys(shown, 0)
    assert shown["train"].out.startswith(f"hasher: {world.path('hasher')} (epoch ")
    assert "nothing to do" in shown["train"].err
    assert shown["encode"].out == f"code set: {world.path('codes')} ({ROWS} rows in 2 files)\n"
    assert shown["build"].out.startswith(f"index: {world.path('index')} version 1 ({ROWS} rows, ")
    assert shown["query"].out.splitlines()[0].split()[:4] == ["query", "id", "distance", "code"]
    assert "P@10" in shown["evaluate"].out
    assert "distinct codes" in shown["inspect"].out
    changed = {name for name, content in tree_of(world.root).items() if before.get(name) != content}
    assert all(name.startswith("evaluation") for name in changed), "done work is not done again"


def check_refused(ran: Ran, *parts: str) -> None:
    """One line that says what is wrong, as the last thing, and exit code 2."""
    lines = ran.err.splitlines()
    assert ran.code == 2, ran.err
    assert [line for line in lines if line.startswith(PREFIX)] == lines[-1:], ran.err
    assert not ran.out
    assert "Traceback" not in ran.err
    for part in parts:
        assert part in lines[-1], lines[-1]


@pytest.fixture(scope="module")
def bad(world: World) -> World:
    """Beside the good corpus: corpora with one fault each, damaged copies, another hasher."""
    root = world.root
    labels = ["a"] * 6
    good = table_of(np.arange(48).reshape(6, WIDTH) / 48, labels)
    spoiled = np.arange(48.0).reshape(6, WIDTH)
    spoiled[4, 2] = np.nan
    write_parts(root / "nan", table_of(spoiled[:3], labels[:3]), table_of(spoiled[3:], labels[3:], 3))
    write_parts(root / "wide", table_of(np.ones((6, WIDTH + 1)), labels))
    write_parts(root / "repeated", good, table_of(np.ones((2, WIDTH)), labels[:2], 5))
    write_parts(root / "empty", good.slice(0, 0))
    write_parts(root / "unlabeled", table_of(np.ones((6, WIDTH)), [None] * 6))
    write_parts(root / "numbers", good.set_column(1, "vector", pa.array(range(6))))
    write_parts(root / "float-ids", good.set_column(0, "id", pa.array(np.ones(6))))
    (root / "not-parquet").mkdir()
    (root / "not-parquet" / "0.parquet").write_bytes(b"no")

    hasher = Hasher.load(str(root / "hasher"))
    x_NV = hasher.features.transform(good["vector"])
    fit_lsh(hasher.features, x_NV, "vector", 32).save(str(root / "hasher-32"))
    fit_lsh(hasher.features, x_NV, "vector", BITS).save(str(root / "hasher-other"))
    shutil.copytree(root / "hasher", root / "hasher-damaged")
    flip_byte(root / "hasher-damaged" / "weights.safetensors")
    shutil.copytree(root / "index", root / "index-damaged")
    flip_byte(next((root / "index-damaged").rglob("codes.faiss")))
    shutil.copytree(root / "codes", root / "codes-damaged")
    flip_byte(next((root / "codes-damaged").glob("part-*")))
    write_repeated_codes(root / "codes", root / "codes-repeated")
    (root / "unknown.yaml").write_text("uri: x\nnumber: 3\n")
    (root / "broken.yaml").write_text("uri: [\n")
    return world


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def write_repeated_codes(source: Path, target: Path) -> None:
    """A code set in which one row of another is there again, committed as if it were right."""
    manifest = codeset.CodeSet.open(str(source)).manifest
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("manifest.json"))
    first = manifest.files[0]
    table = pq.read_table(target / first.path)
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), target / first.path)
    data = (target / first.path).read_bytes()
    longer = dataclasses.replace(first, rows=first.rows + 1, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    files = (longer, *manifest.files[1:])
    codeset.commit(Storage(str(target)), dataclasses.replace(manifest, files=files, rows=manifest.rows + 1))


@pytest.fixture(scope="module")
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def _train(world: World, corpus: str, *more: str, label: bool = False) -> list[str]:
    small = ["--optimization.epochs=1", "--workers.count=1"]
    return ["train", *world.corpus(corpus, label=label), f"--output={world.path('out')}", *small, *more]


def _encode(world: World, corpus: str, *more: str, hasher: str = "hasher") -> list[str]:
    given = [f"--hasher={world.path(hasher)}", f"--output={world.path('out')}", "--workers.count=1"]
    return ["encode", *world.corpus(corpus), *given, *more]


def _build(world: World, codes: str, *more: str) -> list[str]:
    return ["build", f"--codes={world.path(codes)}", f"--output={world.path('out')}", *more]


def _query(world: World, target: str, *more: str) -> list[str]:
    return ["query", f"--target={world.path(target)}", *more]


def _evaluate(world: World, queries: str, hasher: str = "hasher") -> list[str]:
    given = [*world.corpus(prefix="--database", label=True), *world.corpus(queries, "--queries", label=True)]
    return ["evaluate", f"--hasher={world.path(hasher)}", *given, f"--output={world.path('out')}"]


ONE = f"--vectors={json.dumps([[0.5] * WIDTH])}"
BAD: dict[str, tuple[Callable[[World], list[str]], tuple[str, ...]]] = {
    # Where nothing is
    "train, no corpus": (lambda w: _train(w, "nowhere"), ("nowhere: no such file or directory",)),
    "encode, no corpus": (lambda w: _encode(w, "nowhere"), ("nowhere: no such file or directory",)),
    "encode, no hasher": (lambda w: _encode(w, "corpus", hasher="nowhere"), ("nowhere: no hasher here",)),
    "build, no codes": (lambda w: _build(w, "nowhere"), ("nowhere: no code set here", "distindex encode")),
    "build, no hasher": (lambda w: _build(w, "codes", f"--hasher={w.path('nowhere')}"), ("nowhere: no hasher here",)),
    "query, no index": (lambda w: _query(w, "nowhere", ONE), ("nowhere: no index here", "distindex build")),
    "serve, no index": (lambda w: ["serve", f"--index={w.path('nowhere')}"], ("nowhere: no index here",)),
    "evaluate, no queries": (lambda w: _evaluate(w, "nowhere"), ("nowhere: no such file or directory",)),
    "inspect, nothing": (lambda w: ["inspect", f"--uri={w.path('nowhere')}"], ("neither a hasher",)),
    "inspect, no such version": (
        lambda w: ["inspect", f"--uri={w.path('index')}", "--version=9"],
        ("has no version 9",),
    ),
    # Corpora
    "train, no column": (lambda w: _train(w, "corpus", "--corpus.feature_column=x"), ('no column "x"', "vector")),
    "encode, no column": (lambda w: _encode(w, "corpus", "--corpus.payload_columns=[x]"), ('no column "x"', "title")),
    "train, numbers": (lambda w: _train(w, "numbers"), ('column "vector"', "int64", "lists of numbers, texts")),
    "train, float ids": (lambda w: _train(w, "float-ids"), ('column "id"', "ids of type double")),
    "train, not Parquet": (lambda w: _train(w, "not-parquet"), ("0.parquet: cannot be read as Parquet",)),
    "train, empty": (lambda w: _train(w, "empty"), ("the corpus is empty",)),
    "encode, empty": (lambda w: _encode(w, "empty"), ("the corpus is empty",)),
    "encode, width": (lambda w: _encode(w, "wide"), (f"{WIDTH + 1} dimensions", f"takes {WIDTH}")),
    "query, width": (lambda w: _query(w, "index", "--vectors=[[1, 2]]"), ("2 dimensions", f"expected {WIDTH}")),
    "train, NaN": (lambda w: _train(w, "nan"), ("1.parquet row 1:", 'column "vector" holds NaN', "on_bad_rows")),
    "encode, NaN": (lambda w: _encode(w, "nan"), ("1.parquet row 1:", 'column "vector" holds NaN', "on_bad_rows")),
    "evaluate, NaN": (lambda w: _evaluate(w, "nan"), ("1.parquet row 1:", "holds NaN")),
    "train, ids": (lambda w: _train(w, "repeated"), ("id 5 is there 2 times",)),
    "encode, ids": (lambda w: _encode(w, "repeated"), ("id 5", "0.parquet row 5", "1.parquet row 0")),
    "build, ids": (lambda w: _build(w, "codes-repeated"), ("id 0 stands twice", "nothing was written")),
    "train, no labels": (lambda w: _train(w, "unlabeled", label=True), ("no row has a label", '"label"')),
    "evaluate, no labels": (lambda w: _evaluate(w, "unlabeled"), ('all labels in column "label" are null',)),
    # What does not belong together
    "build, bits": (lambda w: _build(w, "codes", f"--hasher={w.path('hasher-32')}"), ("codes of 16 bits", "32 bits")),
    "build, hasher": (lambda w: _build(w, "codes", f"--hasher={w.path('hasher-other')}"), ("made by hasher",)),
    "query, bits": (lambda w: _query(w, "index", ONE, f"--hasher={w.path('hasher-32')}"), ("16 bits", "makes 32")),
    "serve, bits": (
        lambda w: ["serve", f"--index={w.path('index')}", f"--hasher={w.path('hasher-32')}"],
        ("codes of 16 bits", "makes 32"),
    ),
    "query, code of other bits": (lambda w: _query(w, "index", "--codes=['00ff00ff']"), ("codes[0]", "16 bits")),
    "query, no such column": (lambda w: _query(w, "index", ONE, "--columns=[x]"), ('no column "x"', "title")),
    "train, another run": (
        lambda w: ["train", "--config", str(w.path("train.yaml")), "--bits=32"],
        ("bits: 16 -> 32", "epochs"),
    ),
    # Damage
    "query, shard": (lambda w: _query(w, "index-damaged", ONE), ("codes.faiss", "sha256")),
    "encode, hasher": (lambda w: _encode(w, "corpus", hasher="hasher-damaged"), ("weights.safetensors", "sha256")),
    "evaluate, hasher": (lambda w: _evaluate(w, "corpus", "hasher-damaged"), ("weights.safetensors", "sha256")),
    "build, codes": (lambda w: _build(w, "codes-damaged"), ("part-", "sha256")),
    # Settings
    "bits": (lambda w: _train(w, "corpus", "--bits=12"), ("bits: 12 is not a multiple of 8",)),
    "no bits": (lambda w: _train(w, "corpus", "--bits=0"), ("bits: 0 is not a multiple of 8",)),
    "fraction": (lambda w: _train(w, "corpus", "--labels.fraction=1.5"), ("labels.fraction: 1.5",)),
    "type": (lambda w: _train(w, "corpus", "--optimization.epochs=many"), ("optimization.epochs", "many")),
    "choice": (lambda w: _train(w, "corpus", "--corpus.on_bad_rows=skip"), ("on_bad_rows", "skip")),
    "no GPU": (lambda w: _encode(w, "corpus", "--workers.device=cuda"), ("workers.device: cuda",)),
    "train, no GPU": (lambda w: _train(w, "corpus", "--workers.device=cuda"), ("workers.device: cuda",)),
    "train, too many workers": (
        lambda w: _train(w, "corpus", "--workers.count=99"),
        ("99 workers", "the cluster has"),
    ),
    "unknown option": (lambda w: _train(w, "corpus", "--bit=16"), ("--bit",)),
    "unknown verb": (lambda w: ["trian"], ("trian", "'train'")),
    "no verb": (lambda w: [], ("verb",)),
    "left out": (lambda w: ["train"], ("corpus.uri", "output")),
    "no config file": (lambda w: ["inspect", f"--config={w.path('no.yaml')}"], ("no.yaml", "does not exist")),
    "unknown key": (lambda w: ["inspect", f"--config={w.path('unknown.yaml')}"], ("number",)),
    "broken YAML": (lambda w: ["inspect", f"--config={w.path('broken.yaml')}"], ("line 2",)),
    "two kinds of queries": (lambda w: _query(w, "index", ONE, "--codes=['00ff']"), ("exactly one of",)),
    "k and radius": (lambda w: _query(w, "index", ONE, "--k=3", "--radius=3"), ("k", "radius")),
    "no k": (lambda w: _query(w, "index", ONE, "--k=0"), ("k: 0 must be at least 1",)),
    "not a code": (lambda w: _query(w, "index", "--codes=['zz']"), ("codes[0]", "hexadecimal")),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_changes_nothing(bad: World, case: str) -> None:
    make, parts = BAD[case]
    before = tree_of(bad.root)
    check_refused(run(*make(bad)), *parts)
    assert tree_of(bad.root) == before


def test_a_taken_port_is_named(bad: World, taken_port: int) -> None:
    ran = run("serve", f"--index={bad.path('index')}", f"--port={taken_port}")
    check_refused(ran, f"port: cannot listen on 127.0.0.1:{taken_port}", "set port to a free one")


def test_json_does_not_change_errors(bad: World) -> None:
    ran = run("inspect", f"--uri={bad.path('nowhere')}", "--json")
    check_refused(ran, "nowhere")
    assert ran.err.count("\n") == 1


def test_debug_adds_the_traceback_before_the_line(bad: World) -> None:
    ran = run("inspect", f"--uri={bad.path('nowhere')}", "--debug")
    assert ran.code == 2
    assert "Traceback" in ran.err
    assert ran.err.splitlines()[-1].startswith(PREFIX)


def test_an_unexpected_failure_is_one_line_too(bad: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("distindex.inspection.inspect", fail)
    ran = run("inspect", f"--uri={bad.path('hasher')}")
    assert ran.code == 1
    assert ran.err == f"{PREFIX}unexpected RuntimeError: first line; run again with --debug\n"


def test_bad_rows_can_be_put_aside(bad: World, tmp_path: Path) -> None:
    arguments = _encode(bad, "nan", "--corpus.on_bad_rows=reject", "--json", f"--output={tmp_path / 'codes'}")
    report = run(*arguments).json
    assert (report["rows"], report["rejected"]) == (5, 1)
    assert pq.read_table(tmp_path / "codes" / "rejected").to_pylist() == [
        {"file": str(bad.path("nan") / "1.parquet"), "row": 1, "id": "4", "reason": 'column "vector" holds NaN'}
    ]
    parts = [pq.read_table(path, columns=["id"]) for path in sorted((tmp_path / "codes").glob("part-*"))]
    assert pa.concat_tables(parts)["id"].to_pylist() == [0, 1, 2, 3, 5]
