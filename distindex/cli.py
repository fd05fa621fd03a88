"""`distindex VERB`: parses, calls one function per verb, prints the result.

What runs and why goes to stderr, the result to stdout; `--json` prints it for machines. Exit code 0 only
where the result is there, 2 for bad input, 1 for everything else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jsonargparse

from distindex import (
    __version__,
    change_config,
    config,
    label_config,
    plan_config,
    serve_config,
    settings,
    sweep_config,
)
from distindex.errors import DistindexError
from distindex.progress import quiet


class Verb(NamedTuple):
    """A verb: its config, where its function is, and how its result is printed for a person."""

    config_class: type
    module: str
    function: str
    show: Callable[[Any], str]

    def call(self, made: Any) -> Any:
        """The result of the verb's function for one config."""
        return getattr(importlib.import_module(self.module), self.function)(made)


def _show_train(report: Any) -> str:
    precision = f", validation precision {report.precision:.3f}" if report.precision is not None else ""
    how = f"epoch {report.best_epoch} of {report.epochs}" if report.epochs else "fitted at once"
    return f"hasher: {report.uri} ({how}{precision})"


def _show_sweep(report: Any) -> str:
    from distindex.evaluation.table import format_table

    rows = [
        {**trial.settings, "precision": trial.precision, "epoch": trial.epoch, "epochs": trial.epochs}
        for trial in report.trials
    ]
    return f"{format_table(rows)}\n\nbest: distindex train --config {report.best_config}"


def _show_encode(report: Any) -> str:
    return report.text()


def _show_build(report: Any) -> str:
    return (
        f"index: {report.uri} version {report.version} ({report.rows:,} rows, {report.distinct:,} distinct codes, "
        f"{report.shards} shard{'s' * (report.shards != 1)}, {report.bytes:,} bytes, {report.kind}"
        + (f" with recall {report.recall:.3f})" if report.recall is not None else ")")
    )


def _show_append(report: Any) -> str:
    replaced = f", {report.replaced:,} of them in place of others" if report.replaced else ""
    return f"{_version_line(report)}; {report.added:,} rows were added{replaced}"


def _show_delete(report: Any) -> str:
    missing = f", {report.missing:,} ids were not there" if report.missing else ""
    return f"{_version_line(report)}; {report.deleted:,} rows were deleted{missing}"


def _show_compact(report: Any) -> str:
    if not report.rewritten:
        return f"{_version_line(report)}; no shard is worth writing anew"
    dropped = f", {report.dropped:,} deleted rows dropped" if report.dropped else ""
    return f"{_version_line(report)}; {report.rewritten} shards were written anew{dropped}"


def _show_roll_back(report: Any) -> str:
    return f"{_version_line(report)}; the content of version {report.restored}"


def _version_line(report: Any) -> str:
    return (
        f"index: {report.uri} version {report.version} ({report.rows:,} rows, "
        f"{report.shards} shard{'s' * (report.shards != 1)}, {report.bytes:,} bytes)"
    )


def _show_garbage(report: Any) -> str:
    what = (
        f"{len(report.versions)} versions and {len(report.paths)} unneeded shards and files, {report.bytes:,} bytes"
    )
    return f"removed {what}" if report.removed else f"could remove {what}; nothing was removed, set remove"


def _show_versions(reports: Any) -> str:
    from distindex.evaluation.table import format_table

    return format_table([dataclasses.asdict(report) for report in reports])


def _show_evaluate(report: Any) -> str:
    from distindex.evaluation.table import format_table

    return "\n".join([format_table(report.rows()), "", *report.files])


def _show_label_import(report: Any) -> str:
    conflicts = f", {report.conflicts:,} conflicts ({report.undecided:,} undecided)" if report.conflicts else ""
    skipped = f", {report.skipped:,} rows without one passed over" if report.skipped else ""
    pairs = f" and {report.pairs:,} pairs" if report.pairs else ""
    now = f"{report.labeled:,} items{pairs} with an answer now{conflicts}"
    return f"label store: {report.uri} ({report.votes:,} answers{skipped}; {now})"


