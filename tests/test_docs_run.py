"""The programs of README and docs/, run in their order: what they print is what the pages say."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import gzip
import json
import os
import re
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
from PIL import Image

from distindex import Index, connect, settings
from distindex.quickstart.data import write_documentation
from distindex.serve_config import ServeConfig
from distindex.serving.service import Service, serve
from distindex.storage import Storage
from tests.object_storage import BUCKET, options_of
from tests.pages import PROGRAMS, REPOSITORY, RUN, Block, blocks
from tests.pipeline import Ran, run
from tests.shell import Shell

pytestmark = pytest.mark.slow

TUTORIAL, *TOGETHER = RUN
# Of the pages that ask the service of README.
LAST_THAT_ASKS = "docs/http.md"
ROWS, QUERIES = 400, 40

# The local Ray of all tests was started elsewhere, and its workers are there.
RELATIVE = re.compile(
    r"(?:(?<=^)|(?<==)|(?<=: ))"
    r"(?=(texts|embeddings|images|pictures|quickstart|my|tokens|certificate|key)(?:[/.]|$))",
    re.MULTILINE,
)
# What makes them short, and leaves processors to the service.
SHORT = {
    "train": ["--optimization.epochs=2", "--workers.count=1"],
    "encode": ["--workers.count=1"],
    "label run": ["--train.optimization.epochs=2", "--train.workers.count=1"],
    "top": ["--looks=1"],
}


def absolute(text: str) -> str:
    return re.sub(RELATIVE, f"{Path.cwd()}/", text)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@pytest.fixture
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Shell]]:
    with contextlib.ExitStack() as opened:

        def make(command: Callable[[Sequence[str]], Ran]) -> Shell:
            made = Shell(tmp_path_factory.mktemp("shell") / "bin", command)
            opened.callback(made.close)
            return made

        yield make


def run_python(text: str, name: str, capsys: pytest.CaptureFixture[str]) -> str:
    exec(compile(text, name, "exec"), {})
    return capsys.readouterr().out


def test_the_tutorial(
    ray_cluster: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shell: Callable[..., Shell],
) -> None:
    monkeypatch.chdir(tmp_path)
    bash = shell(lambda words: run(*map(absolute, words)))
    text = "".join(
        run_python(block.text, str(block), capsys) if block.language == "python" else bash.run(block.text, tmp_path)
        for block in blocks(REPOSITORY / TUTORIAL)
    )
    # Of 300 texts, the nearest three are of the subject that was asked for.
    assert len(re.findall(r"of a kitchen", text)) == 3
    assert [Index.open(f"{name}/index").rows for name in ("texts", "embeddings", "images")] == [300, 2000, 300]
    assert len(re.findall(r"^0 \d+$", text, re.MULTILINE)) >= 1


class World:
    """A reader's directory: what the pages take for granted, their commands, and the service in another terminal.

    Attributes:
        service: the one that runs.
        asked_to_label: what the pages' `label serve` showed, each while it ran.
        printed: what the blocks of each page printed.
    """

    def __init__(self, s3_port: int, make_shell: Callable[..., Shell], capsys: pytest.CaptureFixture[str]) -> None:
        self.service: Service | None = None
        self.asked_to_label: list[dict[str, Any]] = []
        self.printed: dict[str, list[str]] = {}
        self._served: ServeConfig | None = None
        self._port, self._grpc_port, self._label_port = free_ports(3)
        self._s3 = options_of(s3_port)
        self._shell, self._capsys = make_shell(self._distindex), capsys
        self._write_corpora()

    def _write_corpora(self) -> None:
        write_documentation(Storage("quickstart/documentation"))
        corpus, queries = (f"quickstart/documentation/{name}.parquet" for name in ("corpus", "queries"))
        documents = pq.read_table(corpus)
        pq.write_table(documents.slice(0, ROWS), corpus)
        pq.write_table(pq.read_table(queries).slice(0, QUERIES), queries)
        self._later = documents.slice(ROWS, 60)
        Path("my/texts").mkdir(parents=True)
        pq.write_table(self._later.slice(0, 40), "my/texts/0.parquet")
        for number in range(12):
            file = Path(f"pictures/{'light' if number % 2 else 'dark'}/{number}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (20 * number, 60 + number, 200 * (number % 2))).save(file)
        lines = "".join(json.dumps(row) + "\n" for row in documents.slice(0, 50).select(["id", "text"]).to_pylist())
        fsspec.filesystem("s3", **self._s3).pipe(f"{BUCKET}/texts/0.jsonl.gz", gzip.compress(lines.encode()))

    def run(self, page: str) -> None:
        """Run the programs of a page, and write its settings to the files that they name."""
        self.printed[page] = [
            self._run(block)
            for block in blocks(REPOSITORY / page)
            if not block.needs and not block.run_by and block.language in (*PROGRAMS, "yaml")
        ]

    def _run(self, block: Block) -> str:
        if block.language == "yaml":
            named = re.match(r"# (\S+\.yaml)\n", block.text)
            assert named, f"{block}: its first line names its file"
            Path(named[1]).write_text(absolute(block.text))
            return ""
        text = block.text.replace("//127.0.0.1:8000", f"//127.0.0.1:{self._port}")
        text = text.replace("http://minio:9000", self._s3["endpoint_url"])
        if block.language == "python":
            return run_python(text, str(block), self._capsys)
        if "--since=" in text:
            pq.write_table(self._later.slice(40), "my/texts/1.parquet")
        return self._shell.run(text, Path.cwd())

    def _distindex(self, words: Sequence[str]) -> Ran:
        verb = " ".join(words[: 2 if words[0] == "label" else 1])
        if verb == "serve":
            return self._serve(words[1:])
        if verb == "label serve":
            return self._label_serve(words)
        if verb == "label import":
            self._answer_picks()
        options = list(SHORT.get(verb, []))
        if any(word.startswith("s3://") for word in words):
            # Workers have not what the environment of the command says.
            options.append(f"--{'corpus.' * (verb == 'encode')}storage_options={json.dumps(self._s3)}")
        return run(*map(absolute, words), *options)

    def _serve(self, words: Sequence[str]) -> Ran:
        """What the block says, but for ports that are free; nothing where that is served already."""
        config = settings.load(ServeConfig, overrides=[absolute(word) for word in words])
        assert config.port == 8000
        assert config.grpc_port in (0, 8001)
        config = dataclasses.replace(config, port=self._port, grpc_port=self._grpc_port)
        if config != self._served:
            self.stop()
            self.service, self._served = serve(config, blocking=False), config
        return Ran(0, "", "")

    def _label_serve(self, words: Sequence[str]) -> Ran:
        """The page's server, until somebody has looked at it and presses Ctrl-C."""

        def look_and_stop() -> None:
            url, deadline = f"http://127.0.0.1:{self._label_port}/v1/task", time.monotonic() + 60
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10) as answer:
                    self.asked_to_label.append(json.load(answer))
                    break
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

        looking = threading.Thread(target=look_and_stop)
        looking.start()
        try:
            return run(*map(absolute, words), f"--port={self._label_port}")
        finally:
            looking.join()

    def _answer_picks(self) -> None:
        corpus = pq.read_table("quickstart/documentation/corpus.parquet")
        label_of = dict(zip(corpus["id"].to_pylist(), corpus["label"].to_pylist(), strict=True))
        sheet = Path("my/rounds/rounds/001/picks.csv")
        with sheet.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        with sheet.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(row | {"label": label_of[int(row["id"])]} for row in rows)

    def stop(self) -> None:
        if self.service:
            self.service.stop()
        self.service = self._served = None


