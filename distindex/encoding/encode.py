"""`distindex encode`: Ray Data hands the files of a corpus to a pool of encoder actors; the driver commits."""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import sys
import time
import uuid
from typing import Any

import pyarrow as pa
import ray
import ray.data
import torch

from distindex import codeset, errors
from distindex.codeset import CodeSet, CodeSetManifest, HasherReference, InputFile, PayloadColumn
from distindex.config import EncodeConfig
from distindex.corpus.dataset import Corpus, CorpusFile
from distindex.corpus.features import ImageFeatures
from distindex.corpus.images import check_type
from distindex.encoding.part import (
    PROGRESS,
    REJECTED,
    PartNames,
    PartResult,
    StoppedError,
    encode_file,
    output_schema,
)
from distindex.encoding.uniqueness import repeated_id
from distindex.errors import ConflictError, DistindexError, InputError
from distindex.hashing.hasher import Hasher
from distindex.progress import Bar, say
from distindex.runtime import cluster_cpus, cluster_gpus, fetch, start_ray
from distindex.settings import command_line, fingerprint
from distindex.storage import Storage


@dataclasses.dataclass(frozen=True)
class EncodeReport:
    """What encoding gave.

    Attributes:
        uri: the code set's directory.
        rows: encoded rows.
        rejected: rows put aside with their reasons, in `rejected/`.
        files: parts.
        reused: parts that an earlier, interrupted run had made.
        seconds: wall time of this call.
        rows_per_second: rows that this call encoded over the time from handing out the first file to the last
            answer, all actors together and their start included.
    """

    uri: str
    rows: int
    rejected: int
    files: int
    reused: int
    seconds: float
    rows_per_second: float


@dataclasses.dataclass(frozen=True)
class _Job:
    """What an actor needs to know; small, and the same for all."""

    config: EncodeConfig
    schema: pa.Schema
    hasher_fingerprint: str
    run: str
    threads: int
    device: str

    @property
    def output(self) -> Storage:
        return Storage(self.config.output, self.config.corpus.storage_options)

    @property
    def failure(self) -> str:
        return f"{PROGRESS}/failed-{self.run}"

    def names(self, position: int, file: CorpusFile) -> PartNames:
        return PartNames.of(position, file, self.corpus(file), self.hasher_fingerprint)

    def corpus(self, *files: CorpusFile) -> Corpus:
        return Corpus(self.config.corpus, files, self.schema)