def _show_label_export(report: Any) -> str:
    return f"{report.uri} ({report.rows:,} rows)"


def _show_label_run(report: Any) -> str:
    from distindex.evaluation.table import format_table

    table = [format_table(report.rounds)] if report.rounds else []
    if report.state == "waiting":
        ask = " --ask pairs" if report.ask == "pairs" else ""
        table.append(
            f"waiting for {report.missing:,} answers: give them on the page of\n"
            f"  distindex label serve --run {report.uri}{ask}\nor fill in {report.picks}, then\n"
            f"  distindex label import --store {report.store} --input {report.picks}\nand the same command again"
        )
    else:
        table.append(f"rounds: {report.uri} ({report.state})")
    return "\n".join(table)


def _show_query(matches: Any) -> str:
    from distindex.evaluation.table import format_table

    def as_given(value: Any) -> str | None:
        # A separator of thousands is none of what went in: an id is to be copied, a year is 2020.
        return None if value is None else str(value)

    rows = [
        {"query": query, "id": as_given(match.id)}
        | ({} if match.score is None else {"score": match.score})
        | {"distance": match.distance, "code": match.code}
        | {name: as_given(value) for name, value in match.payload.items()}
        for query, found in enumerate(matches)
        for match in found
    ]
    return format_table(rows) if rows else "nothing found"


def _show_facts(facts: dict[str, Any]) -> str:
    width = max(len(name) for name in facts)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items())


def _show_deploy(report: Any) -> str:
    was = "as before" if report.before == report.version else f"before: {report.before}"
    return (
        f"{report.target} serves version {report.version} ({was}; {report.rows:,} rows) after {report.seconds:.1f} s"
    )


def _show_nothing(_: Any) -> str:
    return ""


VERBS = {
    "quickstart": Verb(config.QuickstartConfig, "distindex.quickstart.run", "quickstart", _show_nothing),
    "train": Verb(config.TrainConfig, "distindex.training", "train", _show_train),
    "sweep": Verb(sweep_config.SweepConfig, "distindex.training.sweep", "sweep", _show_sweep),
    "encode": Verb(config.EncodeConfig, "distindex.encoding", "run", _show_encode),
    "build": Verb(config.BuildConfig, "distindex.building", "build", _show_build),
    "plan": Verb(plan_config.PlanConfig, "distindex.building.plan", "plan", _show_facts),
    "append": Verb(change_config.AppendConfig, "distindex.building", "append", _show_append),
    "delete": Verb(change_config.DeleteConfig, "distindex.building", "delete", _show_delete),
    "compact": Verb(change_config.CompactConfig, "distindex.building", "compact", _show_compact),
    "versions": Verb(change_config.VersionsConfig, "distindex.building", "list_versions", _show_versions),
    "rollback": Verb(change_config.RollbackConfig, "distindex.building", "roll_back", _show_roll_back),
    "gc": Verb(change_config.GarbageConfig, "distindex.building", "collect_garbage", _show_garbage),
    "serve": Verb(serve_config.ServeConfig, "distindex.serving.service", "serve", _show_nothing),
    "deploy": Verb(serve_config.DeployConfig, "distindex.serving.deploy", "deploy", _show_deploy),
    "query": Verb(serve_config.QueryConfig, "distindex.serving.query", "query", _show_query),
    "top": Verb(serve_config.TopConfig, "distindex.serving.top", "top", _show_nothing),
    "evaluate": Verb(config.EvaluateConfig, "distindex.evaluation.run", "evaluate", _show_evaluate),
    "label import": Verb(
        label_config.LabelImportConfig, "distindex.labeling.exchange", "import_votes", _show_label_import
    ),
    "label export": Verb(
        label_config.LabelExportConfig, "distindex.labeling.exchange", "export_votes", _show_label_export
    ),
    "label serve": Verb(label_config.LabelServeConfig, "distindex.annotation.service", "serve", _show_nothing),
    "label run": Verb(label_config.LabelRunConfig, "distindex.rounds.run", "run", _show_label_run),
    "inspect": Verb(plan_config.InspectConfig, "distindex.inspection", "inspect", _show_facts),
}
GROUPS = {"label": "What to label next, and the answers."}
"""Verbs of two words by their first one."""


