"""Metrics of a run for TensorBoard, MLflow or Weights & Biases, where these are installed.

MLflow and Weights & Biases take their server, project and credentials from the environment variables that are
theirs. A run that is resumed goes on in the same run there.
"""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from distindex.errors import InputError, reason_of
from distindex.progress import say
from distindex.storage import Storage

_RUNS = "trackers.json"


class Tracker(Protocol):
    """One place where metrics go."""

    def log(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of an epoch."""

    def close(self) -> None:
        """Write what is not written yet."""


class _TensorBoard:
    def __init__(self, run: Storage, name: str, key: str, settings: Mapping[str, Any]) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(run.full_path("tensorboard") if run.is_local else run.full_uri("tensorboard"))

    def log(self, epoch: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, epoch)

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    def __init__(self, run: Storage, name: str, key: str, settings: Mapping[str, Any]) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]

        self._client = mlflow.MlflowClient()
        experiment = mlflow.set_experiment(mlflow.environment_variables.MLFLOW_EXPERIMENT_NAME.get() or "distindex")
        found = self._client.search_runs([experiment.experiment_id], f"tags.distindex = '{key}'")
        if found:
            self._run = found[0].info.run_id
        else:
            tags = {"distindex": key, "mlflow.runName": name}
            self._run = self._client.create_run(experiment.experiment_id, tags=tags).info.run_id
            for setting, value in settings.items():
                self._client.log_param(self._run, setting, value)

    def log(self, epoch: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._client.log_metric(self._run, name, value, step=epoch)

    def close(self) -> None:
        self._client.set_terminated(self._run)


class _WeightsAndBiases:
    def __init__(self, run: Storage, name: str, key: str, settings: Mapping[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        # The project of WANDB_PROJECT, or else this one.
        project = None if wandb.setup().settings.project else "distindex"
        self._run = wandb.init(project=project, id=key, name=name, config=dict(settings), resume="allow")

    def log(self, epoch: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=epoch)

    def close(self) -> None:
        self._run.finish()


_CLASSES = {"tensorboard": _TensorBoard, "mlflow": _MLflow, "wandb": _WeightsAndBiases}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker whose package is not installed.

    Raises:
        InputError: names the package.
    """
    for name in names:
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise InputError(f"trackers: {name} is not installed: pip install {name}")


class Tracking:
    """All trackers of a run. One that fails is reported once and left out: it never ends a training run.

    Args:
        names: the trackers.
        run: directory of the training run.
        name: what people call the run.
        settings: the run's settings, dotted names and values.
    """

    def __init__(self, names: Sequence[str], run: Storage, name: str, settings: Mapping[str, Any]) -> None:
        self._open: dict[str, Tracker] = {}
        if not names:
            return
        if not run.exists(_RUNS):
            run.write_json(_RUNS, {"key": uuid.uuid4().hex})
        key = run.read_json(_RUNS)["key"]
        for tracker in names:
            try:
                self._open[tracker] = _CLASSES[tracker](run, name, key, settings)
            except Exception as error:
                say(f"{tracker}: cannot be written to ({reason_of(error)}); training goes on without it")

    def log(self, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Write what is a number of an epoch's metrics."""
        numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
        for tracker in list(self._open):
            self._safely(tracker, lambda one: one.log(epoch, numbers))

    def close(self) -> None:
        """Write what is not written yet."""
        for tracker in list(self._open):
            self._safely(tracker, lambda one: one.close())

    def _safely(self, tracker: str, work: Any) -> None:
        try:
            work(self._open[tracker])
        except Exception as error:
            del self._open[tracker]
            say(f"{tracker}: cannot be written to ({reason_of(error)}); training goes on without it")
