"""`distindex encode`: Ray Data hands the tasks of a corpus to encoder actors; the driver checks and commits."""

from __future__ import annotations

import dataclasses
import datetime
import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import ray

from distindex import codeset
from distindex.codeset import CodeSetManifest, HasherReference, InputFile, PartSource, PayloadColumn
from distindex.config import EncodeConfig
from distindex.corpus.dataset import Corpus
from distindex.corpus.features import ImageFeatures
from distindex.corpus.id_sum import IdSum
from distindex.corpus.images import check_type
from distindex.encoding import directory
from distindex.encoding.actor import Job
from distindex.encoding.dry_run import sample_plan
from distindex.encoding.earlier import split_corpus
from distindex.encoding.encoders import encode_tasks, resources
from distindex.encoding.lease import Lease
from distindex.encoding.part import PartResult, output_schema
from distindex.encoding.report import EncodePlan, EncodeReport, count_reasons
from distindex.encoding.tasks import PartNames, Task, describe_plan, inputs_of, plan_tasks
from distindex.encoding.verification import WrittenPart, read_back
from distindex.errors import DamagedError, DistindexError, InputError, TooManyRejectedError
from distindex.hashing.hasher import Hasher
from distindex.progress import say
from distindex.runtime import fetch, start_ray
from distindex.settings import command_line, fingerprint
from distindex.storage import Storage


@dataclasses.dataclass(frozen=True)
class _Work:
    """What a config asks for, and what of it is there.

    Attributes:
        hasher: the hasher.
        corpus: what is to be encoded.
        tasks: its tasks.
        earlier: files that earlier code sets hold.
        output: the output directory.
        identity: the fingerprint that the code set will have.
        existing: the code set that is there already.
        plan: what an unfinished run says of itself.
        unfinished: whether one of this plan is there.
    """

    hasher: Hasher
    corpus: Corpus
    tasks: list[Task]
    earlier: tuple[InputFile, ...]
    output: Storage
    identity: str
    existing: CodeSetManifest | None
    plan: dict[str, Any]
    unfinished: bool

    def committed(self) -> CodeSetManifest | None:
        return directory.committed(self.output, self.identity, self.corpus, self.hasher)

    def names(self) -> list[PartNames]:
        return [task.names(self.corpus, self.hasher.fingerprint) for task in self.tasks]


def encode(config: EncodeConfig) -> EncodeReport:
    """Encode a corpus into a code set.

    A run that was interrupted goes on with the tasks that it had not finished, and gives the same bytes as
    one that was not. A code set that is already there is left as it is: if it was made of the same inputs
    by the same hasher, it is the result.

    Raises:
        NotFoundError: there is no hasher, no corpus, or no code set at `since`.
        InputError: the corpus does not fit (a column, a type, a width), a row is bad and `on_bad_rows` is
            `fail`, or ids repeat. Nothing is left in the output directory. Or `dry_run` is set.
        TooManyRejectedError: more rows than `max_rejected` are bad. What is encoded is kept for the next run.
        ConflictError: another run is encoding into the output directory, which takes some seconds to see; or the
            directory holds another code set, or what an unfinished run of another plan left; or files in the code
            sets of `since` have changed or gone.
        DamagedError: the ids that were read and those that were written are not the same.
    """
    if config.dry_run:
        raise InputError("dry_run: encode writes; plan_encoding says what it would do")
    started = time.monotonic()
    work = _work(config)
    if work.existing is not None:
        say(f"{config.output}: already encoded from the same inputs by the same hasher; nothing to do")
        return _report(config, work.existing, started, reused=len(work.existing.files))
    with Lease.take(work.output) as lease:
        return _encode(config, work, lease, started)


