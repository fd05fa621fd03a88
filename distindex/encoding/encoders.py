"""The encoders of a run: how many there are, and Ray Data handing them the tasks."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Sequence

import ray.data

from distindex.config import EncodeConfig
from distindex.encoding.actor import Answer, EncoderActor, Job
from distindex.encoding.lease import Lease
from distindex.encoding.part import PartResult, too_many_rejected
from distindex.encoding.tasks import Task
from distindex.errors import ConflictError, DistindexError, InputError
from distindex.progress import Bar, say
from distindex.runtime import cluster_cpus, cluster_gpus

# Ray takes a millisecond for each block before any work begins.
_MAX_BLOCKS = 10_000
# So many for each encoder, and one that lies at an encoder while another idles costs little.
_TASKS_TO_QUEUE = 4
# Before those of all tasks.
_LOST = -1


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The tasks' results in the order of the plan, and what they took; see `EncodeReport`."""

    results: list[PartResult]
    startup_seconds: float
    encoding_seconds: float
    peak_memory: int


def resources(config: EncodeConfig, files: int, tasks: int) -> tuple[int, int, str]:
    """How many encoders, threads of each, and on which device; says so.

    Raises:
        InputError: the cluster has no GPU, or fewer CPUs than one encoder is to have.
    """
    workers = config.workers
    cpus, gpus = cluster_cpus(), cluster_gpus()
    if workers.device == "cuda" and not gpus:
        raise InputError("workers.device: cuda was asked for, but the cluster has no GPU; use auto or cpu")
    device = "cuda" if workers.device != "cpu" and gpus else "cpu"
    threads = workers.cpus or 1
    if threads > cpus:
        raise InputError(f"workers.cpus: {threads} for each encoder, but the cluster has {cpus} CPUs")
    available = min(cpus // threads, gpus) if device == "cuda" else cpus // threads
    actors = min(tasks, workers.count or max(1, available))
    if actors > available:
        say(f"workers.count: {actors} encoders asked for, room for {available}; the others wait")
    reason = f"{gpus} GPUs in the cluster" if gpus else "no GPU in the cluster"
    if workers.device != "auto":
        reason = "asked for"
    say(
        f"encoding {files} file(s) in {tasks} task(s) with {actors} encoder(s) of {threads} CPU(s) each; "
        f"device: {device} ({reason})"
    )
    return actors, threads, device


def encode_tasks(job: Job, tasks: Sequence[Task], rows: int, actors: int, started: float, lease: Lease) -> Encoded:
    """Let the actors encode all tasks.

    Args:
        job: what the actors need to know.
        tasks: what there is to do.
        rows: in all of them.
        actors: how many encoders.
        started: when the call began, by the monotonic clock.
        lease: the run's; without it, the actors are told to stop.

    Raises:
        DistindexError: the first error, by the order of the tasks, of those that actors met.
        TooManyRejectedError: all tasks together rejected too many rows.
        LeaseLostError: another run has taken over.
    """
    if not tasks:
        return Encoded([], 0.0, 0.0, 0)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    # A task may take longer than any limit: what has died is noticed by Ray in other ways.
    context.execution_no_progress_timeout_s = -1
    items = [{"position": task.position, "task": json.dumps(task.to_json())} for task in tasks]
    results: dict[int, PartResult] = {}
    failures: dict[int, DistindexError] = {}
    examples: list[str] = []
    rejected = peak_memory = 0
    ready: float | None = None
    # The next task waits at the encoder, not the encoder for it. Few tasks are handed out one by one: they could all
    # go to the first encoder that is ready.
    in_flight = 2 if len(tasks) >= _TASKS_TO_QUEUE * actors else 1
    with ray.data.DataContext.current(context), Bar("encoding", rows, "rows") as bar:
        answers = ray.data.from_items(items, override_num_blocks=min(len(items), _MAX_BLOCKS)).map(
            EncoderActor,  # type: ignore[arg-type]
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=in_flight),
            num_cpus=job.threads,
            num_gpus=1 if job.device == "cuda" else None,
        )
        for row in answers.iter_rows():
            answer = Answer.of(row)
            # Clocks of other machines may differ: only what an actor has measured itself is used.
            ready = ready or time.monotonic() - answer.seconds
            peak_memory = max(peak_memory, answer.peak_memory)
            if answer.error is not None:
                failures[answer.position] = answer.error
            elif answer.result is not None:
                results[answer.position] = answer.result
                rejected += answer.result.rejected
                examples += answer.result.examples[: 3 - len(examples)]
                if job.max_rejected is not None and rejected > job.max_rejected and not failures:
                    failures[len(tasks)] = too_many_rejected(rejected, job.max_rejected, examples)
                    job.output.write_bytes(job.failure, b"")
            if lease.lost and _LOST not in failures:
                failures[_LOST] = lease.lost_error()
                job.output.write_bytes(job.failure, b"")
            bar.advance(tasks[answer.position].rows, f"{rejected:,} rejected" if rejected else "")
    if failures:
        raise failures[min(failures)]
    if len(results) < len(tasks):
        raise ConflictError(f"{job.config.output}: another run has written a code set here meanwhile")
    ended = time.monotonic()
    ready = ready or ended
    return Encoded([results[task.position] for task in tasks], ready - started, ended - ready, peak_memory)
