"""What every training worker runs: steps over global batches, validation, checkpoints, resume."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from typing import Any

import numpy as np
import ray
import ray.train
import safetensors.torch
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
from distindex.training.data import TrainingSet, global_batches, share_of
from distindex.training.optimizer import Optimizer

_MOST_QUERIES, _MOST_DATABASE = 2_000, 50_000
Tables = list[tuple[Tensor, Tensor]]


@dataclasses.dataclass
class Progress:
    """What a resumed run must know besides weights: saved as JSON in each checkpoint."""

    epoch: int = 0
    best_epoch: int = 0
    best_precision: float = -1.0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def build_model(data: TrainingSet, config: TrainConfig) -> Method:
    """The method's network with its initial weights, equal on every worker."""
    torch.manual_seed(config.optimization.seed)
    classes = len(data.known.names)
    width, image = data.features.width, ImageInput.of(data.features)
    return build_method(config.method, width, config.bits, classes, data.known.multi, data.sparse, image)


def train_worker(arguments: dict[str, Any]) -> None:
    """The training function of `TorchTrainer`: `arguments` holds the config, the data's reference, the threads."""
    config: TrainConfig = arguments["config"]
    torch.set_num_threads(arguments["threads"])
    data: TrainingSet = ray.get(arguments["data"])
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = torch.device("cuda", torch.cuda.current_device()) if arguments["cuda"] else torch.device("cpu")

    model = build_model(data, config).to(device)
    optimizer = Optimizer(model, config.optimization)
    progress, best = Progress(), None
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            progress, best = _load(Storage(directory), model, optimizer, device)

    saved = time.monotonic()
    while progress.epoch < config.optimization.epochs and not _stalled(config, progress):
        metrics = train_epoch(model, optimizer, data, config, progress.epoch, rank, workers, device)
        progress.epoch += 1
        tables = [(table.cpu(), bias.cpu()) for table, bias in model.eval().encoder.export()]
        model.train()
        if rank == 0:
            metrics |= validate(tables, data, config)
        precision = _from_first_worker(metrics.get("precision", -1.0), device)
        if not len(data.validation_rows) or precision > progress.best_precision:
            best, progress.best_epoch, progress.best_precision = tables, progress.epoch, precision
        progress.history.append({"epoch": progress.epoch, **metrics})
        done = progress.epoch == config.optimization.epochs or _stalled(config, progress)
        metrics |= {"epoch": progress.epoch, "best_epoch": progress.best_epoch}
        if rank == 0 and (done or time.monotonic() - saved >= config.optimization.checkpoint_seconds):
            with tempfile.TemporaryDirectory() as directory:
                _save(Storage(directory), model, optimizer, progress, best or tables)
                ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(directory))
            saved = time.monotonic()
        else:
            ray.train.report(metrics)


def train_epoch(
    model: Method,
    optimizer: Optimizer,
    data: TrainingSet,
    config: TrainConfig,
    epoch: int,
    rank: int,
    workers: int,
    device: torch.device,
) -> dict[str, float]:
    """One pass over the corpus; returns each loss term's mean over the epoch and the speed."""
    model.train()
    started, steps, rows, labeled_pairs = time.monotonic(), 0, 0, 0.0
    sums: dict[str, Tensor] = {}
    settings = config.optimization
    labeled_N = data.labeled_N
    for key, row_G in global_batches(
        data.rows, settings.batch_size, settings.seed, epoch, labeled_N, settings.labeled_fraction
    ):
        batch = data.batch(row_G, *share_of(rank, workers, len(row_G)), key).to(device)
        terms = model(batch)
        optimizer.zero_grad()
        terms["total"].backward()
        average_gradients(model.parameters())
        optimizer.step()
        model.after_step()
        for name, value in terms.items():
            sums[name] = sums.get(name, 0) + value.detach()  # type: ignore[operator]
        labeled_pairs += float(labeled_N[row_G].sum()) ** 2
        rows += len(row_G)
        steps += 1
    means = torch.stack(list(sums.values())) / steps
    if world_size() > 1:
        dist.all_reduce(means)
        means /= workers
    seconds = time.monotonic() - started
    return {
        **{name: round(value, 6) for name, value in zip(sums, means.tolist(), strict=True)},
        "labeled_pairs_per_step": round(labeled_pairs / steps, 1),
        "rows_per_second": round(rows / seconds, 1),
        "seconds": round(seconds, 3),
    }


