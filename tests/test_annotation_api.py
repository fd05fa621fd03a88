"""`distindex label serve` over HTTP: what is shown to whom, what is kept, and what is refused."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi import FastAPI
from PIL import Image

from distindex import settings
from distindex.annotation.api import make_api
from distindex.annotation.desk import Desk
from distindex.annotation.service import _OWN_NAMES
from distindex.config import CorpusConfig, TrainConfig
from distindex.corpus.label_store import LabelStore
from distindex.label_config import LabelRunConfig, LabelServeConfig
from distindex.serving.access import Access, digests_of
from tests.pipeline import run, tree_of

FIRST_ID = 1 << 60
ROWS = 12


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Client:
    """Asks the API in this process."""

    def __init__(self, api: FastAPI) -> None:
        self.api = api

    def request(self, method: str, path: str, **content: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.api)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8001") as client:
                return await client.request(method, path, **content)

        return asyncio.run(ask())

    def get(self, path: str, **content: Any) -> httpx.Response:
        return self.request("GET", path, **content)

    def post(self, path: str, **content: Any) -> httpx.Response:
        return self.request("POST", path, **content)


@pytest.fixture
def corpus(tmp_path: Path) -> CorpusConfig:
    """Ids that JavaScript's numbers cannot hold, and texts that would be markup."""
    table = pa.table(
        {
            "id": FIRST_ID + np.arange(ROWS),
            "text": [f"<b>text {i}</b>" for i in range(ROWS)],
            "year": [2000 + i for i in range(ROWS)],
            "label": ["a" if i == 0 else None for i in range(ROWS)],
        }
    )
    pq.write_table(table, tmp_path / "corpus.parquet")
    return CorpusConfig(str(tmp_path / "corpus.parquet"), "text", payload_columns=["year"], label_column="label")


def config_of(corpus: CorpusConfig, tmp_path: Path, **changes: Any) -> LabelServeConfig:
    defaults = {"items": corpus, "store": str(tmp_path / "store"), "classes": ["a", "b"]}
    return LabelServeConfig(**defaults | changes)


def client_of(config: LabelServeConfig, clock: Clock | None = None, access: Access | None = None) -> Client:
    desk = Desk(config, clock or Clock())
    hosts = () if access else _OWN_NAMES
    return Client(make_api(desk, access or Access(), hosts))