def _encode(config: EncodeConfig, work: _Work, lease: Lease, started: float) -> EncodeReport:
    start_ray()
    actors, threads, device = resources(config, len(work.corpus.files), len(work.tasks))
    limit = _rejected_limit(config, work.corpus)
    run, schema = uuid.uuid4().hex[:12], work.corpus.schema
    job = Job(config, schema, work.hasher.fingerprint, run, threads, device, limit)
    if config.restart:
        directory.remove_unfinished(work.output)
    directory.begin(work.output, work.plan)
    try:
        encoded = encode_tasks(job, work.tasks, work.corpus.rows, actors, started, lease)
        began = time.monotonic()
        manifest = _checked(_manifest(config, work, encoded.results), work, encoded.results)
        checking_seconds = time.monotonic() - began
        if lease.lost:
            raise lease.lost_error()
        codeset.commit(work.output, manifest)
    except Exception as error:
        # Another run of the same plan may have been faster, and have removed what this one was writing.
        done = work.committed()
        if done is not None:
            say(f"{config.output}: another run has encoded the same meanwhile")
            directory.remove_strays(work.output, done)
            return _report(config, done, started, reused=len(done.files))
        if lease.lost or isinstance(error, TooManyRejectedError):
            work.output.remove(job.failure)
        elif isinstance(error, DistindexError):
            directory.remove_own(work.output, work.names(), job.failure)
        raise
    directory.remove_strays(work.output, manifest)
    report = dataclasses.replace(
        _report(config, manifest, started, reused=sum(result.reused for result in encoded.results)),
        reasons=count_reasons(encoded.results),
        startup_seconds=encoded.startup_seconds,
        encoding_seconds=encoded.encoding_seconds,
        checking_seconds=checking_seconds,
        rows_per_second=sum(r.rows for r in encoded.results if not r.reused) / max(encoded.encoding_seconds, 1e-9),
        encoders=actors,
        threads=threads,
        device=device,
        peak_memory=encoded.peak_memory,
    )
    report.write(work.output, manifest)
    return report


def plan_encoding(config: EncodeConfig) -> EncodePlan:
    """Say what `encode` would do, and how long a sample says that it takes; nothing is written.

    Raises:
        DistindexError: what `encode` refuses before it begins; a bad row in the sample with `on_bad_rows: fail`.
    """
    work = _work(config)
    start_ray()
    means = resources(config, len(work.corpus.files), len(work.tasks))
    return sample_plan(config, work.corpus, work.tasks, work.hasher, means, len(work.earlier), work.unfinished)


def run(config: EncodeConfig) -> EncodeReport | EncodePlan:
    """What the command line calls: `encode`, or with `dry_run` `plan_encoding`."""
    return plan_encoding(config) if config.dry_run else encode(config)


def _work(config: EncodeConfig) -> _Work:
    hasher = Hasher.load(config.hasher, config.corpus.storage_options)
    corpus = Corpus.open(config.corpus)
    _check_fit(corpus, hasher, config)
    since = split_corpus(config, corpus, hasher)
    corpus = since.corpus
    if config.since is not None:
        say(f"since {config.since}: {len(since.inputs):,} files encoded before, {len(corpus.files):,} new")
    identity = fingerprint(corpus.fingerprint, config.corpus.on_bad_rows, hasher.fingerprint)
    output = Storage(config.output, config.corpus.storage_options)
    existing = None if config.restart else directory.committed(output, identity, corpus, hasher)
    plan = describe_plan(config, corpus, hasher)
    unfinished = existing is None and not config.restart and directory.check_plan(output, plan)
    tasks = plan_tasks(corpus, config.task_mib)
    return _Work(hasher, corpus, tasks, since.inputs, output, identity, existing, plan, unfinished)


def _check_fit(corpus: Corpus, hasher: Hasher, config: EncodeConfig) -> None:
    column = config.corpus.feature_column
    kind = corpus.schema.field(column).type
    if isinstance(hasher.features, ImageFeatures):
        # Lists of uint8 are vectors, unless the hasher says that they are images.
        check_type(kind, hasher.features.config, f'{config.corpus.uri}: column "{column}"')
    elif corpus.feature_kind != hasher.features.kind:
        raise InputError(
            f'{config.corpus.uri}: column "{column}" holds {corpus.feature_kind} features, '
            f"but the hasher {config.hasher} takes {hasher.features.kind} features"
        )
    if (
        pa.types.is_fixed_size_list(kind)
        and hasher.features.kind == "dense"
        and kind.list_size != hasher.features.width
    ):
        raise InputError(
            f'{config.corpus.uri}: column "{column}" has {kind.list_size} dimensions, '
            f"but the hasher {config.hasher} takes {hasher.features.width}"
        )
    names = config.corpus.payload_columns
    for name in names:
        if name in (codeset.ID_COLUMN, codeset.CODE_COLUMN):
            raise InputError(
                f'corpus.payload_columns: "{name}" is the name of a column that every code set has; '
                "leave it out or rename it"
            )
    if len(set(names)) < len(names):
        raise InputError(f"corpus.payload_columns: a name is there twice in {', '.join(names)}")


