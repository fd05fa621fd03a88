"""The output directory of encoding: what an unfinished run leaves in it, and what is removed when."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from distindex import codeset
from distindex.codeset import CodeSet, CodeSetManifest
from distindex.corpus.dataset import Corpus
from distindex.encoding.tasks import PROGRESS, REJECTED, PartNames, inputs_of, plan_differences
from distindex.errors import ConflictError, NotFoundError
from distindex.hashing.hasher import Hasher
from distindex.storage import Storage

PLAN = f"{PROGRESS}/plan.json"


def committed(output: Storage, identity: str, corpus: Corpus, hasher: Hasher) -> CodeSetManifest | None:
    """The manifest of the code set that is there already, if it is the one that is asked for; None where none is.

    Raises:
        ConflictError: another code set is there.
    """
    if not output.exists(codeset.MANIFEST):
        return None
    manifest = CodeSet.open(output.uri, output.options).manifest
    if manifest.fingerprint == identity:
        return manifest
    if manifest.hasher.fingerprint != hasher.fingerprint:
        difference = "by another hasher"
    elif manifest.inputs != inputs_of(corpus):
        difference = "of other input files"
    else:
        difference = "of other columns or with other settings"
    raise ConflictError(
        f"{output.uri}: holds a code set made {difference}; choose another output, or since to encode what is new"
    )


def check_plan(output: Storage, plan: dict[str, Any]) -> bool:
    """Whether an unfinished run of this plan is there.

    Raises:
        ConflictError: one of another plan is.
    """
    try:
        unfinished = output.read_json(PLAN)
    except NotFoundError:
        return False
    difference = plan_differences(unfinished, json.loads(json.dumps(plan)))
    if difference:
        raise ConflictError(
            f"{output.uri}: an unfinished run was encoding something else here ({difference}); set restart to remove "
            "what it left, or choose another output"
        )
    return True


def begin(output: Storage, plan: dict[str, Any]) -> None:
    """Say what is being encoded here; a run of the same plan may be going on, or have been interrupted.

    Raises:
        ConflictError: a run of another plan is, or was.
    """
    try:
        output.create_json(PLAN, plan)
    except ConflictError:
        check_plan(output, plan)


def remove_unfinished(output: Storage) -> None:
    """Remove what unfinished runs left, and nothing else.

    Raises:
        ConflictError: there is a finished code set.
    """
    if output.exists(codeset.MANIFEST):
        raise ConflictError(
            f"{output.uri}: holds a finished code set, which restart does not remove; choose another output"
        )
    _remove(output, _listing(output))


def remove_own(output: Storage, names: Iterable[PartNames], failure: str) -> None:
    """Undo a failed run: remove what it wrote, unless another run has committed just that.

    Args:
        output: the directory.
        names: of all that the run may have written.
        failure: the file by which it told its actors that it failed.
    """
    if output.exists(codeset.MANIFEST):
        output.remove(failure)
        return
    own = {failure, PLAN}
    for each in names:
        own.update(dataclasses.astuple(each))
    _remove(output, [path for path in _listing(output) if path in own])


def remove_strays(output: Storage, manifest: CodeSetManifest) -> None:
    """Remove what interrupted runs left; after the commit, so that losing the race costs nothing."""
    named = {file.path for file in (*manifest.files, *manifest.rejected_files)}
    _remove(output, [path for path in _listing(output) if path not in named])


def _remove(output: Storage, paths: Iterable[str]) -> None:
    for path in paths:
        output.remove(path)
    for directory in (PROGRESS, REJECTED):
        if not output.names(directory):
            output.remove(directory)


def _listing(output: Storage) -> list[str]:
    """Files with names that encoding gives, temporary ones included; anything else is not ours."""
    found = [name for name in output.names() if name.startswith("part-")]
    for directory in (PROGRESS, REJECTED):
        names = output.names(directory)
        found += [f"{directory}/{name}" for name in names if name.startswith(("part-", "failed-", "plan.json"))]
    return found
