"""The plan: which cells there are, the training config of each, and how a part of them is chosen."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from benchmarks.quality.datasets import DATASETS, Queries
from distindex.config import (
    CorpusConfig,
    FeaturesConfig,
    LabelsConfig,
    OptimizationConfig,
    TrainConfig,
    ValidationConfig,
)
from distindex.errors import InputError
from distindex.hashing.ssbvae import reference_weights
from distindex.method_config import MethodConfig
from distindex.settings import fingerprint

ConfigT = TypeVar("ConfigT")
COSINE = "float cosine"
_SECTIONS = ("method", "optimization", "features")
_SPEC_KEYS = {*_SECTIONS, "kinds", "labels", "bits", "seeds", "datasets", "reference_weights"}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the protocol.

    Attributes:
        dataset: name of the data set.
        method: name of the method in the plan.
        bits: code length; None for float cosine.
        labels: share of the rows whose label may be read; None for a method that reads none.
        seed: of the label mask and of training.
    """

    dataset: str
    method: str
    bits: int | None
    labels: float | None
    seed: int

    def __str__(self) -> str:
        values = {name: "none" if value is None else value for name, value in vars(self).items()}
        return ",".join(f"{name}={value}" for name, value in values.items())


@dataclasses.dataclass(frozen=True)
class Expected:
    """A score of precision@100 that a mean over the seeds should have, within a tolerance."""

    precision: float
    tolerance: float

    def met(self, precision: float) -> str:
        """How a measured mean compares: met, above or below."""
        if abs(precision - self.precision) <= self.tolerance:
            return "met"
        return "above" if precision > self.precision else "below"