def make_parser() -> jsonargparse.ArgumentParser:
    """The whole command line; a test freezes its options."""
    parser = jsonargparse.ArgumentParser(
        prog="distindex",
        description="Learned short binary codes: train, encode, build, serve, query, evaluate.",
        version=__version__,
        exit_on_error=False,
        # An abbreviation that works today is ambiguous with the next setting, and hides misspelt ones.
        allow_abbrev=False,
    )
    verbs = parser.add_subcommands(required=True, dest="verb", metavar="VERB")
    groups: dict[str, Any] = {}
    for name, verb in VERBS.items():
        summary = (verb.config_class.__doc__ or "").partition("\n")[0]
        child = jsonargparse.ArgumentParser(description=summary, exit_on_error=False, allow_abbrev=False)
        settings.add_arguments(child, verb.config_class)
        child.add_argument("--json", action="store_true", help="print the result as one line of JSON")
        child.add_argument("--debug", action="store_true", help="on an error, print the traceback too")
        group, _, own = name.rpartition(" ")
        if group and group not in groups:
            summary_of_group = GROUPS[group]
            family = jsonargparse.ArgumentParser(
                description=summary_of_group, exit_on_error=False, allow_abbrev=False
            )
            verbs.add_subcommand(group, family, help=summary_of_group)
            groups[group] = family.add_subcommands(required=True, dest="verb", metavar="VERB")
        groups.get(group, verbs).add_subcommand(own, child, help=summary)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)

    def work() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parser = make_parser()
            namespace = parser.parse_args(arguments)
            words = [namespace.verb]
            while "verb" in namespace[".".join(words)]:
                words.append(namespace[".".join(words)].verb)
            verb = VERBS[" ".join(words)]
            as_json = namespace[".".join(words)].json
            made = settings.from_namespace(parser, namespace, verb.config_class, ".".join(words))
        # Ray reports lost nodes and the like on stdout, where only the result belongs.
        with quiet(as_json), contextlib.redirect_stdout(sys.stderr):
            result = verb.call(made)
        text = json.dumps(to_json(result)) if as_json else verb.show(result)
        if text:
            print(text, flush=True)

    return exit_code_of(work, "--debug" in arguments)


def exit_code_of(work: Callable[[], None], debug: bool) -> int:
    """Do the work of a command; 0, or an error in one line on stderr and its exit code.

    Args:
        work: prints its result itself.
        debug: print the traceback of an error too.
    """
    try:
        work()
        return 0
    except jsonargparse.ArgumentError as error:
        return _fail(" ".join(str(error).split()) + "; see distindex --help", 2, debug)
    except DistindexError as error:
        # A refused query names the part of the request that is wrong apart from its message.
        field = getattr(error, "field", None)
        return _fail(f"{field}: {error}" if field else str(error), error.exit_code, debug)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on where it can", 130, False)
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return 1
    except Exception as error:
        return _fail(f"unexpected {type(error).__name__}: {_first_line(error)}; run again with --debug", 1, debug)


def run() -> None:
    """The console script."""
    sys.exit(main())


def to_json(result: Any) -> Any:
    """A verb's result as JSON."""
    if hasattr(result, "to_table"):
        rows = [[dataclasses.asdict(match) for match in found] for found in result]
        if result.score_M is None:
            for answer in itertools.chain.from_iterable(rows):
                del answer["score"]
        return {"version": result.version, "results": rows}
    if hasattr(result, "methods"):
        return {"uri": result.uri, "files": result.files, "methods": [m.to_json() for m in result.methods]}
    if isinstance(result, list):
        return [to_json(item) for item in result]
    return dataclasses.asdict(result) if dataclasses.is_dataclass(result) else result  # type: ignore[arg-type]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"distindex: error: {message}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    run()
