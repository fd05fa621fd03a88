"""What every training worker runs: steps over global batches, validation, checkpoints, resume."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from typing import Any

import numpy as np
import ray
import ray.train
import torch
import torch.distributed as dist
from torch import Tensor

from distindex import codes
from distindex.config import TrainConfig
from distindex.evaluation.metrics import evaluate_codes
from distindex.hashing.base import Method
from distindex.hashing.batch import rows_of
from distindex.hashing.convolution import ImageInput, forward_network
from distindex.hashing.distributed import average_gradients, world_size
from distindex.hashing.methods import build_method
from distindex.storage import Storage
from distindex.training.checkpoints import RUN, Progress, Tables, load_checkpoint, load_initial, save_checkpoint
from distindex.training.optimizer import Optimizer
from distindex.training.source import TrainingData, judged_rows
from distindex.training.stream import StreamedSet

# After so many steps the workers add up what they have, and a checkpoint is written if it is time.
_LOOK_STEPS = 20


@dataclasses.dataclass
class PartOfEpoch:
    """What an epoch has given up to a step, over all workers.

    Attributes:
        step: steps done.
        terms: sum of each loss term over these steps.
        labeled_pairs: sum of the squared numbers of labeled rows.
        rows: rows seen.
        seconds: time taken.
    """

    step: int = 0
    terms: dict[str, float] = dataclasses.field(default_factory=dict)
    labeled_pairs: float = 0.0
    rows: int = 0
    seconds: float = 0.0

    def metrics(self) -> dict[str, float]:
        """Each loss term's mean, and the speed."""
        return {
            **{name: round(value / self.step, 6) for name, value in self.terms.items()},
            "labeled_pairs_per_step": round(self.labeled_pairs / self.step, 1),
            "rows_per_second": round(self.rows / self.seconds, 1),
            "seconds": round(self.seconds, 3),
        }


def build_model(data: TrainingData, config: TrainConfig) -> Method:
    """The method's network with its initial weights, equal on every worker.

    Raises:
        NotFoundError: the run that they are to come from has no checkpoint.
    """
    torch.manual_seed(config.optimization.seed)
    classes = len(data.known.names)
    width, image = data.features.width, ImageInput.of(data.features)
    labeled = max(float(data.known.labeled().mean()), config.optimization.labeled_fraction)
    multi, sparse = data.known.multi, data.sparse
    target = data.features.target_width
    model = build_method(config.method, width, config.bits, classes, multi, sparse, image, labeled, target)
    if config.initial is not None:
        load_initial(Storage(config.initial, config.corpus.storage_options).child(RUN), model)
    return model


