"""The config of `distindex sweep`; see `config`."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from distindex.config import TrainConfig, check
from distindex.method_config import CLOSED_FORM

_SWEPT = ("bits", "method.", "optimization.")
_RANGES = ("uniform", "loguniform")


@dataclasses.dataclass
class SweepConfig:
    """Search for the settings of training with the best validation precision.

    Attributes:
        train: the training run whose settings are varied; its output is where the best ones are trained later.
        output: directory of the sweep; a run with the same output resumes.
        settings: names below `train` (bits, method.*, optimization.*), each with the list of its values, or with
            {uniform: [low, high]} or {loguniform: [low, high]}.
        trials: random draws from the settings; 0 takes every combination of the lists.
        seed: seed of the draws.
        grace_epochs: epochs that each trial gets before it may be stopped.
        reduction: of the trials that get so far, one in so many goes on; looked at after `grace_epochs` times 1,
            `reduction`, its square and so on.
        at_once: trials at the same time; 0 fills the cluster's CPUs, or its GPUs.
    """

    train: TrainConfig
    output: str
    settings: dict[str, Any]
    trials: int = 0
    seed: int = 0
    grace_epochs: int = 4
    reduction: int = 3
    at_once: int = 0

    def __post_init__(self) -> None:
        check(bool(self.settings), "settings: name at least one, such as method.pair_weight: [0.1, 1, 10]")
        for name, values in self.settings.items():
            check(name.startswith(_SWEPT), f"settings.{name}: only bits, method.* and optimization.* can be varied")
            if isinstance(values, list):
                check(len(values) > 0, f"settings.{name}: the list is empty")
                continue
            _check_range(name, values)
            check(self.trials > 0, f"settings.{name}: a range needs trials, the number of draws")
        name = self.train.method.name
        check(name not in CLOSED_FORM, f"train.method.name: {name} has no epochs; there is nothing to search for")
        check(self.train.validation.fraction > 0, "train.validation.fraction: 0 leaves no rows to compare trials by")
        check(self.trials >= 0, f"trials: {self.trials} must not be negative")
        check(self.train.initial is None, "train.initial: trials differ in what the weights depend on; leave it out")
        check(self.grace_epochs > 0, f"grace_epochs: {self.grace_epochs} must be positive")
        check(self.reduction > 1, f"reduction: {self.reduction} must be at least 2")
        check(self.at_once >= 0, f"at_once: {self.at_once} must not be negative")


def _check_range(name: str, values: Any) -> None:
    expected = f"settings.{name}: give a list of values, {{uniform: [low, high]}} or {{loguniform: [low, high]}}"
    check(isinstance(values, dict) and len(values) == 1 and next(iter(values)) in _RANGES, expected)
    ((kind, ends),) = values.items()
    check(isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, int | float) for end in ends), expected)
    low, high = ends
    fits = math.isfinite(low) and math.isfinite(high) and low < high and (kind == "uniform" or low > 0)
    check(fits, f"settings.{name}: {low} to {high} is no range for {kind}")
