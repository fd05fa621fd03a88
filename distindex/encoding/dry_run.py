"""`dry_run`: what encoding would do, and how long a sample of the corpus says that it takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import torch

from distindex.config import EncodeConfig
from distindex.corpus.dataset import Corpus
from distindex.encoding.part import done_before, encoded_batches, output_schema, write_parquet
from distindex.encoding.report import EncodePlan
from distindex.encoding.tasks import Task
from distindex.hashing.hasher import Hasher
from distindex.storage import Storage

# So many rows are encoded, in no more than so many seconds.
_SAMPLE_ROWS = 20_000
_SAMPLE_SECONDS = 20.0


class Sample(NamedTuple):
    """Some rows of a corpus as encoding would treat them.

    Attributes:
        rows: rows that were read.
        rejected: of these, the bad ones.
        rows_per_second: rows read, encoded and written in a second, without the first batch.
        bytes_per_row: bytes of a part for each row that was read.
    """

    rows: int
    rejected: int
    rows_per_second: float
    bytes_per_row: float


def sample_plan(
    config: EncodeConfig,
    corpus: Corpus,
    tasks: Sequence[Task],
    hasher: Hasher,
    resources: tuple[int, int, str],
    files_before: int,
    unfinished: bool,
) -> EncodePlan:
    """Encode a sample in this process, and count.

    Args:
        config: the settings.
        corpus: what is to be encoded.
        tasks: its tasks.
        hasher: the hasher.
        resources: encoders, threads of each, device.
        files_before: corpus files that are left out.
        unfinished: whether an unfinished run of this plan is there.

    Raises:
        InputError: a bad row in the sample with `on_bad_rows: fail`.
    """
    encoders, threads, device = resources
    output = Storage(config.output, config.corpus.storage_options)
    done = [task for task in tasks if unfinished and done_before(output, task.names(corpus, hasher.fingerprint))]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        sample = _measure(corpus, tasks, hasher, config.batch_rows)
    finally:
        torch.set_num_threads(before)
    left = corpus.rows - sum(task.rows for task in done)
    return EncodePlan(
        output=config.output,
        files=len(corpus.files),
        files_before=files_before,
        rows=corpus.rows,
        tasks=len(tasks),
        tasks_done=len(done),
        bytes_in=sum(file.size for file in corpus.files),
        bytes_out=round(sample.bytes_per_row * corpus.rows),
        encoders=encoders,
        threads=threads,
        device=device,
        sample_rows=sample.rows,
        sample_rejected=sample.rejected,
        rows_per_second=sample.rows_per_second,
        seconds=left / sample.rows_per_second / max(1, encoders) if left else 0.0,
    )


def _measure(corpus: Corpus, tasks: Sequence[Task], hasher: Hasher, batch_rows: int) -> Sample:
    schema = output_schema(corpus, hasher.bits)
    # A batch to warm up, and several to measure, however large the batches are that the job will take.
    batch_rows = min(batch_rows, _SAMPLE_ROWS // 5)
    rows = rejected = 0
    first: tuple[int, float] | None = None

    def sampled() -> Iterator[pa.Table]:
        nonlocal rows, rejected, first
        for task in tasks:
            for good, bad, _ in encoded_batches(corpus, task, hasher, schema, batch_rows):
                rows, rejected = rows + good.num_rows + bad.num_rows, rejected + bad.num_rows
                yield good
                if first is None:
                    first = rows, time.monotonic()
                if rows >= _SAMPLE_ROWS or time.monotonic() - began > _SAMPLE_SECONDS:
                    return

    began = time.monotonic()
    sink = pa.BufferOutputStream()
    write_parquet(sink, schema, sampled())
    ended = time.monotonic()
    if first is None:
        return Sample(0, 0, 0.0, 0.0)
    since, seconds = first
    measured, taken = (rows - since, ended - seconds) if rows > since else (rows, ended - began)
    return Sample(rows, rejected, measured / max(taken, 1e-9), sink.getvalue().size / rows)