class Run:
    """A worker's run: its network, how far it is, and when it last wrote a checkpoint.

    Args:
        config: the run's.
        model: the network, on the device.
        device: where the network is.
        rank: the worker's.
    """

    def __init__(self, config: TrainConfig, model: Method, device: torch.device, rank: int) -> None:
        self.config, self.model, self.device, self.rank = config, model, device, rank
        self.optimizer = Optimizer(model, config.optimization)
        self.progress, self.best = Progress(), None
        self._saved = time.monotonic()

    def resume(self, unlisted: Storage | None) -> None:
        """Go on from the last checkpoint, if there is one; `unlisted` is one that Ray Train does not know of."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as directory:
                self._load(Storage(directory))
        elif unlisted is not None:
            self._load(unlisted)

    def _load(self, directory: Storage) -> None:
        self.progress, self.best = load_checkpoint(directory, self.model, self.optimizer, self.device)

    def due(self) -> bool:
        """Whether this worker writes the next checkpoint now."""
        waited = time.monotonic() - self._saved
        return self.rank == 0 and waited >= self.config.optimization.checkpoint_seconds

    def tables(self) -> Tables:
        """The network as it is exported."""
        tables = [(table.cpu(), bias.cpu()) for table, bias in self.model.eval().encoder.export()]
        self.model.train()
        return tables

    def report(self, metrics: dict[str, Any], save: bool) -> None:
        """Tell Ray Train how far the run is; the first worker adds a checkpoint where it is to `save`."""
        if not save or self.rank != 0:
            ray.train.report(metrics)
        else:
            best = self.best or self.tables()
            with tempfile.TemporaryDirectory() as directory:
                save_checkpoint(Storage(directory), self.model, self.optimizer, self.progress, best)
                ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(directory))
        self._saved = time.monotonic() if save else self._saved

    def save_within_epoch(self, part: PartOfEpoch, steps: int) -> None:
        """Write a checkpoint in the middle of an epoch."""
        self.progress.part = dataclasses.asdict(part)
        self.report(part.metrics() | {"epoch": self.progress.epoch + part.step / steps}, save=True)
        self.progress.part = None


def train_worker(arguments: dict[str, Any]) -> None:
    """The training function of `TorchTrainer`.

    `arguments` holds the config, the data's reference, the threads, whether to use a GPU, and the checkpoint to
    go on from where Ray Train knows of none.
    """
    config: TrainConfig = arguments["config"]
    torch.set_num_threads(arguments["threads"])
    data: TrainingData = ray.get(arguments["data"])
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = torch.device("cuda", torch.cuda.current_device()) if arguments["cuda"] else torch.device("cpu")
    if isinstance(data, StreamedSet):
        data.read_ahead(arguments["data"], config, rank, workers)
    run = Run(config, build_model(data, config).to(device), device, rank)
    run.resume(arguments["unlisted"])
    run_epochs(run, data, workers)


def run_epochs(run: Run, data: TrainingData, workers: int) -> None:
    """The epochs that a run has not done yet, each validated and reported."""
    config, progress = run.config, run.progress
    while progress.epoch < config.optimization.epochs and not _stalled(config, progress):
        part = PartOfEpoch(**(progress.part or {}))
        progress.part = None
        metrics = train_epoch(
            run.model, run.optimizer, data, config, progress.epoch, run.rank, workers, run.device, part, run
        )
        progress.epoch += 1
        tables = run.tables()
        if run.rank == 0:
            metrics |= validate(tables, data, config)
        precision = _from_first_worker(metrics.get("precision", -1.0), run.device)
        if not len(data.validation_rows) or precision > progress.best_precision:
            run.best, progress.best_epoch, progress.best_precision = tables, progress.epoch, precision
        progress.history.append({"epoch": progress.epoch, **metrics})
        done = progress.epoch == config.optimization.epochs or _stalled(config, progress)
        run.report(metrics | {"epoch": progress.epoch, "best_epoch": progress.best_epoch}, done or run.due())


def train_epoch(
    model: Method,
    optimizer: Optimizer,
    data: TrainingData,
    config: TrainConfig,
    epoch: int,
    rank: int,
    workers: int,
    device: torch.device,
    part: PartOfEpoch | None = None,
    run: Run | None = None,
) -> dict[str, float]:
    """One pass over the corpus; returns each loss term's mean over the epoch and the speed.

    Args:
        model: the network.
        optimizer: its optimizer.
        data: the corpus.
        config: the run's.
        epoch: counted from 0.
        rank: the worker's.
        workers: how many there are.
        device: where the network is.
        part: what the epoch has given so far, if it was begun before.
        run: what writes checkpoints on the way; None for none.
    """
    model.train()
    part = part or PartOfEpoch()
    steps = data.steps(config)
    began, before = time.monotonic(), part.seconds
    sums: dict[str, Tensor] = {}
    labeled: list[Tensor] = []
    for batch in data.batches(config, epoch, part.step, rank, workers):
        batch = batch.to(device)
        terms = model(batch)
        optimizer.zero_grad()
        terms["total"].backward()
        average_gradients(model.parameters())
        optimizer.step()
        model.after_step()
        for name, value in terms.items():
            sums[name] = sums.get(name, 0) + value.detach().double()  # type: ignore[operator]
        labeled.append(batch.label_BC.any(1).sum())
        part.step += 1
        part.rows += batch.global_rows
        # At fixed steps, so that the sums are rounded alike whether or not the run was interrupted.
        if part.step % _LOOK_STEPS == 0 or part.step == steps:
            due = run is not None and run.due() and part.step < steps
            save = _add_up(part, sums, labeled, due, workers)
            part.seconds = before + time.monotonic() - began
            if run is not None and save:
                run.save_within_epoch(part, steps)
    return part.metrics()


def _add_up(part: PartOfEpoch, sums: dict[str, Tensor], labeled: list[Tensor], due: bool, workers: int) -> bool:
    """Add what all workers have since the last time; whether the first one wants to write a checkpoint."""
    own = torch.stack([*sums.values(), *(count.double() for count in labeled)])
    own = torch.cat([own, own.new_tensor([float(due)])])
    if world_size() > 1:
        dist.all_reduce(own)
    values = own.tolist()
    for name, value in zip(sums, values, strict=False):
        part.terms[name] = part.terms.get(name, 0.0) + value / workers
    part.labeled_pairs += sum(count**2 for count in values[len(sums) : -1])
    sums.clear()
    labeled.clear()
    return values[-1] > 0


def validate(tables: Tables, data: TrainingData, config: TrainConfig) -> dict[str, float]:
    """Precision@k of the held-out labeled rows against the labeled training rows, and the bit balance.

    Only labels that training was given can be used, so the database is smaller than the corpus by the share
    of labels, and k is scaled down by the same share.
    """
    sample, queries, database = judged_rows(data.rows, data.labeled, data.validation_rows)
    balance_K = (_logits(tables, data, sample) > 0).mean(0)
    metrics = {"bit_imbalance": round(float(np.abs(balance_K - 0.5).mean() * 2), 4)}
    if not len(queries) or not len(database):
        return metrics
    query_QC = codes.pack(_logits(tables, data, queries) > 0)
    database_NC = codes.pack(_logits(tables, data, database) > 0)
    query_labels = data.labels_of(queries).one_hot()
    database_labels = data.labels_of(database).one_hot()
    k = max(1, round(config.validation.k * len(database) / data.rows))
    found = evaluate_codes(
        query_QC, database_NC, lambda start, stop: query_labels[start:stop] @ database_labels.T > 0, ks=(k,)
    )
    return {**metrics, "precision": round(found.precision[k], 6)}


@torch.no_grad()
def _logits(tables: Tables, data: TrainingData, rows: np.ndarray, block: int = 4096) -> np.ndarray:
    parts = [rows[start : start + block] for start in range(0, len(rows), block)]
    image = ImageInput.of(data.features)
    return np.concatenate([forward_network(tables, image, rows_of(data.x_of(part))).numpy() for part in parts])


def _stalled(config: TrainConfig, progress: Progress) -> bool:
    return progress.best_precision >= 0 and progress.epoch - progress.best_epoch >= config.validation.patience


def _from_first_worker(value: float, device: torch.device) -> float:
    if world_size() == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64, device=device)
    dist.broadcast(shared, 0)
    return float(shared)
