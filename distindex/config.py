"""One typed config per job. YAML in, command-line overrides by dotted name, checked before any work.

Every field has its unit in the docstring; the command line's help is made from these docstrings, so a
field is documented in one place. Checks that need no data live in `__post_init__`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from distindex.errors import InputError
from distindex.method_config import CLOSED_FORM, MethodConfig

MAX_BITS = 1024


def check_bits(bits: int) -> None:
    """Refuse code lengths that do not fill whole bytes."""
    if bits % 8 or not 8 <= bits <= MAX_BITS:
        raise InputError(f"bits: {bits} is not a multiple of 8 between 8 and {MAX_BITS}; try 64")


def check(condition: bool, message: str) -> None:
    """Refuse a setting unless the condition holds."""
    if not condition:
        raise InputError(message)


@dataclasses.dataclass
class CorpusConfig:
    """Where the items are and which columns matter.

    Attributes:
        uri: a file, a directory, a glob or a table of one format; any fsspec URI.
        feature_column: the column that the hasher reads: lists of numbers, texts, or images.
        id_column: int64 or string ids, unique and never null.
        label_column: a label, a list of labels, or null for an unlabeled row; leave out if there are none.
        payload_columns: columns carried along to the code set and the index.
        storage_options: passed to the fsspec file system (endpoint and the like).
        on_bad_rows: what to do with a NaN, a wrong width or a null: stop with its file and row, or put it aside.
        format: what the files are; auto tells by their names.
    """

    uri: str
    feature_column: str
    id_column: str = "id"
    label_column: str | None = None
    payload_columns: list[str] = dataclasses.field(default_factory=list)
    storage_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    on_bad_rows: Literal["fail", "reject"] = "fail"
    format: Literal["auto", "parquet", "jsonl", "csv", "image-folder", "webdataset", "delta", "iceberg", "lance"] = (
        "auto"
    )


@dataclasses.dataclass
class TextConfig:
    """How texts become term frequencies.

    Attributes:
        vocabulary_size: the most frequent terms that are kept.
        ngrams: the longest run of words that counts as one term.
        stop_words: drop the common words of English, or none.
        minimum_length: shorter words are dropped.
        minimum_documents: a term in fewer documents is dropped.
        maximum_document_fraction: a term in a larger share of the documents is dropped.
        character_ngrams: runs of so many characters of each word, its ends counted, that are features beside the
            terms, so that words that training has not seen say something too; 0 for none.
        character_vocabulary_size: the most frequent of these that are kept.
        weighting: rare terms count more (tf-idf, in texts of any length alike), or log(1 + frequency).
    """

    vocabulary_size: int = 10_000
    ngrams: int = 1
    stop_words: Literal["english", "none"] = "english"
    minimum_length: int = 3
    minimum_documents: int = 1
    maximum_document_fraction: float = 0.8
    weighting: Literal["tf-idf", "log"] = "tf-idf"
    character_ngrams: int = 0
    character_vocabulary_size: int = 10_000

    def __post_init__(self) -> None:
        check(self.vocabulary_size > 0, f"text.vocabulary_size: {self.vocabulary_size} must be positive")
        check(1 <= self.ngrams <= 5, f"text.ngrams: {self.ngrams} must lie between 1 and 5")
        check(
            self.character_ngrams == 0 or 2 <= self.character_ngrams <= 8,
            f"text.character_ngrams: {self.character_ngrams} must be 0 or lie between 2 and 8",
        )
        check(
            self.character_vocabulary_size > 0,
            f"text.character_vocabulary_size: {self.character_vocabulary_size} must be positive",
        )
        check(
            0 < self.maximum_document_fraction <= 1,
            f"text.maximum_document_fraction: {self.maximum_document_fraction} must lie in (0, 1]",
        )


@dataclasses.dataclass
class DenseConfig:
    """How vectors become the encoder's input.

    Attributes:
        scale: standardize (mean 0, deviation 1 in each dimension), unit (length 1), or as they are.
    """

    scale: Literal["standardize", "unit", "none"] = "standardize"


@dataclasses.dataclass
class ImageConfig:
    """How images become the encoder's input.

    Attributes:
        height: rows of pixels that the encoder reads; images of another size are resized.
        width: pixels in a row that the encoder reads.
        channels: 1 for grey, 3 for red, green and blue.
        raw_shape: height, width and channels of images that are stored as raw uint8 values, row by row, the
            channels of a pixel side by side. Default: the shape that the encoder reads.
    """

    height: int = 32
    width: int = 32
    channels: Literal[1, 3] = 3
    raw_shape: list[int] | None = None

    def __post_init__(self) -> None:
        check(self.height > 0, f"image.height: {self.height} must be positive")
        check(self.width > 0, f"image.width: {self.width} must be positive")
        shape = self.raw_shape
        check(
            shape is None or (len(shape) == 3 and min(shape) > 0 and shape[2] in (1, 3)),
            f"image.raw_shape: {shape} must be a height, a width, and 1 or 3 channels",
        )


@dataclasses.dataclass
class FeaturesConfig:
    """The recipe that turns a row into the encoder's input.

    Attributes:
        kind: dense vectors, texts or images; auto decides by the column's type (lists of numbers are vectors).
        text: settings for texts.
        dense: settings for vectors.
        image: settings for images.
    """

    kind: Literal["auto", "dense", "text", "image"] = "auto"
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    dense: DenseConfig = dataclasses.field(default_factory=DenseConfig)
    image: ImageConfig = dataclasses.field(default_factory=ImageConfig)


@dataclasses.dataclass
class LabelsConfig:
    """Which labels training may read; all others are hidden from it.

    Attributes:
        fraction: share of the rows whose label is used, drawn at random; a smaller fraction with the same
            seed is a subset of a larger one.
        seed: seed of that draw.
        ids: a file with one id a line; only these rows are labeled (instead of fraction).
        store: directory of a label store; its labels count in place of the corpus' own, and are all used.
    """

    fraction: float = 1.0
    seed: int = 20
    ids: str | None = None
    store: str | None = None

    def __post_init__(self) -> None:
        check(0 <= self.fraction <= 1, f"labels.fraction: {self.fraction} must lie in [0, 1]")


@dataclasses.dataclass
class OptimizationConfig:
    """Adam over mini-batches.

    Attributes:
        epochs: passes over the corpus.
        batch_size: rows of one step, over all workers together.
        labeled_fraction: share of each batch that is drawn from the labeled rows, as often as it takes; an epoch
            is then one pass over the unlabeled rows. 0 takes the rows as they come; 1 leaves the others out.
        pair_fraction: share of each batch that is drawn from the rows of answered pairs of labels.store, where some
            are left to learn from.
        learning_rate: Adam's step size.
        checkpoint_seconds: a checkpoint is written after the first epoch that ends this long after the last one.
        seed: seed of the initial weights, the batch order and the noise.
    """

    epochs: int = 30
    batch_size: int = 200
    labeled_fraction: float = 0.0
    pair_fraction: float = 0.2
    learning_rate: float = 2e-3
    checkpoint_seconds: float = 30.0
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.epochs > 0, f"optimization.epochs: {self.epochs} must be positive")
        check(self.batch_size > 1, f"optimization.batch_size: {self.batch_size} must be at least 2")
        check(
            0 <= self.labeled_fraction <= 1,
            f"optimization.labeled_fraction: {self.labeled_fraction} must lie in [0, 1]",
        )
        check(
            0 < self.pair_fraction < 1,
            f"optimization.pair_fraction: {self.pair_fraction} must lie between 0 and 1",
        )


@dataclasses.dataclass
class ValidationConfig:
    """Model selection by precision@k of labeled rows that training did not see the labels of.

    Attributes:
        fraction: share of the labeled rows held out; 0 trains on all labels and keeps the last epoch.
        k: neighbours that precision counts, at the size of the whole corpus. Only labeled rows can be
            judged, so the cut is scaled down by their share.
        patience: stop after this many epochs without a better precision.
    """

    fraction: float = 0.1
    k: int = 100
    patience: int = 10

    def __post_init__(self) -> None:
        check(0 <= self.fraction < 1, f"validation.fraction: {self.fraction} must lie in [0, 1)")


@dataclasses.dataclass
class WorkersConfig:
    """What a job runs on.

    Attributes:
        count: worker processes; 0 takes what the job and the machine suggest.
        cpus: CPUs and threads of each worker; 0 divides those that are free among them.
        device: auto takes CUDA where it is visible.
    """

    count: int = 0
    cpus: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        check(self.count >= 0, f"workers.count: {self.count} must not be negative")
        check(self.cpus >= 0, f"workers.cpus: {self.cpus} must not be negative")


@dataclasses.dataclass
class TrainConfig:
    """Train a hasher.

    Attributes:
        corpus: the training corpus.
        output: directory of the hasher; a run with the same output resumes.
        bits: length of the codes, a multiple of 8.
        features: how rows become the encoder's input.
        labels: which labels may be used.
        method: the hashing method.
        optimization: steps and batches.
        validation: model selection.
        workers: processes and devices.
        max_failures: how often lost workers are replaced before the job fails.
        memory_gib: memory of a node that the corpus may take, in GiB; a larger one is streamed from its files in
            every epoch. 0 takes Ray's object store on the smallest node, by default 30% of the memory.
        minimum_workers: go on with as few workers as this while lost ones cannot be replaced; 0 waits for all.
        trackers: where the metrics of each epoch go besides the report: files for TensorBoard under
            training/tensorboard in the output, and MLflow or Weights & Biases, as their environment variables say.
        initial: output of an earlier training on the same corpus with the same features, method and bits: its last
            weights are the initial ones, but for classifiers of another number of labels.
    """

    corpus: CorpusConfig
    output: str
    bits: int = 64
    features: FeaturesConfig = dataclasses.field(default_factory=FeaturesConfig)
    labels: LabelsConfig = dataclasses.field(default_factory=LabelsConfig)
    method: MethodConfig = dataclasses.field(default_factory=MethodConfig)
    optimization: OptimizationConfig = dataclasses.field(default_factory=OptimizationConfig)
    validation: ValidationConfig = dataclasses.field(default_factory=ValidationConfig)
    workers: WorkersConfig = dataclasses.field(default_factory=WorkersConfig)
    max_failures: int = 3
    memory_gib: float = 0.0
    minimum_workers: int = 0
    trackers: list[Literal["tensorboard", "mlflow", "wandb"]] = dataclasses.field(default_factory=list)
    initial: str | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits)
        check(self.memory_gib >= 0, f"memory_gib: {self.memory_gib} must not be negative")
        check(self.minimum_workers >= 0, f"minimum_workers: {self.minimum_workers} must not be negative")
        check(
            self.initial is None or self.method.name not in CLOSED_FORM,
            f"initial: {self.method.name} is fitted at once and has no initial weights; leave it out",
        )


@dataclasses.dataclass
class EncodeConfig:
    """Encode a corpus into a code set.

    Attributes:
        corpus: the corpus.
        hasher: directory of the trained hasher.
        output: directory of the code set.
        batch_rows: rows that are encoded at once.
        workers: encoder actors and their threads.
        task_mib: a larger file is cut between its row groups into tasks of about so many MiB, uncompressed.
        max_rejected: stop when more rows than this are rejected: a number of rows, or a share of all if below 1.
        since: an earlier code set, or a directory of them: encode only the files that came to the corpus since.
        restart: remove what an unfinished run left in the output, whatever it was encoding, and start afresh.
        dry_run: say what would be done, and how long a sample says that it takes; write nothing.
    """

    corpus: CorpusConfig
    hasher: str
    output: str
    batch_rows: int = 4096
    workers: WorkersConfig = dataclasses.field(default_factory=WorkersConfig)
    task_mib: float = 256.0
    max_rejected: float | None = None
    since: str | None = None
    restart: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        check(self.batch_rows > 0, f"batch_rows: {self.batch_rows} must be positive")
        check(self.task_mib > 0, f"task_mib: {self.task_mib} must be positive")
        limit = self.max_rejected
        check(
            limit is None or (limit >= 0 and (limit < 1 or limit == int(limit))),
            f"max_rejected: {limit} must be a whole number of rows, or a share below 1",
        )
        check(
            limit is None or self.corpus.on_bad_rows == "reject",
            "max_rejected: has no effect while corpus.on_bad_rows is fail; set that to reject",
        )


@dataclasses.dataclass
class BuildConfig:
    """Build a new version of an index from a code set.

    Attributes:
        codes: directory of the code set.
        output: directory of the index.
        hasher: directory of the hasher, checked against the code set and remembered by the index.
        shards: number of shards; 1 is the fastest on one machine.
        kind: search structure of each shard; auto chooses by a sample of the codes.
        recall: share of the nearest codes, by distance, that an approximate kind must find.
        storage_options: passed to the fsspec file system.
    """

    codes: str
    output: str
    hasher: str | None = None
    shards: int = 1
    kind: Literal["flat", "ivf", "hash", "multihash", "hnsw", "gpu-flat", "auto"] = "flat"
    recall: float = 0.99
    storage_options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.shards > 0, f"shards: {self.shards} must be positive")
        check(0 < self.recall <= 1, f"recall: {self.recall} must lie in (0, 1]")


@dataclasses.dataclass
class EvaluateConfig:
    """Measure retrieval with known labels.

    Attributes:
        hasher: directory of the hasher.
        database: the corpus that is searched, with a label column.
        queries: the corpus whose rows are the queries, with a label column.
        output: directory for metrics.json and the plots.
        k: cut-offs of precision, recall and mAP.
        radius: radius in bits of precision at radius.
        baselines: also measure PCA-sign, ITQ and LSH codes of the same length, and float cosine.
        seed: seed of the baselines' random parts.
    """

    hasher: str
    database: CorpusConfig
    queries: CorpusConfig
    output: str
    k: list[int] = dataclasses.field(default_factory=lambda: [10, 100, 1000])
    radius: int = 2
    baselines: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check(bool(self.k) and min(self.k) > 0, f"k: {self.k} must be positive numbers")


@dataclasses.dataclass
class QuickstartConfig:
    """Run the whole path on real data that comes with the installation.

    Attributes:
        output: directory for everything that is written; an earlier run's directory is replaced.
        port: port of the service on loopback; 0 takes a free one.
    """

    output: str = "quickstart"
    port: int = 0
