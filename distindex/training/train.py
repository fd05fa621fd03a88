"""`distindex train`: a `TorchTrainer` over the corpus, and the Hasher that comes out of it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import threading
import time
from typing import Any

import ray
import ray.train
from ray.exceptions import ActorDiedError, RayError
from ray.train.torch import TorchTrainer
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_fixed

from distindex.config import TrainConfig
from distindex.errors import ConflictError, DistindexError, InputError, NotFoundError
from distindex.hashing.classic import check_classic
from distindex.hashing.description import read_description
from distindex.hashing.hasher import Hasher
from distindex.hashing.methods import check_labels
from distindex.method_config import CLOSED_FORM
from distindex.progress import Bar, say
from distindex.runtime import cluster_cpus, cluster_gpus, fetch, free_cpus, largest_node_cpus, start_ray
from distindex.settings import as_json, differences, dotted, without_secrets
from distindex.storage import Storage
from distindex.training.checkpoints import (
    RUN,
    Progress,
    Tables,
    checkpoint_names,
    read_checkpoint,
    unlisted_checkpoint,
)
from distindex.training.data import TrainingSet
from distindex.training.fit import fit
from distindex.training.loop import train_worker
from distindex.training.prepare import Choice, choose, prepare
from distindex.training.report import described_answers, write_report
from distindex.training.source import TrainingData
from distindex.training.stream import Streaming
from distindex.training.tracking import Tracking, check_trackers

_CLAIM = f"{RUN}/config.json"
_RESOURCES_ONLY = ("workers", "max_failures", "memory_gib", "output", "minimum_workers", "trackers")


@dataclasses.dataclass
class TrainReport:
    """What a training run gave.

    Attributes:
        uri: the hasher's directory.
        fingerprint: the hasher's fingerprint.
        epochs: epochs run, of which `best_epoch` is kept; 0 for a method in closed form.
        precision: precision@k on the held-out labeled rows; None without validation.
        rows: rows of the corpus.
        labeled: rows whose labels were used.
        rejected: bad rows left out.
        pairs: answers about pairs in the label store: those that are used as pairs, resolved into labels,
            contradictory, of unknown ids, and unused, as the method has no loss over pairs; None without any.
        seconds: wall time of this call.
        history: metrics per epoch.
    """

    uri: str
    fingerprint: str
    epochs: int
    best_epoch: int
    precision: float | None
    rows: int
    labeled: int
    rejected: int
    pairs: dict[str, int] | None
    seconds: float
    history: list[dict[str, Any]]


class _ToQueue(ray.train.UserCallback):
    """Hands each epoch's metrics to the driver; Ray calls it in the controller's process."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self.queue.put(metrics[0] | {"checkpoint": checkpoint is not None})


def train(config: TrainConfig) -> TrainReport:
    """Train a hasher, or go on with the run that was begun at `config.output`.

    A killed run continues from its last checkpoint when it is started again with the same config. A
    finished one is returned as it is. Methods in closed form are fitted in one task, from its start.

    Raises:
        InputError: bad corpus, labels or settings, a method that needs labels and has none; or
            `config.output` holds a run with other settings.
        DistindexError: workers failed more often than `config.max_failures`.
    """
    started = time.monotonic()
    config = dataclasses.replace(config, method=config.method.filled())
    _check_labels(config)
    check_trackers(config.trackers)
    _check_initial(config)
    output = Storage(config.output, config.corpus.storage_options)
    start_ray()
    if output.exists("hasher.json"):
        return _finished(config, output)
    choice = _choice(config, output)
    data_ref = ray.remote(num_cpus=1)(prepare).remote(config, choice)
    data: TrainingData = fetch(data_ref)
    if isinstance(data, TrainingSet) and config.method.name in CLOSED_FORM:
        check_classic(config.method.name, data.x_NV, data.label_NC, config.bits)
    workers, threads, cuda = _resources(config)
    _claim(config, output, data.fingerprint, choice.streaming)
    _announce(config, data, workers, threads, cuda)

    if config.method.name in CLOSED_FORM:
        progress, tables = fit(config, data_ref, threads)
    else:
        progress, tables = _train_network(config, output, data_ref, data.steps(config), (workers, threads, cuda))
    metadata = {
        "config": without_secrets(as_json(config)),
        "data_fingerprint": data.fingerprint,
        "rows": data.rows,
        "labeled": int(data.known.labeled().sum()),
        "rejected": data.rejected,
        "pairs": data.answered.counts() if data.answered.given else None,
        "streaming": as_json(choice.streaming),
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "precision": progress.best_precision if progress.best_precision >= 0 else None,
        "history": progress.history,
    }
    write_report(output, config, data, metadata, _describe_workers(workers, threads, cuda))
    hasher = Hasher(
        method=config.method.name,
        bits=config.bits,
        feature_column=config.corpus.feature_column,
        features=data.features,
        tables=tables,
        label_names=data.known.names,
        metadata=metadata,
    )
    hasher.save(config.output, config.corpus.storage_options)
    return _report(config, hasher.fingerprint, hasher.metadata, time.monotonic() - started)


