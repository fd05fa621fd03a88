"""Whether a corpus is held in memory or streamed, and reading it in that way. Each runs as a Ray task."""

from __future__ import annotations

import dataclasses

import ray

from distindex.config import TrainConfig
from distindex.corpus.dataset import Corpus
from distindex.corpus.rows import FeatureKind
from distindex.errors import InputError
from distindex.method_config import CLOSED_FORM
from distindex.training.data import read_training_set
from distindex.training.lanes import FEWEST_LANES, MOST_LANES, lane_count
from distindex.training.source import TrainingData, kind_of
from distindex.training.stream import Streaming, read_streamed

# Texts as sparse rows, their targets and the texts themselves, over the bytes of the texts (measured: 2 to 4), and
# what runs of characters add (measured: 2 to 4).
_TEXT_GROWTH, _CHARACTER_NGRAMS_GROWTH = 4, 4
_SMALLEST_WINDOW, _MOST_SHUFFLED = 32, 65_536


@dataclasses.dataclass(frozen=True)
class Choice:
    """How a corpus is read.

    Attributes:
        corpus: the corpus, open.
        streaming: how it is streamed; None if it is held in memory.
        reason: why, for people.
    """

    corpus: Corpus
    streaming: Streaming | None
    reason: str


def choose(config: TrainConfig) -> Choice:
    """Open the corpus and see whether it fits.

    Raises:
        InputError: it cannot be read, or a method in closed form, which needs all rows in memory, is to be fitted to
            one that does not fit.
    """
    corpus = Corpus.open(config.corpus)
    needed = bytes_in_memory(config, corpus, kind_of(config, corpus))
    budget = int(config.memory_gib * 2**30) or _object_store_bytes()
    allowed = "memory_gib" if config.memory_gib else "a node's object store; memory_gib sets another limit"
    sizes = f"about {needed / 2**20:,.1f} MiB, {budget / 2**20:,.1f} MiB allowed by {allowed}"
    if needed <= budget:
        return Choice(corpus, None, f"the corpus is held in memory ({sizes})")
    if config.method.name in CLOSED_FORM:
        raise InputError(
            f"method.name: {config.method.name} is fitted to all rows in memory, and they do not fit ({sizes}); "
            "raise memory_gib, or take a method with a network"
        )
    group_bytes = max(max(file.group_bytes, default=0) for file in corpus.files)
    streaming = plan_streaming(config.optimization.batch_size, needed // corpus.rows + 1, group_bytes, budget)
    return Choice(corpus, streaming, f"the corpus is streamed ({sizes})")


def plan_streaming(batch_size: int, row_bytes: int, group_bytes: int, budget: int) -> Streaming:
    """A quarter of the budget for what is being shuffled, and as many lanes as row groups fit into another one.

    From object storage a row group is read at once; each lane reads one at a time.
    """
    lanes = lane_count(batch_size, max(FEWEST_LANES, min(MOST_LANES, budget // (4 * max(1, group_bytes)))))
    window = min(_MOST_SHUFFLED // lanes, max(_SMALLEST_WINDOW, budget // (4 * lanes * row_bytes)))
    return Streaming(lanes, window, row_bytes, budget)


def bytes_in_memory(config: TrainConfig, corpus: Corpus, kind: FeatureKind) -> int:
    """What the rows as they are stored and their features take together, by the files' footers; an estimate."""
    stored = sum(sum(file.group_bytes) or file.size for file in corpus.files)
    if kind == "text":
        return stored * (_TEXT_GROWTH + _CHARACTER_NGRAMS_GROWTH * (config.features.text.character_ngrams > 0))
    if kind == "image":
        image = config.features.image
        return stored + corpus.rows * image.height * image.width * image.channels
    return stored + corpus.rows * (corpus.width or 0) * 4


def prepare(config: TrainConfig, choice: Choice) -> TrainingData:
    """Read the corpus in the way that was chosen.

    Raises:
        InputError: anything wrong with the corpus or its labels, in one line.
    """
    if choice.streaming is None:
        return read_training_set(config, choice.corpus)
    return read_streamed(config, choice.corpus, choice.streaming)


def _object_store_bytes() -> int:
    """Memory for shared objects on the node that has the least."""
    return int(min(node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]))