class Plan:
    """What benchmarks/configs/quality.yaml says, or another file like it.

    Attributes:
        name: of the plan, and of the directory of its results.
        queries: where they come from.

    Raises:
        InputError: the file names what does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        read = yaml.safe_load(path.read_text())
        protocol = read["protocol"]
        self.bits: list[int] = protocol["bits"]
        self.labels: list[float] = protocol["labels"]
        self.seeds: list[int] = protocol["seeds"]
        self.cutoffs: list[int] = protocol["cutoffs"]
        self.queries: Queries = protocol.get("queries", "test")
        self.name: str = protocol.get("name", "quality")
        self.datasets: dict[str, Mapping[str, Any]] = read["datasets"]
        self.optimization: Mapping[str, Any] = read["optimization"]
        self.methods: dict[str, Mapping[str, Any]] = read["methods"]
        self.expected = self._scores(read.get("expected", {}), Expected)
        self.reference_code = self._scores(read.get("reference_code", {}), float)
        if self.queries not in typing.get_args(Queries):
            known = ", ".join(typing.get_args(Queries))
            raise InputError(f"{path}: protocol.queries: {self.queries!r} is not one of {known}")
        for name in self.datasets:
            if name not in DATASETS:
                raise InputError(f"{path}: no data set {name}; there are {', '.join(DATASETS)}")
        for name, spec in self.methods.items():
            unknown = set(spec or {}) - _SPEC_KEYS
            if unknown:
                raise InputError(f"{path}: method {name} has {', '.join(sorted(unknown))}, which means nothing here")

    def cells(self) -> list[Cell]:
        """All runs, those of one data set together, and the first seed of everything before the second."""
        return [
            Cell(dataset, method, bits, labels, seed)
            for dataset in self.datasets
            for seed in self.seeds
            for bits in (*self.bits, None)
            for labels in (*self.labels, None)
            for method in self.methods
            if self._wants(dataset, method, bits, labels, seed)
        ]

    def _wants(self, dataset: str, method: str, bits: int | None, labels: float | None, seed: int) -> bool:
        spec = self.methods[method] or {}
        if method == COSINE:
            return bits is None and labels is None and seed == self.seeds[0]
        weights = spec.get("reference_weights")
        return (
            bits in spec.get("bits", self.bits)
            and (labels is None) == (spec.get("labels") == "none")
            and seed in spec.get("seeds", self.seeds)
            and dataset in spec.get("datasets", weights or self.datasets)
        )

    def config(self, cell: Cell, directory: Path) -> TrainConfig:
        """The training config of a cell over the data set prepared in `directory`.

        Raises:
            InputError: a setting is unknown or has a wrong value.
        """
        if cell.bits is None:
            raise InputError(f"{cell}: {cell.method} is not trained")
        dataset, declared = DATASETS[cell.dataset], self._declared(cell)
        label_column = None if cell.labels is None else dataset.label_column
        try:
            return TrainConfig(
                CorpusConfig(str(directory / "train.parquet"), dataset.feature_column, label_column=label_column),
                output=str(directory),
                bits=cell.bits,
                features=_made(FeaturesConfig, declared["features"]),
                labels=LabelsConfig(1.0 if cell.labels is None else cell.labels, cell.seed),
                method=MethodConfig(**declared["method"]),
                optimization=OptimizationConfig(**declared["optimization"], seed=cell.seed),
                validation=ValidationConfig(fraction=0),
            )
        except TypeError as error:
            raise InputError(f"{self.path}: {cell.method}: {error}") from error

    def features(self, cell: Cell, directory: Path) -> TrainConfig:
        """The config by which the features of a cell are fitted; equal for all cells that share them."""
        dataset = DATASETS[cell.dataset]
        return TrainConfig(
            CorpusConfig(str(directory / "train.parquet"), dataset.feature_column, label_column=dataset.label_column),
            output=str(directory),
            features=_made(FeaturesConfig, self._declared(cell)["features"]),
            validation=ValidationConfig(fraction=0),
        )

    def fingerprint(self, cell: Cell) -> str:
        """16 hex digits of all that the plan says about a cell, the method's own weights written out.

        Defaults of other settings are not in it, so that a new setting does not make all results old; the
        commit is kept beside each result.
        """
        declared = self._declared(cell)
        if cell.method != COSINE:
            weights = dataclasses.asdict(MethodConfig(**declared["method"]).weights())
            declared["method"] = {**{k: v for k, v in weights.items() if v}, **declared["method"]}
        identity = DATASETS[cell.dataset].identity(self.queries)
        return fingerprint(dataclasses.asdict(cell), declared, identity, self.cutoffs)

    def _declared(self, cell: Cell) -> dict[str, dict[str, Any]]:
        """Settings by section, what is more specific over what is more general."""
        spec, dataset = self.methods[cell.method] or {}, DATASETS[cell.dataset]
        own = self.datasets[cell.dataset] or {}
        layers = [{"optimization": self.optimization}, own, spec, spec.get("kinds", {}).get(dataset.kind, {})]
        declared: dict[str, dict[str, Any]] = {}
        for section in _SECTIONS:
            declared[section] = {k: v for layer in layers for k, v in layer.get(section, {}).items()}
        declared["features"]["kind"] = dataset.kind
        if "reference_weights" in spec:
            weights = spec["reference_weights"][cell.dataset]
            declared["method"] |= self._reference(weights, cell, declared["optimization"]["batch_size"])
        return declared

    def _reference(self, weights: Mapping[str, Any], cell: Cell, batch_size: int) -> dict[str, float]:
        level = round(cell.labels * 10) - 1 if cell.labels else 0
        alpha = weights["alpha"][level]
        if "gamma" not in weights:
            return {"kl_weight": weights["kl_weight"], "class_weight": alpha}
        class_weight, pair_weight = reference_weights(alpha, weights["gamma"][level], batch_size)
        return {"kl_weight": weights["kl_weight"], "class_weight": class_weight, "pair_weight": pair_weight}

    def _scores(self, read: Mapping[str, Any], kind: Any) -> dict[tuple[str, str, int | None, float | None], Any]:
        """Scores by data set, method, bits and share of labels."""
        return {
            (dataset, method, bits, labels): kind(*values)
            for dataset, methods in read.items()
            for method, rows in methods.items()
            for bits, labels, *values in rows
        }


def chosen(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells that one of the selections takes; all without any.

    Args:
        cells: the plan's cells.
        only: selections such as `dataset=web_snippets,bits=16,bits=32`: a name given twice takes either value.

    Raises:
        InputError: a selection that is none, or takes nothing.
    """
    if not only:
        return list(cells)
    taken: set[Cell] = set()
    for selection in only:
        wanted: dict[str, set[str]] = {}
        for part in selection.split(","):
            name, equals, value = part.strip().partition("=")
            if not equals or name not in Cell.__dataclass_fields__:
                names = ", ".join(Cell.__dataclass_fields__)
                raise InputError(f"--only {selection}: {part!r} is no NAME=VALUE with a name of {names}")
            wanted.setdefault(name, set()).add(_written(value.strip()))
        found = {c for c in cells if all(_written(getattr(c, name)) in wanted[name] for name in wanted)}
        if not found:
            raise InputError(f"--only {selection}: no run of the plan is like this; --list shows what there is")
        taken |= found
    return [cell for cell in cells if cell in taken]


def _written(value: object) -> str:
    """Numbers in one way of writing them, so that 1, 1.0 and "1.0" are equal."""
    if value is None:
        return "none"
    try:
        return repr(float(value))  # type: ignore[arg-type]
    except ValueError:
        return str(value)


def _made(config_class: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    hints = typing.get_type_hints(config_class)
    made = {
        name: _made(hints[name], value)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(hints.get(name))
        else value
        for name, value in values.items()
    }
    return config_class(**made)