class EncoderActor:
    """Encodes one corpus file per call with a hasher that it loads once."""

    def __init__(self, job: _Job) -> None:
        torch.set_num_threads(job.threads)
        self.job = job
        self.output = job.output
        self.hasher: Hasher | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Encode the file that the row describes.

        Our own errors go into the row: an exception would reach the driver wrapped in Ray's traceback, and
        other actors would go on for nothing.
        """
        file = CorpusFile(**json.loads(row["file"]))
        answer = {"position": row["position"], "result": "", "error": "", "message": ""}
        try:
            if self._stopped():
                raise StoppedError
            answer["result"] = json.dumps(self._encode(int(row["position"]), file).to_json())
        except StoppedError:
            answer["error"] = StoppedError.__name__
        except DistindexError as error:
            answer["error"], answer["message"] = type(error).__name__, str(error)
            self.output.write_bytes(self.job.failure, b"")
        return answer

    def _encode(self, position: int, file: CorpusFile) -> PartResult:
        job = self.job
        if self.hasher is None:
            self.hasher = Hasher.load(job.config.hasher, job.config.corpus.storage_options)
            self.hasher.to(torch.device(job.device))
            if self.hasher.fingerprint != job.hasher_fingerprint:
                raise ConflictError(f"{job.config.hasher}: the hasher was replaced while it was used; start again")
        return encode_file(
            job.corpus(file),
            file,
            self.hasher,
            self.output,
            job.names(position, file),
            job.config.batch_rows,
            self._stopped,
        )

    def _stopped(self) -> bool:
        return self.output.exists(self.job.failure)


def encode(config: EncodeConfig) -> EncodeReport:
    """Encode a corpus into a code set.

    A run that was interrupted goes on with the files that it had not finished, and gives the same bytes as
    one that was not. A code set that is already there is left as it is: if it was made of the same inputs
    by the same hasher, it is the result.

    Raises:
        NotFoundError: there is no hasher or no corpus.
        InputError: the corpus does not fit (a column, a type, a width), a row is bad and `on_bad_rows` is
            `fail`, or ids repeat. Nothing is left in the output directory.
        ConflictError: the output directory holds another code set.
    """
    started = time.monotonic()
    hasher = Hasher.load(config.hasher, config.corpus.storage_options)
    corpus = Corpus.open(config.corpus)
    _check_fit(corpus, hasher, config)
    identity = fingerprint(corpus.fingerprint, config.corpus.on_bad_rows, hasher.fingerprint)
    output = Storage(config.output, config.corpus.storage_options)
    existing = _existing(output, identity, corpus, hasher)
    if existing is not None:
        say(f"{config.output}: already encoded from the same inputs by the same hasher; nothing to do")
        return _report(config, existing, reused=len(existing.files), rate=0.0, started=started)

    start_ray()
    actors, threads, device = _resources(config, len(corpus.files))
    job = _Job(config, corpus.schema, hasher.fingerprint, uuid.uuid4().hex[:12], threads, device)
    existed = output.exists()
    began = time.monotonic()
    try:
        results = _encode_files(job, corpus, actors)
        encoding_seconds = time.monotonic() - began
        manifest = _manifest(job, corpus, hasher, results, identity)
        _check_rows(manifest, corpus)
        _check_unique(manifest, corpus, output)
    except DistindexError:
        _remove_own(job, corpus, existed)
        raise
    try:
        codeset.commit(output, manifest)
    except ConflictError:
        # The other writer's code set is whole; if it is the same, this run has its result too.
        committed = _existing(output, identity, corpus, hasher)
        if committed is None:
            raise
        manifest = committed
    _remove_strays(output, manifest)
    reused = sum(result.reused for result in results)
    new_rows = sum(result.rows for result in results if not result.reused)
    return _report(config, manifest, reused, new_rows / encoding_seconds, started)


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


def _existing(output: Storage, identity: str, corpus: Corpus, hasher: Hasher) -> CodeSetManifest | None:
    """The code set that is there already, if it is the one that is asked for."""
    if not output.exists(codeset.MANIFEST):
        return None
    manifest = CodeSet.open(output.uri, output.options).manifest
    if manifest.fingerprint == identity:
        return manifest
    if manifest.hasher.fingerprint != hasher.fingerprint:
        difference = "by another hasher"
    elif manifest.inputs != _inputs(corpus):
        difference = "of other input files"
    else:
        difference = "of other columns or with other settings"
    raise ConflictError(f"{output.uri}: holds a code set made {difference}; choose another output or remove it first")


def _resources(config: EncodeConfig, files: int) -> tuple[int, int, str]:
    workers = config.workers
    cpus, gpus = cluster_cpus(), cluster_gpus()
    if workers.device == "cuda" and not gpus:
        raise InputError("workers.device: cuda was asked for, but the cluster has no GPU; use auto or cpu")
    device = "cuda" if workers.device != "cpu" and gpus else "cpu"
    threads = workers.cpus or 1
    if threads > cpus:
        raise InputError(f"workers.cpus: {threads} for each encoder, but the cluster has {cpus} CPUs")
    available = min(cpus // threads, gpus) if device == "cuda" else cpus // threads
    actors = min(files, workers.count or max(1, available))
    if actors > available:
        say(f"workers.count: {actors} encoders asked for, room for {available}; the others wait")
    reason = f"{gpus} GPUs in the cluster" if gpus else "no GPU in the cluster"
    if workers.device != "auto":
        reason = "asked for"
    say(f"encoding {files} file(s) with {actors} encoder(s) of {threads} CPU(s) each; device: {device} ({reason})")
    return actors, threads, device


def _encode_files(job: _Job, corpus: Corpus, actors: int) -> list[PartResult]:
    """Results in the order of the corpus's files.

    Raises:
        DistindexError: the first error, by the order of the files, of those that actors met.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    # A file may take longer than any limit: what has died is noticed by Ray in other ways.
    context.execution_no_progress_timeout_s = -1
    items = [
        {"position": position, "file": json.dumps(dataclasses.asdict(file))}
        for position, file in enumerate(corpus.files)
    ]
    results: dict[int, PartResult] = {}
    failures: dict[int, DistindexError] = {}
    with ray.data.DataContext.current(context), Bar("encoding", corpus.rows, "rows") as bar:
        answers = ray.data.from_items(items, override_num_blocks=len(items)).map(
            EncoderActor,  # type: ignore[arg-type]
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1),
            num_cpus=job.threads,
            num_gpus=1 if job.device == "cuda" else None,
        )
        for answer in answers.iter_rows():
            position = int(answer["position"])
            bar.advance(corpus.files[position].rows)
            if answer["result"]:
                results[position] = PartResult.from_json(json.loads(answer["result"]))
            elif answer["error"] != StoppedError.__name__:
                failures[position] = getattr(errors, answer["error"], DistindexError)(answer["message"])
    if failures:
        raise failures[min(failures)]
    return [results[position] for position in range(len(items))]


