"""`distindex sweep`: training runs with other settings, of which the bad ones are stopped early.

Trials share the corpus in Ray's object store. They are stopped by asynchronous successive halving (Li et al.,
"A System for Massively Parallel Hyperparameter Tuning", MLSys 2020) as Ray Tune has it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
from typing import Any

import numpy as np
import ray
import torch
import yaml
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from distindex.config import TrainConfig
from distindex.errors import ConflictError, DistindexError, InputError, reason_of
from distindex.progress import Bar, say
from distindex.runtime import cluster_cpus, cluster_gpus, fetch, start_ray
from distindex.settings import as_json, differences, from_values, with_values, without_secrets
from distindex.storage import Storage
from distindex.sweep_config import SweepConfig
from distindex.training.loop import Run, build_model, run_epochs
from distindex.training.prepare import choose, prepare
from distindex.training.source import TrainingData

_CLAIM, _TRIALS, _BEST, _REPORT = "sweep.json", "trials", "best.yaml", "report.json"
_RESOURCES_ONLY = ("output", "at_once")


@dataclasses.dataclass
class Trial:
    """One training run of a sweep.

    Attributes:
        settings: its own settings.
        precision: best validation precision.
        epoch: the epoch that has it.
        epochs: epochs run.
    """

    settings: dict[str, Any]
    precision: float
    epoch: int
    epochs: int


@dataclasses.dataclass
class SweepReport:
    """What a sweep found.

    Attributes:
        uri: the sweep's directory.
        best_config: the config file of the best settings, for `distindex train --config`.
        trials: all trials, the best first.
    """

    uri: str
    best_config: str
    trials: list[Trial]


def draw(config: SweepConfig) -> list[dict[str, Any]]:
    """The settings of each trial: every combination, or so many random draws.

    Equal draws are kept once.
    """
    if not config.trials:
        return [
            dict(zip(config.settings, values, strict=True)) for values in itertools.product(*config.settings.values())
        ]
    random = np.random.default_rng(config.seed)
    drawn = [{name: _draw(values, random) for name, values in config.settings.items()} for _ in range(config.trials)]
    return [one for position, one in enumerate(drawn) if one not in drawn[:position]]


def _draw(values: Any, random: np.random.Generator) -> Any:
    if isinstance(values, list):
        return values[random.integers(len(values))]
    ((kind, (low, high)),) = values.items()
    value = random.uniform(low, high) if kind == "uniform" else np.exp(random.uniform(np.log(low), np.log(high)))
    return float(f"{value:.4g}")


def sweep(config: SweepConfig) -> SweepReport:
    """Run the trials, or go on with those of a sweep that was begun at `config.output`.

    Trials that a kill interrupted start again; finished ones are kept.

    Raises:
        InputError: a setting that does not exist or a value that does not fit, bad corpus or labels, no labeled rows
            to compare the trials by, a corpus that does not fit into memory; or `config.output` holds another sweep.
        DistindexError: a trial failed.
    """
    drawn = draw(config)
    made = [from_values(TrainConfig, with_values(as_json(config.train), one)) for one in drawn]
    output = Storage(config.output, config.train.corpus.storage_options)
    start_ray()
    data_ref = _prepare(config.train)
    cuda = config.train.workers.device != "cpu" and cluster_gpus() > 0
    threads = config.train.workers.cpus or max(
        1, cluster_cpus() // (config.at_once or cluster_gpus() or cluster_cpus())
    )
    _claim(config, output)
    say(f"sweep: {len(drawn)} trials of {threads} thread{'s' * (threads > 1)}{' and a GPU' * cuda} each")
    results = _tune(config, made, data_ref, output, threads, cuda)
    trials = [Trial(drawn[number], *found) for number, found in sorted(results.items())]
    trials.sort(key=lambda trial: -trial.precision)
    best = with_values(as_json(config.train), trials[0].settings)
    # Keys stay where they are; whoever trains has some too.
    best["corpus"].pop("storage_options")
    output.write_bytes(_BEST, yaml.safe_dump(best, sort_keys=False).encode())
    report = SweepReport(config.output, output.full_uri(_BEST), trials)
    output.write_json(_REPORT, as_json(report))
    return report


def _prepare(config: TrainConfig) -> ray.ObjectRef:
    choice = fetch(ray.remote(num_cpus=1)(choose).remote(config))
    if choice.streaming is not None:
        raise InputError(f"{choice.reason}, but a sweep needs it in memory; give train.corpus.uri some of its files")
    data_ref = ray.remote(num_cpus=1)(prepare).remote(config, choice)
    data: TrainingData = fetch(data_ref)
    if not len(data.validation_rows):
        raise InputError("train.labels: trials are compared by labeled rows held out, and there are none")
    say(f"sweep: {data.rows:,} rows, {len(data.validation_rows):,} labeled ones to compare the trials by")
    return data_ref


def _claim(config: SweepConfig, output: Storage) -> None:
    settings = without_secrets(as_json(config))
    identity = {name: value for name, value in settings.items() if name not in _RESOURCES_ONLY}
    try:
        output.create_json(_CLAIM, identity)
    except ConflictError:
        changed = differences(output.read_json(_CLAIM), identity)
        if changed:
            raise InputError(
                f"{output.uri}: the sweep here has other settings ({'; '.join(changed)}); choose another output"
            ) from None
        say(f"sweep: going on with the sweep at {output.uri}")


class _TrialRun(Run):
    """A run that tells Ray Tune how far it is, and leaves no checkpoints."""

    def due(self) -> bool:
        return False

    def report(self, metrics: dict[str, Any], save: bool) -> None:
        tune.report({**metrics, "best_precision": self.progress.best_precision})


def _trial(parameters: dict[str, Any], shared: list[Any], threads: int, cuda: bool) -> None:
    made, data_ref = shared
    torch.set_num_threads(threads)
    data: TrainingData = ray.get(data_ref)
    device = torch.device("cuda" if cuda else "cpu")
    config: TrainConfig = made[parameters["number"]]
    run_epochs(_TrialRun(config, build_model(data, config).to(device), device, 0), data, 1)


class _Show(tune.Callback):
    """A line about the trials."""

    def __init__(self, bar: Bar) -> None:
        self._bar, self._best = bar, 0.0

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        self._best = max(self._best, result["best_precision"])
        number, epoch, precision = result["config"]["number"], result["epoch"], result["precision"]
        note = f"trial {number}: epoch {epoch}, precision {precision:.3f}; best of all {self._best:.3f}"
        self._bar.advance(0, note)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._bar.advance(1, f"best of all {self._best:.3f}")


def _tune(
    config: SweepConfig, made: list[TrainConfig], data_ref: ray.ObjectRef, output: Storage, threads: int, cuda: bool
) -> dict[int, tuple[float, int, int]]:
    """Best precision, its epoch and the epochs run of each trial by its number."""
    # Trials read nothing from storage, and Tune keeps what it is given.
    made = [dataclasses.replace(one, corpus=dataclasses.replace(one.corpus, storage_options={})) for one in made]
    trainable = tune.with_resources(
        tune.with_parameters(_trial, shared=[made, data_ref], threads=threads, cuda=cuda),
        {"cpu": threads, "gpu": int(cuda)},
    )
    path = output.full_path(_TRIALS)
    longest = max(one.optimization.epochs for one in made)
    with Bar("sweep", len(made), "trials") as bar:
        if tune.Tuner.can_restore(path, storage_filesystem=output.arrow):
            tuner = tune.Tuner.restore(
                path, trainable, storage_filesystem=output.arrow, restart_errored=True, resume_unfinished=True
            )
        else:
            tuner = tune.Tuner(
                trainable,
                param_space={"number": tune.grid_search(list(range(len(made))))},
                tune_config=tune.TuneConfig(
                    metric="best_precision",
                    mode="max",
                    scheduler=ASHAScheduler(
                        time_attr="epoch",
                        max_t=longest,
                        grace_period=min(config.grace_epochs, longest),
                        reduction_factor=config.reduction,
                    ),
                    max_concurrent_trials=config.at_once or None,
                ),
                run_config=tune.RunConfig(
                    name=_TRIALS,
                    storage_path=output.full_path(),
                    storage_filesystem=output.arrow,
                    verbose=0,
                    callbacks=[_Show(bar)],
                ),
            )
        # Tune prints a box of its own even where it is told to print nothing.
        with contextlib.redirect_stdout(io.StringIO()):
            grid = tuner.fit()
    if grid.errors:
        raise DistindexError(f"a trial failed: {reason_of(grid.errors[0])}; the same command goes on")
    found = {}
    for result in grid:
        metrics: dict[str, Any] = result.metrics or {}
        number = metrics["config"]["number"]
        found[number] = (metrics["best_precision"], metrics["best_epoch"], metrics["epoch"])
    return found