def validate(tables: Tables, data: TrainingSet, config: TrainConfig) -> dict[str, float]:
    """Precision@k of the held-out labeled rows against the labeled training rows, and the bit balance.

    Only labels that training was given can be used, so the database is smaller than the corpus by the share
    of labels, and k is scaled down by the same share.
    """
    labeled = np.flatnonzero(data.labeled_N)
    sample = np.linspace(0, data.rows - 1, min(data.rows, _MOST_QUERIES)).astype(np.int64)
    balance_K = (_logits(tables, data, sample) > 0).mean(0)
    metrics = {"bit_imbalance": round(float(np.abs(balance_K - 0.5).mean() * 2), 4)}
    if not len(data.validation_rows) or not len(labeled):
        return metrics
    random = np.random.default_rng(0)
    queries = random.permutation(data.validation_rows)[:_MOST_QUERIES]
    database = np.sort(random.permutation(labeled)[:_MOST_DATABASE])
    query_QC = codes.pack(_logits(tables, data, queries) > 0)
    database_NC = codes.pack(_logits(tables, data, database) > 0)
    query_labels = data.known.take(queries).one_hot()
    database_labels = data.known.take(database).one_hot()
    k = max(1, round(config.validation.k * len(database) / data.rows))
    found = evaluate_codes(
        query_QC, database_NC, lambda start, stop: query_labels[start:stop] @ database_labels.T > 0, ks=(k,)
    )
    return {**metrics, "precision": round(found.precision[k], 6)}


@torch.no_grad()
def _logits(tables: Tables, data: TrainingSet, rows: np.ndarray, block: int = 4096) -> np.ndarray:
    parts = [rows[start : start + block] for start in range(0, len(rows), block)]
    image = ImageInput.of(data.features)
    return np.concatenate([forward_network(tables, image, rows_of(data.x_NV[part])).numpy() for part in parts])  # type: ignore[index]


def _stalled(config: TrainConfig, progress: Progress) -> bool:
    return progress.best_precision >= 0 and progress.epoch - progress.best_epoch >= config.validation.patience


def _from_first_worker(value: float, device: torch.device) -> float:
    if world_size() == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64, device=device)
    dist.broadcast(shared, 0)
    return float(shared)


def _save(directory: Storage, model: Method, optimizer: Optimizer, progress: Progress, best: Tables) -> None:
    with directory.open_output("state.pt") as stream:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, stream)
    tensors = {f"{depth}.{part}": tensor for depth, pair in enumerate(best) for part, tensor in enumerate(pair)}
    directory.write_bytes("best.safetensors", safetensors.torch.save(tensors))
    directory.write_json("progress.json", dataclasses.asdict(progress))


def _load(directory: Storage, model: Method, optimizer: Optimizer, device: torch.device) -> tuple[Progress, Tables]:
    # weights_only: a checkpoint from elsewhere must not run code.
    with directory.open_input("state.pt") as stream:
        state = torch.load(stream, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return read_checkpoint(directory)


def read_checkpoint(directory: Storage) -> tuple[Progress, Tables]:
    """The progress and the best network so far of a checkpoint directory."""
    progress = Progress(**directory.read_json("progress.json"))
    tensors = safetensors.torch.load(directory.read_bytes("best.safetensors"))
    return progress, [(tensors[f"{depth}.0"], tensors[f"{depth}.1"]) for depth in range(len(tensors) // 2)]