def _rejected_limit(config: EncodeConfig, corpus: Corpus) -> int | None:
    limit = config.max_rejected
    if limit is None:
        return None
    return int(limit * corpus.rows) if limit < 1 else int(limit)


def _manifest(config: EncodeConfig, work: _Work, results: Sequence[PartResult]) -> CodeSetManifest:
    corpus, hasher = work.corpus, work.hasher
    schema, payload = output_schema(corpus, hasher.bits), corpus.config.payload_columns
    return CodeSetManifest(
        bits=hasher.bits,
        hasher=HasherReference(config.hasher, hasher.fingerprint),
        id_type="int64" if pa.types.is_integer(corpus.id_type) else "string",
        payload=tuple(PayloadColumn(name, str(schema.field(name).type)) for name in payload),
        rows=sum(result.rows for result in results),
        rejected=sum(result.rejected for result in results),
        inputs=inputs_of(corpus),
        files=tuple(result.part for result in results),
        rejected_files=tuple(result.rejected_part for result in results if result.rejected_part),
        fingerprint=work.identity,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command_line(sys.argv),
        earlier=work.earlier,
    )


def _checked(manifest: CodeSetManifest, work: _Work, results: Sequence[PartResult]) -> CodeSetManifest:
    """The manifest with the sums over its ids, once every row that went in has come out, and only once.

    Raises:
        InputError: there is no good row, or an id is there twice.
        DamagedError: rows or ids are missing, or there are others.
    """
    corpus, tasks, output = work.corpus, work.tasks, work.output
    rows_of = [0] * len(corpus.files)
    for task, result in zip(tasks, results, strict=True):
        rows_of[task.input] += result.rows + result.rejected
    for file, rows in zip(corpus.files, rows_of, strict=True):
        if rows != file.rows:
            raise DamagedError(f"{file.uri}: {file.rows} rows went in, but {rows} came out; nothing was committed")
    if corpus.rows and not manifest.rows:
        raise InputError(
            f"{corpus.config.uri}: all {manifest.rejected} rows are bad; "
            "set on_bad_rows to fail to see the first with its reason"
        )
    found = read_back(output, manifest, [WrittenPart(result.part, result.rejected_part) for result in results])
    sources: list[PartSource] = []
    total = IdSum()
    for task, result, ids, rejected_ids in zip(tasks, results, found.parts, found.rejected, strict=True):
        if ids + rejected_ids != result.input_ids:
            raise DamagedError(
                f"{output.full_uri(result.part.path)}: its ids and those of the rejected rows are not the ids of "
                f"{task.file.uri} from row {task.groups.first_row} on; nothing was committed"
            )
        sources.append(PartSource(task.input, task.groups.first_row, task.rows, ids.digits))
        total += ids
    if found.repeated is not None:
        places = fetch(ray.remote(num_cpus=1)(_places_of).remote(corpus, found.repeated))
        raise InputError(
            f"{corpus.config.uri}: id {found.repeated!r} is there more than once: {', '.join(places)}; "
            "ids must be unique"
        )
    return dataclasses.replace(manifest, sources=tuple(sources), ids=total.digits)


def _places_of(corpus: Corpus, identifier: int | str) -> list[str]:
    return corpus.places_of(identifier)


def _report(config: EncodeConfig, manifest: CodeSetManifest, started: float, reused: int) -> EncodeReport:
    return EncodeReport(
        uri=config.output,
        rows=manifest.rows,
        rejected=manifest.rejected,
        files=len(manifest.inputs),
        parts=len(manifest.files),
        reused=reused,
        seconds=time.monotonic() - started,
    )
