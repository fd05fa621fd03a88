"""What is to be done: each file of the corpus is a task, a large one several, cut between its row groups.

The cut depends on the files and `task_mib` alone: every run of a plan makes the same parts, whatever it runs on.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from distindex import settings
from distindex.codeset import InputFile
from distindex.config import EncodeConfig
from distindex.corpus.dataset import Corpus
from distindex.corpus.files import CorpusFile, RowGroups, cut_row_groups
from distindex.hashing.hasher import Hasher

PROGRESS = "_progress"
REJECTED = "rejected"


@dataclasses.dataclass(frozen=True)
class PartNames:
    """The names of what one task gives, relative to the output directory."""

    part: str
    rejected: str
    record: str


@dataclasses.dataclass(frozen=True)
class Task:
    """Rows of one corpus file that become one part.

    Attributes:
        position: place of the task in the plan, and of its part in the manifest.
        input: place of the file in the corpus.
        file: the file, without its lists of row groups.
        groups: its row groups.
        whole: whether they are all of the file's.
    """

    position: int
    input: int
    file: CorpusFile
    groups: RowGroups
    whole: bool

    @property
    def rows(self) -> int:
        return self.groups.rows

    def names(self, corpus: Corpus, hasher_fingerprint: str) -> PartNames:
        """Names made of the task's place and of all that its result depends on."""
        file = self.file
        identity = settings.fingerprint(
            [file.uri, file.size, file.etag, file.rows],
            *([] if self.whole else [dataclasses.asdict(self.groups)]),
            corpus.columns,
            corpus.config.on_bad_rows,
            hasher_fingerprint,
        )
        stem = f"part-{self.position:05d}-{identity}"
        return PartNames(f"{stem}.parquet", f"{REJECTED}/{stem}.parquet", f"{PROGRESS}/{stem}.json")

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Task:
        return cls(**{**value, "file": CorpusFile(**value["file"]), "groups": RowGroups(**value["groups"])})


def plan_tasks(corpus: Corpus, task_mib: float) -> list[Task]:
    """The tasks of a corpus, in the order of its files and of their rows.

    A task ends with the row group with which it reaches `task_mib` MiB of the corpus's columns, uncompressed.
    """
    tasks: list[Task] = []
    for number, file in enumerate(corpus.files):
        cut = cut_row_groups(file, task_mib * (1 << 20))
        light = dataclasses.replace(file, group_rows=(), group_bytes=())
        tasks += [
            Task(position, number, light, groups, whole=len(cut) == 1)
            for position, groups in enumerate(cut, start=len(tasks))
        ]
    return tasks


def describe_plan(config: EncodeConfig, corpus: Corpus, hasher: Hasher) -> dict[str, Any]:
    """All that the code set depends on, as JSON: what `_progress/plan.json` holds while a run is unfinished."""
    return {
        "hasher": hasher.fingerprint,
        "columns": corpus.columns,
        "on_bad_rows": corpus.config.on_bad_rows,
        "task_mib": config.task_mib,
        "inputs": [dataclasses.asdict(file) for file in inputs_of(corpus)],
    }


def plan_differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs between two plans, in words."""
    before, after = ({file["uri"]: file for file in plan.get("inputs", [])} for plan in (old, new))
    files = {
        "new": sorted(after.keys() - before.keys()),
        "gone": sorted(before.keys() - after.keys()),
        "changed": sorted(uri for uri in after.keys() & before.keys() if after[uri] != before[uri]),
    }
    found = settings.differences({**old, "inputs": None}, {**new, "inputs": None})
    for what, uris in files.items():
        if uris:
            found.append(f"{len(uris)} input file(s) {what}, first {uris[0]}")
    return "; ".join(found)


def inputs_of(corpus: Corpus) -> tuple[InputFile, ...]:
    """The corpus's files as a manifest names them."""
    return tuple(InputFile(file.uri, file.size, file.etag, file.rows) for file in corpus.files)