def _describe_workers(workers: int, threads: int, cuda: bool) -> str:
    return f"{workers} worker{'s' * (workers > 1)} of {threads} thread{'s' * (threads > 1)}{' and a GPU' * cuda}"


def _check_labels(config: TrainConfig) -> None:
    labels = config.corpus.label_column is not None or config.labels.store is not None
    check_labels(config.method, labels)
    if config.optimization.labeled_fraction and not labels:
        raise InputError(
            "optimization.labeled_fraction: there is neither corpus.label_column nor labels.store; leave it out, or "
            "name one"
        )


def _check_initial(config: TrainConfig) -> None:
    if config.initial is None:
        return
    earlier = Storage(config.initial, config.corpus.storage_options)
    if not earlier.exists(_CLAIM) or not checkpoint_names(earlier.child(RUN)):
        raise NotFoundError(f"initial: {config.initial} holds no checkpoint of a training; name the output of one")
    old, new = earlier.read_json(_CLAIM)["config"], _identity(config)
    for each in (old, new):
        each["corpus"].pop("label_column")
    changed = [
        change
        for name in ("corpus", "bits", "features", "method")
        for change in differences({name: old[name]}, {name: new[name]})
    ]
    if changed:
        raise InputError(
            f"initial: {config.initial} was trained with other settings ({'; '.join(changed)}); leave initial out"
        )


def _report(config: TrainConfig, hasher_fingerprint: str, metadata: Any, seconds: float) -> TrainReport:
    names = ("epochs", "best_epoch", "precision", "rows", "labeled", "rejected", "history")
    values = {name: metadata[name] for name in names}
    # Hashers of earlier releases say nothing of pairs.
    values["pairs"] = metadata.get("pairs")
    return TrainReport(uri=config.output, fingerprint=hasher_fingerprint, seconds=round(seconds, 2), **values)


def _identity(config: TrainConfig) -> dict[str, Any]:
    """What makes two runs the same: everything but the output and what the run is computed on."""
    return {name: value for name, value in without_secrets(as_json(config)).items() if name not in _RESOURCES_ONLY}


def _finished(config: TrainConfig, output: Storage) -> TrainReport:
    description = read_description(output)
    metadata = description["metadata"]
    if "config" not in metadata:
        raise InputError(f"{output.uri}: holds a {description['method']} hasher; choose another output")
    old = {name: value for name, value in metadata["config"].items() if name not in _RESOURCES_ONLY}
    _refuse_changes(output, old, _identity(config))
    say(f"train: {output.uri} is trained already with these settings; nothing to do")
    return _report(config, description["fingerprint"], metadata, 0.0)