def ask(client: Client, what: str, **body: Any) -> Any:
    answer = client.post(f"/v1/{what}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids_of(step: Any) -> list[str] | None:
    return None if step["shown"] is None else [item["id"] for item in step["shown"]]


def votes_of(tmp_path: Path) -> list[Any]:
    return [(vote.id, vote.answer, vote.annotator) for vote in LabelStore.open(str(tmp_path / "store")).votes()]


def test_answers_are_on_disk_when_they_are_acknowledged_and_survive(corpus: CorpusConfig, tmp_path: Path) -> None:
    config = config_of(corpus, tmp_path)
    client = client_of(config)
    first = ask(client, "next", annotator="ann")
    assert first["shown"] == [
        {"id": str(FIRST_ID), "text": "<b>text 0</b>", "image": False, "payload": {"year": "2000"}}
    ]
    for i in range(4):
        step = ask(client, "vote", annotator="ann", ids=[str(FIRST_ID + i)], labels=["ab"[i % 2]])
        assert votes_of(tmp_path)[-1] == (FIRST_ID + i, ("ab"[i % 2],), "ann")
        assert ids_of(step) == [str(FIRST_ID + i + 1)]
        assert (step["progress"]["answered"], step["progress"]["yours"]) == (i + 1, i + 1)
    before = tree_of(tmp_path)
    ask(client, "vote", annotator="ann", ids=[str(FIRST_ID + 3)], labels=["b"])
    assert tree_of(tmp_path) == before, "an answer that is sent again is one answer"

    again = client_of(config)
    step = ask(again, "next", annotator="ann")
    assert (ids_of(step), step["progress"]["answered"]) == ([str(FIRST_ID + 4)], 4)
    step = ask(again, "undo", annotator="ann")
    assert (ids_of(step), step["taken_back"]) == ([str(FIRST_ID + 3)], ["b"])
    assert LabelStore.open(str(tmp_path / "store")).resolved().labels.keys() == {FIRST_ID + i for i in range(3)}
    step = ask(client_of(config), "vote", annotator="ann", ids=[str(FIRST_ID + 3)], labels=["a"])
    assert (ids_of(step), step["progress"]["answered"]) == ([str(FIRST_ID + 4)], 4)
    assert LabelStore.open(str(tmp_path / "store")).resolved().labels[FIRST_ID + 3] == ("a",)


def test_annotators_at_the_same_time_are_shown_different_items(corpus: CorpusConfig, tmp_path: Path) -> None:
    client = client_of(config_of(corpus, tmp_path))

    def label_all(name: str) -> list[str]:
        seen, step = [], ask(client, "next", annotator=name)
        while step["shown"]:
            seen += ids_of(step) or []
            step = ask(client, "vote", annotator=name, ids=ids_of(step), labels=["a"])
        return seen

    with ThreadPoolExecutor(4) as pool:
        seen = [each for found in pool.map(label_all, ["ann", "bob", "cy", "dan"]) for each in found]
    assert sorted(seen) == [str(FIRST_ID + i) for i in range(ROWS)], "each once"
    assert len(votes_of(tmp_path)) == ROWS


def test_a_lease_that_has_run_out_lets_others_have_the_item(corpus: CorpusConfig, tmp_path: Path) -> None:
    clock = Clock()
    client = client_of(config_of(corpus, tmp_path, lease_s=60.0), clock)
    assert ids_of(ask(client, "next", annotator="ann")) == [str(FIRST_ID)]
    assert ids_of(ask(client, "next", annotator="bob")) == [str(FIRST_ID + 1)]
    assert ids_of(ask(client, "skip", annotator="bob", ids=[str(FIRST_ID + 1)])) == [str(FIRST_ID + 2)]
    clock.now = 61.0
    assert ids_of(ask(client, "next", annotator="cy")) == [str(FIRST_ID)]
    assert ids_of(ask(client, "next", annotator="ann")) == [str(FIRST_ID + 1)]
    ask(client, "vote", annotator="cy", ids=[str(FIRST_ID)], labels=["a"])
    ask(client, "vote", annotator="ann", ids=[str(FIRST_ID)], labels=["b"])
    assert votes_of(tmp_path) == [(FIRST_ID, ("a",), "cy"), (FIRST_ID, ("b",), "ann")], "no answer is thrown away"
    # The two contradict each other: somebody else is asked.
    assert ids_of(ask(client, "next", annotator="dan")) == [str(FIRST_ID)]


def test_several_answers_an_item_and_labels_that_are_new(corpus: CorpusConfig, tmp_path: Path) -> None:
    client = client_of(config_of(corpus, tmp_path, classes=[], multi=True, votes_per_item=2))
    task = client.get("/v1/task").json()
    assert (task["classes"], task["open"], task["multi"]) == (["a"], True, True)
    item = [str(FIRST_ID)]
    ask(client, "vote", annotator="ann", ids=item, labels=[" z ", "a"])
    assert client.get("/v1/task").json()["classes"] == ["a", "z"]
    step = ask(client, "vote", annotator="bob", ids=item, labels=["a"])
    assert step["progress"]["answered"] == 0, "two disagree"
    assert step["progress"]["for_others"] == 1
    assert ask(client, "vote", annotator="cy", ids=item, labels=["a", "z"])["progress"]["answered"] == 1
    assert LabelStore.open(str(tmp_path / "store")).resolved().labels == {FIRST_ID: ("a", "z")}
    assert client.get("/v1/progress", params={"annotator": "cy"}).json()["yours"] == 1


@pytest.mark.parametrize(
    ("what", "body", "message"),
    [
        ("vote", {"ids": ["7"], "labels": ["a"]}, "not asked about"),
        ("vote", {"ids": [str(FIRST_ID)], "labels": ["c"]}, "'c' is not one of a, b"),
        ("vote", {"ids": [str(FIRST_ID)], "labels": []}, "0 given; an item has one"),
        ("vote", {"ids": [str(FIRST_ID)], "labels": ["a", "b"]}, "2 given; an item has one"),
        ("vote", {"ids": [str(FIRST_ID)]}, "gives labels of an item, or says"),
        ("vote", {"ids": [str(FIRST_ID)], "similar": True}, "gives labels of an item, or says"),
        ("vote", {"ids": [FIRST_ID], "labels": ["a"]}, "valid string"),
        ("vote", {"ids": [str(FIRST_ID)], "labels": ["a"], "annotator": " "}, "a name has 1 to"),
        ("vote", {"ids": [str(FIRST_ID)], "labels": ["a"], "round": 3}, "Extra inputs"),
        ("skip", {"ids": []}, "not asked about"),
        ("undo", {}, "nothing to take back"),
        ("next", {"again": "yes"}, "valid boolean"),
    ],
)
def test_what_is_no_answer_is_refused(
    corpus: CorpusConfig, tmp_path: Path, what: str, body: dict[str, Any], message: str
) -> None:
    client = client_of(config_of(corpus, tmp_path))
    before = tree_of(tmp_path)
    answer = client.post(f"/v1/{what}", json={"annotator": "ann", **body})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert tree_of(tmp_path) == before


def test_other_pages_and_strangers_cannot_answer(corpus: CorpusConfig, tmp_path: Path) -> None:
    config = config_of(corpus, tmp_path)
    client = client_of(config)
    body = json.dumps({"annotator": "ann", "ids": [str(FIRST_ID)], "labels": ["a"]})
    for content_type in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = client.post("/v1/vote", content=body, headers={"content-type": content_type})
        assert answer.status_code == 415
    rebound = client.post(
        "/v1/vote", content=body, headers={"content-type": "application/json", "host": "evil.example"}
    )
    assert (rebound.status_code, rebound.json()["error"]["code"]) == (403, "forbidden")
    assert client.get("/v1/task", headers={"host": "[::1]:8001"}).status_code == 200
    assert client.post("/v1/vote", json={"annotator": "a" * (1 << 20)}).status_code == 413
    preflight = client.request("OPTIONS", "/v1/vote", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in preflight.headers

    guarded = client_of(config, access=Access(digests_of(["a-token-of-the-house"], "token")))
    assert [guarded.get(path).status_code for path in ("/", "/page/label.js", "/health", "/v1/task")] == [
        200, 200, 200, 401,
    ]  # fmt: skip
    headers = {"authorization": "Bearer a-token-of-the-house", "host": "labels.example.org"}
    assert guarded.post("/v1/vote", content=body, headers=headers).status_code == 415
    assert votes_of(tmp_path) == []
    assert guarded.post("/v1/vote", json=json.loads(body), headers=headers).status_code == 200
    assert votes_of(tmp_path) == [(FIRST_ID, ("a",), "ann")]


def test_an_answer_that_cannot_be_kept_is_not_acknowledged(corpus: CorpusConfig, tmp_path: Path) -> None:
    client = client_of(config_of(corpus, tmp_path))
    blocked = tmp_path / "store" / "votes"
    blocked.write_text("a file where the directory of the votes should be")
    vote = {"annotator": "ann", "ids": [str(FIRST_ID)], "labels": ["a"]}
    assert client.post("/v1/vote", json=vote).status_code == 500
    assert ask(client, "next", annotator="ann")["progress"]["answered"] == 0
    blocked.unlink()
    assert ask(client, "vote", **vote)["progress"]["answered"] == 1
    assert votes_of(tmp_path) == [(FIRST_ID, ("a",), "ann")]


def png(shade: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (3, 2), (shade, 0, 0)).save(sink, "png")
    return sink.getvalue()


def test_images_come_as_files(tmp_path: Path) -> None:
    files = [png(200), b"<svg onload='alert(1)'/>", None]
    raw = [bytes([10, 20, 30, 40, 50, 60])] * 3
    table = pa.table(
        {"id": ["a/b", ".", "c"], "file": pa.array(files, pa.binary()), "raw": pa.array(raw, pa.binary(6))}
    )
    pq.write_table(table, tmp_path / "images.parquet")
    config = CorpusConfig(str(tmp_path / "images.parquet"), "file")
    client = client_of(config_of(config, tmp_path))
    assert ask(client, "next", annotator="ann")["shown"][0]["image"] is True
    found = client.get("/v1/image", params={"id": "a/b"})
    assert (found.content, found.headers["content-type"]) == (files[0], "image/png")
    assert found.headers["x-content-type-options"] == "nosniff"
    for identifier, status, message in ((".", 400, "is no image"), ("c", 404, "no image"), ("d", 400, "not asked")):
        refused = client.get("/v1/image", params={"id": identifier})
        assert (refused.status_code, message in refused.json()["error"]["message"]) == (status, True)
    pixels = dataclasses.replace(config, feature_column="raw")
    client = client_of(config_of(pixels, tmp_path, raw_shape=[2, 1, 3]))
    shown = Image.open(io.BytesIO(client.get("/v1/image", params={"id": "c"}).content))
    assert (shown.size, shown.mode, shown.tobytes()) == ((1, 2), "RGB", raw[0])


# A run of rounds


def write_round(directory: Path, number: int, ids: list[int], pairs: list[list[int]], **metrics: Any) -> None:
    """A round's files, as docs and `label run` have them."""
    place = directory / f"rounds/{number:03d}"
    place.mkdir(parents=True)
    (place / "picks.json").write_text(
        json.dumps(
            {"format_version": 1, "round": number, "ids": ids, "pairs": pairs, "time": "2026-01-01T00:00:00+00:00"}
        )
    )
    if metrics:
        (place / "metrics.json").write_text(json.dumps({"round": number, "picked": len(ids), **metrics}))


@pytest.fixture
def rounds(corpus: CorpusConfig, tmp_path: Path) -> Path:
    """Two rounds that are done, and a third one that asks."""
    train = TrainConfig(corpus, str(tmp_path / "run"))
    claim = settings.without_secrets(settings.as_json(LabelRunConfig(train)))
    del claim["train"]["output"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/label_run.json").write_text(json.dumps({"format_version": 1, "config": claim}))
    write_round(tmp_path / "run", 1, [FIRST_ID], [], labeled=100, validation_precision=0.5)
    write_round(tmp_path / "run", 2, [FIRST_ID + 1], [], labeled=200, validation_precision=0.512)
    write_round(tmp_path / "run", 3, [FIRST_ID + 5, FIRST_ID + 2], [[FIRST_ID + 5, FIRST_ID + 2]])
    return tmp_path / "run"


def test_the_picks_of_a_run_are_asked_about_round_after_round(rounds: Path) -> None:
    clock = Clock()
    client = client_of(LabelServeConfig(str(rounds)), clock)
    task = client.get("/v1/task").json()
    assert (task["round"], task["classes"], task["open"]) == (3, ["a"], True)
    assert task["gain"] == {
        "round": 2, "answers": 100, "pairs": False, "gain": pytest.approx(0.012), "precision": 0.512,
        "held_out": True,
    }  # fmt: skip
    step = ask(client, "next", annotator="ann")
    assert ids_of(step) == [str(FIRST_ID + 5)], "in the order in which they were chosen"
    assert step["shown"][0]["payload"] == {"year": "2005"}
    ask(client, "vote", annotator="ann", ids=[str(FIRST_ID + 5)], labels=["a"])
    step = ask(client, "vote", annotator="ann", ids=[str(FIRST_ID + 2)], labels=["b"])
    assert (step["shown"], step["progress"]["answered"]) == (None, 2)
    write_round(rounds, 4, [FIRST_ID + 7], [])
    assert ask(client, "next", annotator="ann")["shown"] is None, "it does not look at the disk each time"
    clock.now = 5.0
    step = ask(client, "next", annotator="ann")
    assert (ids_of(step), step["progress"]["round"], step["progress"]["asked"]) == ([str(FIRST_ID + 7)], 4, 1)
    # Whoever still looks at an item of the round before is not turned away.
    ask(client, "vote", annotator="bob", ids=[str(FIRST_ID + 2)], labels=["b"])
    votes = LabelStore.open(str(rounds / "labels")).votes()
    assert [(vote.id - FIRST_ID, vote.annotator, vote.round) for vote in votes] == [  # type: ignore[operator]
        (5, "ann", 3), (2, "ann", 3), (2, "bob", 3),
    ]  # fmt: skip


def test_pairs_are_asked_about_where_they_were_chosen(rounds: Path) -> None:
    client = client_of(LabelServeConfig(str(rounds), ask="pairs"))
    step = ask(client, "next", annotator="ann")
    pair = [str(FIRST_ID + 2), str(FIRST_ID + 5)]
    assert (ids_of(step), [item["text"] for item in step["shown"]]) == (pair, ["<b>text 2</b>", "<b>text 5</b>"])
    assert client.post("/v1/vote", json={"annotator": "ann", "ids": pair, "labels": ["a"]}).status_code == 400
    assert ask(client, "vote", annotator="ann", ids=pair, similar=False)["progress"]["answered"] == 1
    store = LabelStore.open(str(rounds / "labels"))
    assert store.resolved().pairs == {(FIRST_ID + 2, FIRST_ID + 5): False}
    assert ask(client, "undo", annotator="ann")["taken_back"] is False
    assert store.resolved().pairs == {}


# The command


def test_what_cannot_be_asked_about_is_said_before_anything_is_made(
    corpus: CorpusConfig, rounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISTINDEX_TOKEN", raising=False)
    vectors = pa.table(
        {"id": [1, 2], "vector": [[1.0, 2.0], [3.0, 4.0]], "raw": pa.array([b"ab", b"cd"], pa.binary(2))}
    )
    pq.write_table(vectors, tmp_path / "vectors.parquet")
    pq.write_table(pa.table({"id": [1, 1], "text": ["a", "b"]}), tmp_path / "twice.parquet")
    items = [f"--items.uri={corpus.uri}", "--items.feature_column=text"]
    store = f"--store={tmp_path / 'new'}"
    twice = f"--items.uri={tmp_path / 'twice.parquet'}"
    of_vectors = [f"--items.uri={tmp_path / 'vectors.parquet'}", store]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for arguments, message in (
            ([], "give the directory of a label run, or items"),
            (items, "name the directory that the answers go to"),
            ([*items, store, "--ask=pairs"], "pairs are chosen by a run"),
            ([*items, store, "--classes=[a,a]"], "one is there twice"),
            ([*items, store, "--host=0.0.0.0"], "set token_file or DISTINDEX_TOKEN"),
            ([f"--run={tmp_path}"], "no label run here"),
            ([*of_vectors, "--items.feature_column=vector"], "tell people nothing; name columns"),
            ([*of_vectors, "--items.feature_column=raw"], "set raw_shape to height"),
            ([twice, "--items.feature_column=text", store], "ids must be unique"),
            (
                [f"--run={rounds}", f"--items.uri={tmp_path / 'vectors.parquet'}", "--items.feature_column=vector",
                 "--items.payload_columns=[id]"], "tell people nothing",
            ),
            ([*items, store, f"--port={port}"], f"cannot listen on 127.0.0.1:{port}"),
        ):  # fmt: skip
            ran = run("label", "serve", *arguments)
            assert (ran.code, ran.out, message in ran.err) == (2, "", True), (arguments, ran.err)
    write_round(rounds, 4, [5], [])
    assert "id 5, which was chosen, is not there" in run("label", "serve", f"--run={rounds}").err
    assert "has chosen no pairs" in run("label", "serve", f"--run={rounds}", "--ask=pairs").err