def test_the_pages(
    ray_cluster: None,
    s3_port: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shell: Callable[..., Shell],
) -> None:
    """All of it in one directory, with one training and one service for all that ask one."""
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "DISTINDEX_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    world = World(s3_port, shell, capsys)
    try:
        for page in TOGETHER:
            world.run(page)
            CHECKS.get(page, lambda _: None)(world)
            if page == LAST_THAT_ASKS:
                # Training needs the processors.
                world.stop()
    finally:
        world.stop()


def check_readme(world: World) -> None:
    """The curl and the program ask the same; the changes are those that the page makes."""
    pipeline, asked, told, changed = world.printed["README.md"]
    assert "label" in pipeline, "the query printed the answers with their payload"
    (answers,) = json.loads(asked)["results"]
    assert len(answers) == 3
    expected = [f"{answer['distance']} {answer['id']} {answer['payload']['name']}" for answer in answers]
    assert told.splitlines() == expected
    rows = [Index.open("my/index", version).rows for version in (1, 2, 3)]
    assert rows == [ROWS, ROWS + QUERIES, ROWS + QUERIES - 2]
    tables = [pq.read_table(f"quickstart/documentation/{name}.parquet") for name in ("corpus", "queries")]
    label_of = {row["id"]: row["label"] for table in tables for row in table.select(["id", "label"]).to_pylist()}
    found = [int(line.split()[1]) for line in changed.splitlines() if re.match(r" *0 ", line)]
    matplotlib = {item for item, label in label_of.items() if label == "matplotlib"} - {17, 23}
    assert len(found) == min(10, len(matplotlib)) > 0
    assert set(found) <= matplotlib


def check_cli(world: World) -> None:
    assert world.service is not None
    with world.service.connect() as index:
        assert index.info()["version"] == 4, "what `deploy` asked for"
    assert world.asked_to_label[0]["ask"] == "items"


def check_grpc(world: World) -> None:
    assert world.service is not None
    assert world.service.grpc_url is not None
    with connect(world.service.grpc_url) as index:
        assert index.info()["rows"] > 0


def check_http(world: World) -> None:
    for text in world.printed["docs/http.md"]:
        if text.startswith("{"):
            answer = json.loads(text)
            assert answer.get("error") is None
            assert answer.get("deploying") == 1 or len(answer.get("codes") or answer["results"][0]) in (1, 2)
    assert [len(text.splitlines()) for text in world.printed["docs/http.md"][-2:]] == [5, 2]


def check_encoding(world: World) -> None:
    with Index.open("my/index") as after, Index.open("my/index", after.version - 1) as before:
        assert after.rows == before.rows + 20, "the rows of the file that came, and no others"


def check_labeling(world: World) -> None:
    assert Path("my/rounds/rounds/002/picks.csv").exists()
    assert Path("my/rounds/conflicts.csv").read_text().count("\n") == 1
    _, of_a_corpus, of_pairs = world.asked_to_label[-3:]
    assert of_a_corpus["classes"] == ["numpy", "torch", "sklearn"]
    assert of_pairs["ask"] == "pairs"


def check_serving(world: World) -> None:
    assert world.service is not None
    assert world.service.asks_for_token
    assert int(world.printed["docs/serving.md"][-1]) == Index.open("my/index").rows


CHECKS = {
    "README.md": check_readme,
    "docs/cli.md": check_cli,
    "docs/grpc.md": check_grpc,
    "docs/http.md": check_http,
    "docs/encoding.md": check_encoding,
    "docs/labeling.md": check_labeling,
    "docs/serving.md": check_serving,
}