def _inputs(corpus: Corpus) -> tuple[InputFile, ...]:
    return tuple(InputFile(file.uri, file.size, file.etag, file.rows) for file in corpus.files)


def _manifest(job: _Job, corpus: Corpus, hasher: Hasher, results: list[PartResult], identity: str) -> CodeSetManifest:
    schema, payload = output_schema(corpus, hasher.bits), corpus.config.payload_columns
    return CodeSetManifest(
        bits=hasher.bits,
        hasher=HasherReference(job.config.hasher, hasher.fingerprint),
        id_type="int64" if pa.types.is_integer(corpus.id_type) else "string",
        payload=tuple(PayloadColumn(name, str(schema.field(name).type)) for name in payload),
        rows=sum(result.rows for result in results),
        rejected=sum(result.rejected for result in results),
        inputs=_inputs(corpus),
        files=tuple(result.part for result in results),
        rejected_files=tuple(result.rejected_part for result in results if result.rejected_part),
        fingerprint=identity,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command_line(sys.argv),
    )


def _check_rows(manifest: CodeSetManifest, corpus: Corpus) -> None:
    if manifest.rows + manifest.rejected != corpus.rows:
        raise DistindexError(
            f"{corpus.config.uri}: {corpus.rows} rows went in, but {manifest.rows} encoded and "
            f"{manifest.rejected} rejected rows came out; nothing was committed"
        )
    if manifest.rows == 0:
        raise InputError(
            f"{corpus.config.uri}: all {manifest.rejected} rows are bad; "
            "set on_bad_rows to fail to see the first with its reason"
        )


def _check_unique(manifest: CodeSetManifest, corpus: Corpus, output: Storage) -> None:
    repeated = repeated_id(output, manifest)
    if repeated is not None:
        places = fetch(ray.remote(num_cpus=1)(_places_of).remote(corpus, repeated))
        raise InputError(
            f"{corpus.config.uri}: id {repeated!r} is there more than once: {', '.join(places)}; ids must be unique"
        )


def _places_of(corpus: Corpus, identifier: int | str) -> list[str]:
    return corpus.places_of(identifier)


def _remove_own(job: _Job, corpus: Corpus, existed: bool) -> None:
    """Undo a failed run: remove what it wrote, unless another run has committed just that."""
    output = job.output
    if output.exists(codeset.MANIFEST):
        output.remove(job.failure)
        return
    own = {job.failure}
    for position, file in enumerate(corpus.files):
        own.update(dataclasses.astuple(job.names(position, file)))
    for path in _listing(output):
        if path in own:
            output.remove(path)
    for directory in (PROGRESS, REJECTED):
        if not output.names(directory):
            output.remove(directory)
    if not existed and not output.names():
        output.remove("")


def _remove_strays(output: Storage, manifest: CodeSetManifest) -> None:
    """Remove what interrupted runs left; after the commit, so that losing the race costs nothing."""
    named = {file.path for file in (*manifest.files, *manifest.rejected_files)}
    for path in _listing(output):
        if path not in named:
            output.remove(path)
    output.remove(PROGRESS)
    if not output.names(REJECTED):
        output.remove(REJECTED)


def _listing(output: Storage) -> list[str]:
    """Files with names that encoding gives, temporary ones included; anything else is not ours."""
    found = [name for name in output.names() if name.startswith("part-")]
    for directory in (PROGRESS, REJECTED):
        found += [f"{directory}/{name}" for name in output.names(directory) if name.startswith(("part-", "failed-"))]
    return found


def _report(
    config: EncodeConfig, manifest: CodeSetManifest, reused: int, rate: float, started: float
) -> EncodeReport:
    return EncodeReport(
        uri=config.output,
        rows=manifest.rows,
        rejected=manifest.rejected,
        files=len(manifest.files),
        reused=reused,
        seconds=time.monotonic() - started,
        rows_per_second=rate,
    )
