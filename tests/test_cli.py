"""The command line as a user meets it: its options and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distindex import __version__, cli, config, progress, settings
from distindex.errors import InputError
from tests.pipeline import run

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


if __name__ == "__main__":
    GOLDEN.write_text(surface())
