"""The command line as a user meets it: its options, and the six commands from corpus to figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from distindex import __version__, cli, config, progress, settings
from distindex.errors import InputError
from distindex.hashing import Hasher
from tests import oracle
from tests.pipeline import BITS, EPOCHS, ROWS, WIDTH, World, pipeline, run, tree_of

GOLDEN = Path(__file__).parent / "data" / "cli_options.txt"


def parser_of(verb: str) -> Any:
    """The parser of a verb, of one word or two."""
    parser = cli.make_parser()
    for word in verb.split():
        verbs = next(action for action in parser._actions if action.dest == "verb")
        parser = verbs._name_parser_map[word]  # type: ignore[attr-defined]
    return parser


def surface() -> str:
    """One line for each option of each verb."""
    lines = []
    for name in cli.VERBS:
        options = {text for action in parser_of(name)._actions for text in action.option_strings}
        lines += [f"{name} {option}" for option in sorted(options) if not option.endswith("+")]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--storage_options={key: hunter2}"],
        ["--storage_options", "{key: hunter2}"],
        ["--corpus.storage_options={key: hunter2}"],
        ["--corpus", "{uri: x, storage_options: {key: hunter2}}"],
        ["--corpus={uri: x, storage_options: {key: hunter2}}"],
    ],
)
def test_keys_do_not_get_into_the_commands_that_manifests_keep(arguments: list[str]) -> None:
    command = settings.command_line(["/usr/bin/distindex", "build", *arguments, "--codes", "a b"])
    assert "hunter2" not in command
    assert command.startswith("distindex build --")
    assert command.endswith("--codes 'a b'")


def test_the_options_are_those_that_users_have_in_their_scripts() -> None:
    expected, found = GOLDEN.read_text().splitlines(), surface().splitlines()
    gone, new = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    assert not gone, f"options that scripts may use are gone: {gone}; keep them, or say so in CHANGELOG.md"
    assert not new, f"new options: {new}; run `python -m tests.test_cli` to add them to {GOLDEN.name}"


def test_json_silences_its_own_command_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", "--uri", "nowhere", "--json").code == 2
    progress.say("the next command speaks again")
    assert "the next command speaks again" in capsys.readouterr().err


def test_only_the_result_is_on_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    class Talking(cli.Verb):
        def call(self, made: Any) -> Any:
            print("(raylet) a node was lost")
            return [3]

    monkeypatch.setitem(cli.VERBS, "versions", Talking(*cli.VERBS["versions"]))
    ran = run("versions", "--index", "anywhere", "--json")
    assert (ran.code, ran.out, ran.err) == (0, "[3]\n", "(raylet) a node was lost\n")


def test_version_and_help() -> None:
    version = run("--version")
    assert (version.code, version.out) == (0, f"distindex {__version__}\n")
    shown = run("--help")
    assert shown.code == 0
    assert all(f"    {verb.split()[0]} " in shown.out for verb in cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_setting_is_explained(verb: str) -> None:
    shown = run(*verb.split(), "--help")
    assert shown.code == 0
    silent = [action.dest for action in parser_of(verb)._actions if not action.help]
    assert not silent, f"no line in the docstrings of config.py explains {silent}"


def test_yaml_then_overrides(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(
        "corpus:\n  uri: corpus\n  feature_column: vector\noutput: out\nbits: 32\n"
        "optimization:\n  epochs: 50\n  seed: 7\n"
    )
    made = settings.load(config.TrainConfig, str(path), ["--optimization.epochs=5"])
    assert (made.bits, made.optimization.epochs, made.optimization.seed) == (32, 5, 7)
    assert made.optimization.batch_size == config.OptimizationConfig().batch_size
    printed = run("train", "--config", path, "--bits", "64", "--print_config")
    assert printed.code == 0
    assert "bits: 64" in printed.out
    assert "epochs: 50" in printed.out
    with pytest.raises(InputError, match="epochs"):
        settings.load(config.TrainConfig, str(path), ["--optimization.epochs=many"])


# The pipeline


@pytest.fixture(scope="module")
def world(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> World:
    return pipeline(tmp_path_factory.getbasetemp())


def result(world: World, verb: str) -> Any:
    return world.results[verb][1]


@pytest.mark.slow
def test_reports_say_what_was_made(world: World) -> None:
    trained, encoded, built = (result(world, verb) for verb in ("train", "encode", "build"))
    assert (trained["uri"], trained["rows"], trained["labeled"]) == (str(world.path("hasher")), ROWS, ROWS // 2)
    assert (trained["epochs"], len(trained["history"])) == (EPOCHS, EPOCHS), "the override wins over the file"
    assert Hasher.load(str(world.path("hasher"))).fingerprint == trained["fingerprint"]
    assert (encoded["rows"], encoded["rejected"], encoded["files"]) == (ROWS, 0, 2)
    assert (built["version"], built["rows"], built["shards"]) == (1, ROWS, 1)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_evaluation_writes_what_it_reports(world: World) -> None:
    evaluated = result(world, "evaluate")
    directory = world.path("evaluation")
    assert {Path(file).name for file in evaluated["files"]} == {path.name for path in directory.iterdir()}
    written = json.loads((directory / "metrics.json").read_text())
    assert evaluated["methods"] == written["methods"]
    assert [method["method"] for method in written["methods"]] == ["csb-vae", "csb-vae, rescored"]


@pytest.mark.slow
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


@pytest.mark.slow
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


if __name__ == "__main__":
    GOLDEN.write_text(surface())
