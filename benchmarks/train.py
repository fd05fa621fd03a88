"""Seconds of CPU time per training epoch on short texts, against a plain PyTorch loop of the same network.

The plain loop is what one writes first: dense rows of 10,000 columns, torch's layers, log-softmax and Adam, the
same sizes, losses and batches. All take turns in one process with one thread, each for two epochs, of which the
second counts: in a training run the caches hold what the epoch before has left. The median counts.

    python -m benchmarks.train [--quick] [--data DIRECTORY]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reporting import Benchmark
from distindex.config import (
    CorpusConfig,
    LabelsConfig,
    MethodConfig,
    OptimizationConfig,
    TextConfig,
    TrainConfig,
    ValidationConfig,
)
from distindex.training.data import TrainingSet, read_training_set
from distindex.training.loop import build_model, train_epoch
from distindex.training.optimizer import Optimizer

BITS, HIDDEN, DROPOUT = 32, 500, 0.3
# CPU seconds of the reference code's epoch on the same texts, one thread (amacaluso/SSB-VAE at f20dbe2, measured).
REFERENCE_SECONDS = (2.8, 3.4)


class PlainSSBVAE(nn.Module):
    """SSB-VAE in torch's own layers, on dense rows."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Linear(width, HIDDEN), nn.ReLU(), nn.BatchNorm1d(HIDDEN), nn.Dropout(DROPOUT)),
            *(nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.BatchNorm1d(HIDDEN), nn.Dropout(DROPOUT)),
        )
        self.code, self.decoder = nn.Linear(HIDDEN, BITS), nn.Linear(BITS, width)
        self.classifier = nn.Linear(HIDDEN, classes)

    def forward(self, x_BV: Tensor, target_BV: Tensor, label_BC: Tensor) -> Tensor:
        hidden_BU = self.encoder(F.dropout(x_BV, DROPOUT))
        logit_BK, class_logit_BC = self.code(hidden_BU), self.classifier(hidden_BU)
        u_BK = torch.rand_like(logit_BK)
        code_BK = torch.sigmoid((logit_BK + torch.log(u_BK + 1e-7) - torch.log(1 - u_BK + 1e-7)) / 0.67)
        reconstruction = -(target_BV * F.log_softmax(self.decoder(code_BK), 1)).sum(1).mean()
        q_BK = torch.sigmoid(logit_BK)
        kl = (q_BK * torch.log(q_BK + 1e-7) + (1 - q_BK) * torch.log(1 - q_BK + 1e-7)).sum(1).mean()
        label = -(label_BC * F.log_softmax(class_logit_BC, 1)).sum(1).mean()
        p_BC = F.softmax(class_logit_BC, 1)
        similar_BB, distance_BB = p_BC @ p_BC.T, torch.cdist(code_BK, code_BK).square()
        pair = (similar_BB * distance_BB + (1 - similar_BB) * F.relu(BITS / 3 - distance_BB)).mean() / BITS
        return reconstruction + kl / 64 + 3 * label + 3 * pair


def plain_epoch(data: TrainingSet, batch_size: int, fused: bool) -> Callable[[], None]:
    """An epoch of the plain loop."""
    matrices: list[Any] = [data.x_NV, data.target_NV]
    x_NV, target_NV = (torch.from_numpy(matrix.toarray()) for matrix in matrices)
    label_NC = torch.from_numpy(data.label_NC.toarray())
    model = PlainSSBVAE(x_NV.shape[1], label_NC.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-7, fused=fused)

    def epoch() -> None:
        for row_B in torch.randperm(len(x_NV)).split(batch_size):
            optimizer.zero_grad()
            model(x_NV[row_B], target_NV[row_B], label_NC[row_B]).backward()
            optimizer.step()

    return epoch


def our_epoch(data: TrainingSet, config: TrainConfig) -> Callable[[], None]:
    """An epoch as a training worker runs it."""
    model = build_model(data, config)
    optimizer, number = Optimizer(model, config.optimization), iter(range(1_000_000))

    def epoch() -> None:
        train_epoch(model, optimizer, data, config, next(number), 0, 1, torch.device("cpu"))

    return epoch


