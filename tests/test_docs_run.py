"""The commands and programs of README and the tutorial, run in their order: what they print is what the pages say."""

from __future__ import annotations

import csv
import json
import re
import shlex
import socket
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from distindex import Index, settings
from distindex.quickstart.data import write_documentation
from distindex.serve_config import ServeConfig
from distindex.serving.service import serve
from distindex.storage import Storage
from tests.pages import REPOSITORY, Block, blocks, commands
from tests.pipeline import Ran, run

pytestmark = pytest.mark.slow

RELATIVE = re.compile(r"(?:(?<=^)|(?<==))(?=(texts|embeddings|images|work|quickstart|my)[/.])")


def done(words: list[str], *overrides: str) -> Ran:
    # The local Ray of all tests was started elsewhere, and its workers are there.
    ran = run(*(re.sub(RELATIVE, f"{Path.cwd()}/", word) for word in words[1:]), *overrides)
    assert ran.code == 0, (words, ran.err)
    return ran


def run_python(block: Block, capsys: pytest.CaptureFixture[str], text: str | None = None) -> str:
    exec(compile(text or block.text, str(block), "exec"), {})
    return capsys.readouterr().out


def http_page(url: str, item: int, capsys: pytest.CaptureFixture[str]) -> int:
    """Run what docs/http.md asks a service of documentation texts, but for another version; how much that was."""
    asked = 0
    for block in blocks(REPOSITORY / "docs/http.md"):
        text = block.text.replace("http://127.0.0.1:8000", url).replace('"items": [87]', f'"items": [{item}]')
        if text.startswith("curl") and "/v1/deploy" not in text:
            given = subprocess.run(shlex.split(text), capture_output=True, text=True, timeout=60, check=True)
            answer = json.loads(given.stdout)
            assert "error" not in answer, (text, answer)
            assert len(answer.get("codes") or answer["results"][0]) in (1, 2), (text, answer)
            asked += 1
        elif text.startswith("from distindex import connect\n"):
            assert len(run_python(block, capsys, text).splitlines()) == 5
            asked += 1
    return asked


def test_the_tutorial(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    printed: list[str] = []
    for block in blocks(REPOSITORY / "docs/tutorial.md"):
        if block.language == "python":
            printed.append(run_python(block, capsys))
        elif block.language == "bash":
            printed += [done(words).out for words in commands(block)]
    text = "".join(printed)
    # Of 300 texts, the nearest three are of the subject that was asked for.
    assert len(re.findall(r"of a kitchen", text)) == 3
    assert [Index.open(f"{name}/index").rows for name in ("texts", "embeddings", "images")] == [300, 2000, 300]
    assert len(re.findall(r"^0 \d+$", text, re.MULTILINE)) >= 1


def test_readme(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_documentation(Storage("quickstart/documentation"))
    for name, rows in (("corpus", 400), ("queries", 40)):
        path = f"quickstart/documentation/{name}.parquet"
        pq.write_table(pq.read_table(path).slice(0, rows), path)
    shell = [block for block in blocks(REPOSITORY / "README.md") if block.language == "bash"]
    pipeline, changes = (
        next(block for block in shell if block.text.startswith(start))
        for start in ("distindex train", "distindex append")
    )
    for words in commands(pipeline):
        if words[1] == "serve":
            serving = words
            continue
        ran = done(words, *(["--optimization.epochs=2"] if words[1] == "train" else []))
    assert "label" in ran.out, "the last one printed the answers with their payload"

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert serving[2:] == ["--index", "work/index", "--port", "8000"]
    config = settings.load(ServeConfig, overrides=["--index", str(tmp_path / serving[3]), "--port", str(port)])
    with serve(config, blocking=False) as service:
        curl = next(block for block in shell if block.text.startswith("curl"))
        asked = subprocess.run(
            shlex.split(curl.text.replace(":8000", f":{port}")),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        (answers,) = json.loads(asked.stdout)["results"]
        assert len(answers) == 3
        program = next(block for block in blocks(REPOSITORY / "README.md") if block.language == "python")
        out = run_python(program, capsys, program.text.replace("http://127.0.0.1:8000", service.url))
        expected = [f"{answer['distance']} {answer['id']} {answer['payload']['name']}" for answer in answers]
        assert out.splitlines() == expected
        item = pq.read_table("quickstart/documentation/corpus.parquet")["id"][0].as_py()
        asked_of_the_page = http_page(service.url, item, capsys)
        assert asked_of_the_page == 5

    # What README appends: other rows, encoded as the first were.
    encode = next(words for words in commands(pipeline) if words[1] == "encode")
    done(
        [
            word.replace("corpus.parquet", "queries.parquet").replace("work/codes", "work/more-codes")
            for word in encode
        ]
    )
    given: dict[str, Any] = {}
    ids = pq.read_table("quickstart/documentation/corpus.parquet")["id"].to_pylist()[:2]
    for words in commands(changes):
        if words[1] == "delete":
            words[words.index("[17, 23]")] = json.dumps(ids)
        given[words[1]] = done(words, "--json").json
    assert (given["append"]["rows"], given["append"]["added"]) == (440, 40)
    assert (given["delete"]["rows"], given["delete"]["deleted"]) == (438, 2)
    tables = [pq.read_table(f"quickstart/documentation/{name}.parquet") for name in ("corpus", "queries")]
    rows = [row for table in tables for row in table.select(["id", "label"]).to_pylist()]
    matplotlib = {row["id"] for row in rows if row["label"] == "matplotlib"} - set(ids)
    found = [answer["id"] for answer in given["query"]["results"][0]]
    assert len(found) == min(10, len(matplotlib)) > 0
    assert set(found) <= matplotlib


def test_labeling_by_a_file(ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_documentation(Storage("quickstart/documentation"))
    path = "quickstart/documentation/corpus.parquet"
    corpus = pq.read_table(path).slice(0, 300)
    pq.write_table(corpus, path)
    label_of = dict(zip(corpus["id"].to_pylist(), corpus["label"].to_pylist(), strict=True))
    choose, export, import_ = (
        next(
            words
            for block in blocks(REPOSITORY / "docs/labeling.md")
            for words in commands(block)
            if words[2] == verb
        )
        for verb in ("run", "export", "import")
    )
    short = ["--train.optimization.epochs=2"]
    assert done(choose, *short, "--json").json["state"] == "waiting"

    sheet = Path("my/rounds/rounds/001/picks.csv")
    with sheet.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 100
    with sheet.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"label": label_of[int(row["id"])]} for row in rows)
    done(import_)
    done(choose, *short)
    assert Path("my/rounds/rounds/002/picks.csv").exists()
    done(export)
    assert Path("conflicts.csv").read_text().count("\n") == 1
