"""The encoder actor: encodes one task per call with a hasher that it loads once."""

from __future__ import annotations

import dataclasses
import json
import resource
import time
from typing import Any

import pyarrow as pa
import torch

from distindex import errors
from distindex.codeset import MANIFEST
from distindex.config import EncodeConfig
from distindex.corpus.dataset import Corpus
from distindex.encoding.part import PartResult, StoppedError, encode_task
from distindex.encoding.tasks import PROGRESS, Task
from distindex.errors import ConflictError, DistindexError
from distindex.hashing.hasher import Hasher
from distindex.storage import Storage


@dataclasses.dataclass(frozen=True)
class Job:
    """What an actor needs to know; small, and the same for all.

    Attributes:
        config: the settings.
        schema: the corpus's.
        hasher_fingerprint: of the hasher that the job began with.
        run: a name that no other run has.
        threads: of each actor.
        device: cpu or cuda.
        max_rejected: rows that may be rejected, in all tasks together.
    """

    config: EncodeConfig
    schema: pa.Schema
    hasher_fingerprint: str
    run: str
    threads: int
    device: str
    max_rejected: int | None

    @property
    def output(self) -> Storage:
        return Storage(self.config.output, self.config.corpus.storage_options)

    @property
    def failure(self) -> str:
        """The file that tells the actors of this run that they need not go on."""
        return f"{PROGRESS}/failed-{self.run}"

    @property
    def corpus(self) -> Corpus:
        """The corpus's columns, without its files."""
        return Corpus(self.config.corpus, (), self.schema)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What became of a task.

    Attributes:
        position: the task's.
        result: what it gave; None where it failed or was stopped.
        error: why it failed.
        seconds: how long it took, the hasher's loading aside.
        peak_memory: bytes that the actor's process has held at most so far.
    """

    position: int
    result: PartResult | None
    error: DistindexError | None
    seconds: float
    peak_memory: int

    @classmethod
    def of(cls, row: dict[str, Any]) -> Answer:
        """An answer as an actor gave it."""
        result = PartResult.from_json(json.loads(row["result"])) if row["result"] else None
        error = getattr(errors, row["error"])(row["message"]) if row["error"] else None
        return cls(int(row["position"]), result, error, float(row["seconds"]), int(row["peak_memory"]))


class EncoderActor:
    """Encodes one task per call."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        self.job = job
        self.output = job.output
        self.hasher: Hasher | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Encode the task that the row describes.

        Our own errors go into the row: an exception would reach the driver wrapped in Ray's traceback, and
        other actors would go on for nothing.
        """
        answer = {"position": row["position"], "result": "", "error": "", "message": "", "seconds": 0.0}
        began = time.monotonic()
        try:
            if self._stopped():
                raise StoppedError
            hasher = self._hasher()
            began = time.monotonic()
            answer["result"] = json.dumps(self._encode(Task.from_json(json.loads(row["task"])), hasher).to_json())
        except StoppedError:
            pass
        except DistindexError as error:
            answer["error"], answer["message"] = type(error).__name__, str(error)
            self.output.write_bytes(self.job.failure, b"")
        except OSError:
            # A run that has committed removes what others were still writing.
            if not self.output.exists(MANIFEST):
                raise
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {**answer, "seconds": time.monotonic() - began, "peak_memory": peak}

    def _hasher(self) -> Hasher:
        job = self.job
        if self.hasher is None:
            self.hasher = Hasher.load(job.config.hasher, job.config.corpus.storage_options)
            self.hasher.to(torch.device(job.device))
            if self.hasher.fingerprint != job.hasher_fingerprint:
                raise ConflictError(f"{job.config.hasher}: the hasher was replaced while it was used; start again")
        return self.hasher

    def _encode(self, task: Task, hasher: Hasher) -> PartResult:
        job = self.job
        return encode_task(
            job.corpus, task, hasher, self.output, job.config.batch_rows, self._stopped, job.max_rejected
        )

    def _stopped(self) -> bool:
        return self.output.exists(self.job.failure) or self.output.exists(MANIFEST)
