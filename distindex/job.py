"""What the scripts in jobs/ share: a config in, one function called, a report beside the result.

For `ray job submit --working-dir . -- python jobs/X.py --config FILE`. Errors and exit codes are those of the
command line. `--retries N` does the work again after a failure that may pass; a job then goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from distindex import __version__, cli, settings
from distindex.errors import ConflictError, InputError, TooManyRejectedError, reason_of
from distindex.progress import say
from distindex.runtime import is_submitted_job
from distindex.storage import Storage

FORMAT_VERSION = 1
# Before the first retry, and at most before a later one: lost machines are replaced in minutes.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 300.0
# With the same input they would fail again.
_LASTING = (InputError, ConflictError, TooManyRejectedError, argparse.ArgumentError)
_PACKAGES = ("ray", "torch", "faiss-cpu", "faiss-gpu", "numpy", "pyarrow", "scikit-learn")


def run_verb(name: str, arguments: Sequence[str] | None = None) -> int:
    """Run a verb of the command line as a job; returns the exit code."""
    verb = cli.VERBS[name]
    return run_job(name, verb.config_class, verb.call, verb.show, arguments)


def run_job(
    name: str,
    config_class: type,
    function: Callable[[Any], Any],
    show: Callable[[Any], str],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse the config, call the function, write the report; returns the exit code.

    The report is `<result>.report.json`, beside the directory that the result's `uri` names; what has no `uri`,
    such as a service, leaves none. The last line printed is `result: URI`.

    Args:
        name: what the report calls the job.
        config_class: what `--config FILE` and the options that follow it are parsed into.
        function: does the work.
        show: its result for a person.
        arguments: the command line; by default this process's own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)

    def work() -> None:
        began, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
        own, overrides = _options().parse_known_args(given)
        if own.retries < 0:
            raise InputError(f"retries: {own.retries} must not be negative")
        made = settings.load(config_class, overrides=overrides)
        _check_output(made)
        say(f"{name}: distindex {__version__}, {'submitted job' if is_submitted_job() else 'on this machine'}")
        attempts = _attempts(name, own.retries)
        # Ray reports lost nodes and the like on stdout, where only the result belongs.
        with contextlib.redirect_stdout(sys.stderr):
            result = attempts(function, made)
        print(show(result), flush=True)
        uri = getattr(result, "uri", None)
        if uri is None:
            return
        Storage(f"{uri.rstrip('/')}.report.json", _storage_options(made)).write_json(
            "",
            {
                "format_version": FORMAT_VERSION,
                "kind": "job-report",
                "job": name,
                "config": settings.without_secrets(settings.as_json(made)),
                "result": cli.to_json(result),
                "started": began.isoformat(timespec="seconds"),
                "seconds": round(time.monotonic() - clock, 2),
                "attempts": attempts.statistics["attempt_number"],
                "versions": _versions(),
            },
        )
        print(f"result: {uri}", flush=True)

    return cli.exit_code_of(work, "--debug" in given)


def _options() -> argparse.ArgumentParser:
    """The options that every job has besides its settings."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("--retries", type=int, default=0)
    return parser


def _attempts(name: str, retries: int) -> Retrying:
    """Calls a function again, with growing pauses, while it fails with what is not known to last."""

    def note(state: RetryCallState) -> None:
        if state.outcome is not None and state.next_action is not None:
            reason, pause = reason_of(state.outcome.exception()), state.next_action.sleep
            say(f"{name}: {reason}; retry {state.attempt_number} of {retries} in {pause:.0f} s")

    return Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, Exception) and not isinstance(error, _LASTING)),
        wait=wait_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S),
        stop=stop_after_attempt(retries + 1),
        before_sleep=note,
        reraise=True,
    )


def _check_output(made: Any) -> None:
    output = getattr(made, "output", None)
    if output and is_submitted_job() and "://" not in output and output[0] not in "/~":
        raise InputError(
            f"output: {output} would lie in this job's temporary copy of the working directory and vanish with it; "
            "give an absolute path or a URI"
        )


def _storage_options(made: Any) -> dict[str, Any]:
    """What the job itself opens its output with."""
    for holder in (made, getattr(made, "corpus", None), getattr(made, "database", None)):
        options = getattr(holder, "storage_options", None)
        if options:
            return options
    return {}


def _versions() -> dict[str, str]:
    found = {"distindex": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
