"""Train, encode, build and evaluate as one job that can be started again after it was killed.

`ray job submit --working-dir . -- python jobs/pipeline.py --config FILE`. Started again with the same settings it
goes on where it was: training from its last checkpoint, encoding with the files that are missing; building and
evaluation find the same content again.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Any, Literal

from distindex import cli
from distindex.config import (
    BuildConfig,
    CorpusConfig,
    EncodeConfig,
    EvaluateConfig,
    FeaturesConfig,
    LabelsConfig,
    MethodConfig,
    OptimizationConfig,
    TrainConfig,
    ValidationConfig,
    WorkersConfig,
)
from distindex.errors import InputError
from distindex.job import run_job
from distindex.progress import say


@dataclasses.dataclass
class PipelineConfig:
    """Train, encode, build and evaluate.

    Attributes:
        corpus: what is learned from, encoded and indexed.
        output: directory; hasher/, codes/, index/ and evaluation/ are made in it.
        queries: held-out rows, columns as in the corpus, labels known; without them nothing is evaluated.
        bits: length of the codes, a multiple of 8.
        features: how rows become the encoder's input.
        labels: which labels training may use.
        method: the hashing method.
        optimization: steps and batches.
        validation: model selection.
        workers: processes and devices of training.
        encoders: processes and devices of encoding.
        max_failures: how often lost training workers are replaced before the job fails.
        memory_gib: memory of a node that the corpus may take in training, in GiB; 0 takes Ray's object store.
        minimum_workers: go on training with as few workers as this while lost ones cannot be replaced.
        trackers: where the metrics of each training epoch go besides the report.
        initial: output of an earlier training whose last weights are the initial ones.
        shards: number of shards of the index.
        k: cut-offs of precision, recall and mAP.
        radius: radius in bits of precision at radius.
        baselines: also measure PCA-sign, ITQ and LSH codes of the same length, and float cosine.
    """

    corpus: CorpusConfig
    output: str
    queries: str | None = None
    bits: int = 64
    features: FeaturesConfig = dataclasses.field(default_factory=FeaturesConfig)
    labels: LabelsConfig = dataclasses.field(default_factory=LabelsConfig)
    method: MethodConfig = dataclasses.field(default_factory=MethodConfig)
    optimization: OptimizationConfig = dataclasses.field(default_factory=OptimizationConfig)
    validation: ValidationConfig = dataclasses.field(default_factory=ValidationConfig)
    workers: WorkersConfig = dataclasses.field(default_factory=WorkersConfig)
    encoders: WorkersConfig = dataclasses.field(default_factory=WorkersConfig)
    max_failures: int = 3
    memory_gib: float = 0.0
    minimum_workers: int = 0
    trackers: list[Literal["tensorboard", "mlflow", "wandb"]] = dataclasses.field(default_factory=list)
    initial: str | None = None
    shards: int = 1
    k: list[int] = dataclasses.field(default_factory=lambda: [10, 100, 1000])
    radius: int = 2
    baselines: bool = False

    def __post_init__(self) -> None:
        if self.queries and not self.corpus.label_column:
            raise InputError("queries: evaluation needs labels; name their column with corpus.label_column")
        # Settings of a late stage are refused before the first one spends hours.
        self.stages()

    def stages(self) -> list[tuple[str, Any]]:
        """The verbs and their configs, in order."""
        output = self.output.rstrip("/")
        hasher, codes, index = f"{output}/hasher", f"{output}/codes", f"{output}/index"
        options = self.corpus.storage_options
        training = {field.name for field in dataclasses.fields(TrainConfig)} - {"output"}
        found: list[tuple[str, Any]] = [
            ("train", TrainConfig(output=hasher, **{name: getattr(self, name) for name in training})),
            ("encode", EncodeConfig(self.corpus, hasher, codes, workers=self.encoders)),
            (
                "build",
                BuildConfig(codes, index, hasher, self.shards, storage_options=options),
            ),
        ]
        if self.queries:
            queries = dataclasses.replace(self.corpus, uri=self.queries)
            found.append(
                (
                    "evaluate",
                    EvaluateConfig(
                        hasher, self.corpus, queries, f"{output}/evaluation", self.k, self.radius, self.baselines
                    ),
                )
            )
        return found


@dataclasses.dataclass
class PipelineReport:
    """What the stages gave.

    Attributes:
        uri: the output directory.
        stages: each stage's own report and its seconds in this run.
    """

    uri: str
    stages: dict[str, Any]


def pipeline(config: PipelineConfig) -> PipelineReport:
    """Run the stages in order.

    Raises:
        InputError: a corpus or a setting is wrong, or the output directory holds results of other settings.
        DistindexError: a stage failed; the same command goes on from there.
    """
    stages = config.stages()
    report = PipelineReport(config.output, {})
    for number, (name, settings) in enumerate(stages, 1):
        say(f"pipeline: stage {number} of {len(stages)}: {name}")
        began = time.monotonic()
        result = cli.VERBS[name].call(settings)
        say(cli.VERBS[name].show(result))
        report.stages[name] = {"seconds": round(time.monotonic() - began, 2), "result": cli.to_json(result)}
    return report


def show(report: PipelineReport) -> str:
    """One line per stage."""
    return "\n".join(f"{name}: {stage['seconds']:.1f} s" for name, stage in report.stages.items())


if __name__ == "__main__":
    sys.exit(run_job("pipeline", PipelineConfig, pipeline, show))