def _choice(config: TrainConfig, output: Storage) -> Choice:
    """Memory or streaming; a run that was begun goes on as it was begun, whatever memory there is now."""
    choice: Choice = fetch(ray.remote(num_cpus=1)(choose).remote(config))
    if output.exists(_CLAIM):
        earlier = output.read_json(_CLAIM).get("streaming")
        if earlier != as_json(choice.streaming):
            how = "is streamed" if earlier else "is held in memory"
            streaming = Streaming(**earlier) if earlier else None
            choice = dataclasses.replace(choice, streaming=streaming, reason=f"the corpus {how}, as the run began")
    say(f"train: {choice.reason}")
    return choice


def _claim(config: TrainConfig, output: Storage, data_fingerprint: str, streaming: Streaming | None) -> None:
    """Note the run's settings in its directory, or check that they are those of the run that is there."""
    identity = {
        "config": _identity(config),
        "data_fingerprint": data_fingerprint,
        "streaming": as_json(streaming),
    }
    try:
        output.create_json(_CLAIM, identity)
    except ConflictError:
        old = output.read_json(_CLAIM)
        _refuse_changes(output, old["config"], identity["config"])
        if old["data_fingerprint"] != data_fingerprint:
            message = f"{output.uri}: the run here was begun on other data; choose another output"
            raise InputError(message) from None
        say(f"train: going on with the run at {output.uri}")


def _refuse_changes(output: Storage, old: dict[str, Any], new: dict[str, Any]) -> None:
    changed = differences(old, new)
    if changed:
        raise InputError(
            f"{output.uri}: the run here has other settings ({'; '.join(changed)}); choose another output"
        )