def main() -> int:
    benchmark = Benchmark("train", "CPU seconds of a training epoch")
    shared = Path(__file__).resolve().parents[2] / "shared" / "data" / "web_snippets"
    benchmark.parser.add_argument("--data", type=Path, default=shared, help="directory of train.parquet")
    options = benchmark.parse()
    path: Path = options.data / "train.parquet"
    if not path.exists():
        print(f"skipped: {path} is not there; name its directory with --data")
        return 0
    torch.set_num_threads(1)

    def config(name: str, batch_size: int, vocabulary: str, weighting: str, grams: int = 0) -> TrainConfig:
        corpus = CorpusConfig(str(path), "text", label_column="label")
        made = TrainConfig(
            corpus,
            "",
            bits=BITS,
            labels=LabelsConfig(fraction=0.1),
            method=MethodConfig(name=name, vocabulary=vocabulary),  # type: ignore[arg-type]
            optimization=OptimizationConfig(batch_size=batch_size),
            validation=ValidationConfig(fraction=0),
        )
        made.features.text = TextConfig(weighting=weighting, character_ngrams=grams)  # type: ignore[arg-type]
        return made

    settings: dict[str, tuple[TrainConfig, int]] = {
        "ssb-vae, all words, batch 100": (config("ssb-vae", 100, "all", "log"), 100),
        "ssb-vae, words of the batch, batch 100": (config("ssb-vae", 100, "batch", "log"), 100),
        "ssb-vae, words of the batch, batch 200": (config("ssb-vae", 200, "batch", "log"), 200),
        "csb-vae (default), batch 200": (config("csb-vae", 200, "batch", "tf-idf"), 200),
        "csb-vae with 4-grams, batch 200": (config("csb-vae", 200, "batch", "tf-idf", grams=4), 200),
    }
    data = {name: read_training_set(made) for name, (made, _) in settings.items()}
    first = next(iter(data.values()))
    epochs: dict[str, Callable[[], None]] = {
        "plain PyTorch, batch 100": plain_epoch(first, 100, fused=False),
        "plain PyTorch, fused Adam, batch 100": plain_epoch(first, 100, fused=True),
        "plain PyTorch, batch 200": plain_epoch(first, 200, fused=False),
        "plain PyTorch, fused Adam, batch 200": plain_epoch(first, 200, fused=True),
        **{name: our_epoch(data[name], made) for name, (made, _) in settings.items()},
    }
    taken: dict[str, list[float]] = {name: [] for name in epochs}
    for _ in range(1 if options.quick else 5):
        for name, epoch in epochs.items():
            epoch()
            started = time.process_time()
            epoch()
            taken[name].append(time.process_time() - started)
    median = {name: statistics.median(values) for name, values in taken.items()}
    rows: list[dict[str, Any]] = []
    for name, value in median.items():
        batch_size = name.rsplit(" ", 1)[1]
        plain, fused = (median[f"plain PyTorch{kind}, batch {batch_size}"] for kind in ("", ", fused Adam"))
        rows.append(
            {
                "loop": name,
                "CPU s per epoch": value,
                "rows per CPU s": first.rows / value,
                "speed-up": plain / value,
                "speed-up, fused Adam": fused / value,
            }
        )
    notes = [
        f"{first.rows:,} texts, {first.features.width:,} words, {BITS} bits, one thread; speed-ups are over the "
        "plain loop with the same batch size, with torch's default Adam and with its fused one",
        f"the reference code needs {REFERENCE_SECONDS[0]} to {REFERENCE_SECONDS[1]} CPU seconds (its own measured "
        "runs on a machine of the same kind, not of this run)",
    ]
    benchmark.report(
        rows,
        {name: round(median[name], 4) for name in settings},
        {name: round(value, 4) for name, value in median.items() if name not in settings},
        notes=notes,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