def _resources(config: TrainConfig) -> tuple[int, int, bool]:
    """Workers, CPU threads of each, and whether they use CUDA; says what was chosen and why."""
    cpus, gpus, free = cluster_cpus(), cluster_gpus(), free_cpus()
    if config.method.name in CLOSED_FORM:
        if config.workers.count > 1 or config.workers.device == "cuda":
            raise InputError(f"workers: {config.method.name} is fitted by one worker on the CPU; leave them out")
        return 1, min(config.workers.cpus or max(1, free), largest_node_cpus()), False
    if config.workers.device == "cuda" and not gpus:
        raise InputError("workers.device: cuda was asked for, but the cluster has no GPU; use auto or cpu")
    cuda = config.workers.device != "cpu" and gpus > 0
    workers = config.workers.count or (gpus if cuda else 1)
    threads = config.workers.cpus or max(1, min(free // workers, largest_node_cpus()))
    if workers * threads > cpus:
        raise InputError(
            f"workers: {workers} workers of {threads} CPUs need {workers * threads} CPUs, the cluster has {cpus}"
        )
    if config.optimization.batch_size < 2 * workers:
        raise InputError(f"optimization.batch_size: {config.optimization.batch_size} rows for {workers} workers")
    reason = f"{gpus} GPUs in the cluster" if cuda else ("no GPU in the cluster" if not gpus else "asked for")
    say(f"device: {'cuda' if cuda else 'cpu'} ({reason})")
    least = (min(config.minimum_workers, workers) or workers) * threads
    if least > free:
        say(
            f"train: waiting for {least} CPUs; {free} of the cluster's {cpus} are free: end what holds the others, a "
            "service perhaps, or set workers.count and workers.cpus"
        )
    return workers, threads, cuda


def _announce(config: TrainConfig, data: TrainingData, workers: int, threads: int, cuda: bool) -> None:
    labeled = int(data.known.labeled().sum())
    say(
        f"train: {config.method.name}, {config.bits} bits, {data.rows:,} rows of {data.features.width:,} "
        f"{data.features.kind} features, {labeled:,} labeled ({labeled / data.rows:.0%}, "
        f"{len(data.known.names)} classes, {len(data.validation_rows)} of them for validation), "
        f"{_describe_workers(workers, threads, cuda)}"
    )
    if data.rejected:
        say(f"train: {data.rejected} bad rows are left out")
    if data.answered.given:
        say(f"train: {described_answers(data.answered)}")
    if not labeled and not len(data.answered) and config.method.name not in CLOSED_FORM:
        say("train: no labels, so the autoencoder's terms alone are trained")


def _train_network(
    config: TrainConfig, output: Storage, data_ref: ray.ObjectRef, steps: int, resources: tuple[int, int, bool]
) -> tuple[Progress, Tables]:
    """Train the network with Ray Train; what its last checkpoint holds.

    The workers of a killed run live a little longer than its driver, and may change the list of checkpoints that Ray
    Train has begun to read: then it is read again.
    """
    retry = retry_if_exception(_is_stale)
    until_read = Retrying(retry=retry, stop=stop_after_attempt(5), wait=wait_fixed(1), reraise=True)
    result = until_read(_fit, config, output, data_ref, steps, resources)
    if result.checkpoint is None:
        raise DistindexError(f"{output.uri}: training ended without a checkpoint; start it again")
    with result.checkpoint.as_directory() as directory:
        return read_checkpoint(Storage(directory))


def _is_stale(error: BaseException) -> bool:
    """Whether Ray Train's list of checkpoints names one that is not there any more."""
    return isinstance(error, ActorDiedError) and "CheckpointManagerInitializationError" in str(error)


def _fit(
    config: TrainConfig, output: Storage, data_ref: ray.ObjectRef, steps: int, resources: tuple[int, int, bool]
) -> ray.train.Result:
    workers, threads, cuda = resources
    arguments = {"config": config, "data": data_ref, "threads": threads, "cuda": cuda}
    arguments["unlisted"] = unlisted_checkpoint(output.child(RUN))
    # Beside the driver, whose end is the run's: a queue lost with another node would end each try anew.
    beside = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": beside})
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=arguments,
        scaling_config=ray.train.ScalingConfig(
            num_workers=(min(config.minimum_workers, workers), workers) if config.minimum_workers else workers,
            use_gpu=cuda,
            resources_per_worker={"CPU": threads, "GPU": int(cuda)},
        ),
        run_config=ray.train.RunConfig(
            name=RUN,
            storage_path=output.full_path(),
            storage_filesystem=output.arrow,
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=[_ToQueue(queue)],
        ),
    )
    tracking = Tracking(
        config.trackers, output.child(RUN), output.uri.rstrip("/").rpartition("/")[2], dotted(_identity(config))
    )
    return _run(trainer, queue, config, steps, tracking)


def _run(
    trainer: TorchTrainer, queue: Queue, config: TrainConfig, steps: int, tracking: Tracking
) -> ray.train.Result:
    """Run the trainer, and show and track its epochs, of so many steps each, meanwhile."""

    def show() -> None:
        with Bar("train", config.optimization.epochs * steps, "steps") as bar, contextlib.suppress(RayError):
            # The last one is None.
            while metrics := queue.get():
                bar.advance(metrics["epoch"] * steps - bar.done, _note(metrics, config.validation.k))
                # Those from within an epoch are of a part of it only.
                if "best_epoch" in metrics:
                    tracking.log(metrics["epoch"], metrics)

    watcher = threading.Thread(target=show, daemon=True)
    watcher.start()
    try:
        return trainer.fit()
    except ray.train.TrainingFailedError as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise DistindexError(
            f"training failed more than {config.max_failures} times; the last reason: {reason}; "
            "the same command goes on from the last checkpoint"
        ) from error
    finally:
        with contextlib.suppress(RayError):
            queue.put(None)
        watcher.join()
        tracking.close()
        queue.shutdown(force=True)


def _note(metrics: dict[str, Any], k: int) -> str:
    """The metrics of an epoch for people."""
    terms = itertools.takewhile(lambda name: name != "labeled_pairs_per_step", metrics)
    parts = ", ".join(f"{name} {metrics[name]:.3f}" for name in terms if name != "total")
    note = f"epoch {math.ceil(metrics['epoch'])}, loss {metrics['total']:.3f} ({parts})"
    note += f", {metrics['rows_per_second']:,.0f} rows/s"
    precision = metrics.get("precision")
    return note if precision is None else f"{note}, validation precision@{k} {precision:.3f}"
