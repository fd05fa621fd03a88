"""The settings of the hashing methods; each method has its own defaults for what it uses."""

from __future__ import annotations

import dataclasses
from typing import Literal

from distindex.errors import InputError

CLOSED_FORM = ("lsh", "pca-sign", "itq", "ssh")
"""Methods that are fitted at once: one linear map, without epochs, batches or any of the weights below."""

# A setting that stands in no line of a method is one that the method does not have.
_OWN: dict[str, dict[str, float]] = {
    "csb-vae": {
        "input_dropout": 0.5,
        "dropout": 0.4,
        "kl_weight": 1 / 64,
        "class_weight": 3.0,
        "code_weight": 3.0,
        "pair_weight": 5.0,
        "margin": 1 / 3,
        "neighbor_share": 0.5,
    },
    "ssb-vae": {"kl_weight": 1 / 64, "class_weight": 30.0, "pair_weight": 100.0, "margin": 1 / 3},
    "phs-gs": {"kl_weight": 1 / 64, "class_weight": 30.0, "pair_weight": 100.0, "margin": 1 / 3},
    "phs-gs-masked": {"kl_weight": 1 / 64, "class_weight": 30.0, "pair_weight": 100.0, "margin": 1 / 3},
    "vdsh-s": {"kl_weight": 1 / 8, "class_weight": 30.0},
    "ssdh": {"class_weight": 1.0, "pair_weight": 1.0, "margin": 1.0, "graph_weight": 0.1},
    "pts3h": {"pair_weight": 1.0, "quantization_weight": 0.1, "consistency_weight": 10.0},
    "dpsh": {"pair_weight": 1.0, "quantization_weight": 0.1},
    "dsh": {"pair_weight": 1.0, "margin": 2.0, "quantization_weight": 0.1},
}
# Pixels that are hidden are guessed from those beside them, and rows of like pixels show other things.
_OF_IMAGES: dict[str, float] = {"input_dropout": 0.0, "neighbor_share": 0.0}
# The reference code's weights for web_snippets with 10% of the labels, its sums over 100 x 100 pairs as means.
_REFERENCE: dict[str, dict[str, float]] = {
    "ssb-vae": {"kl_weight": 1 / 64, "class_weight": 1.0, "pair_weight": 1.0, "margin": 1 / 3},
    "phs-gs": {"kl_weight": 1 / 64, "class_weight": 0.1, "pair_weight": 1.0, "margin": 1 / 3},
    "vdsh-s": {"kl_weight": 1 / 8, "class_weight": 10.0},
}


@dataclasses.dataclass(frozen=True)
class Weights:
    """The settings of `MethodConfig` that each method has its own defaults for, all of them numbers."""

    input_dropout: float
    dropout: float
    kl_weight: float
    class_weight: float
    code_weight: float
    pair_weight: float
    margin: float
    neighbor_share: float
    graph_weight: float
    quantization_weight: float
    consistency_weight: float


@dataclasses.dataclass
class MethodConfig:
    """The hashing method and the weights of its loss terms; docs/methods.md has the formulas.

    A setting that is None takes the method's own value. One that belongs to a term that the method does not
    have must be left out, or 0. lsh, pca-sign, itq and ssh have none, nor a network.

    Attributes:
        name: the hashing method.
        reference: ssb-vae, phs-gs and vdsh-s as the reference code of SSB-VAE runs them, with its quirks.
        hidden: widths of the encoder's hidden layers.
        input_dropout: share of the input's entries set to zero in training (words, dimensions, pixels).
            Default: 0.3, or 0 for images and with reference.
        dropout: share of hidden units set to zero in training. Default: 0.3, or 0 with reference.
        vocabulary: the words that the decoder of texts tells apart: those of the batch, or all.
        temperature: temperature of the binary concrete sampler (ssb-vae, phs-gs).
        kl_weight: weight of the KL term to the prior (ssb-vae, phs-gs, vdsh-s; the reference's beta).
        class_weight: weight of the classifier's loss, averaged over the rows of the batch, in ssdh over its
            labeled rows (not in pts3h, dpsh, dsh).
        code_weight: weight of the loss of the classifier on the code, averaged likewise (csb-vae).
        pair_weight: weight of the supervised pair or triplet loss (all but vdsh-s), averaged over pairs; in
            csb-vae for each eight classes.
        margin: how far dissimilar codes are pushed apart: squared distance as a share of the bits (ssb-vae,
            phs-gs, dsh), or what a triplet's squared distances must differ by (ssdh).
        neighbor_share: how much of what the decoder reconstructs is one of the row's nearest rows (csb-vae).
            Default: 0.5, or 0 for images.
        answer_weight: weight of the terms over answered pairs, as a share of class_weight and pair_weight (csb-vae,
            ssb-vae, phs-gs; in pts3h, dpsh and dsh these pairs are among those of pair_weight).
        graph_weight: weight of the neighbour-graph and pseudo-label terms (ssdh).
        graph: space of the neighbour graph (ssdh): the last hidden layer, or the relaxed codes.
        neighbors: nearest rows that count as neighbours: of the batch (ssdh), of the corpus (csb-vae).
        quantization_weight: weight of the distance from the outputs to their signs (pts3h, dpsh, dsh).
        consistency_weight: weight of the agreement of pair distances with the teacher's (pts3h).
        ramp_steps: steps until consistency_weight has its full size (pts3h).
        teacher_decay: what the teacher keeps of its weights in each step (pts3h).
        likelihood: how the decoder's output is compared with the input: multinomial (texts), gaussian (vectors, and
            images with standardized pixels), bernoulli (images, and vectors within [0, 1]); auto is the first
            for texts, the second for vectors and the third for images.
        convolutions: for images, channels of the 3x3 convolutions of stride 2 before the hidden layers.
        flip: for images, mirror half of them left to right in training.
        shift: for images, move them by up to this many pixels in each direction in training.
    """

    name: Literal[
        "csb-vae",
        "ssb-vae",
        "phs-gs",
        "phs-gs-masked",
        "vdsh-s",
        "ssdh",
        "pts3h",
        "dpsh",
        "dsh",
        "lsh",
        "pca-sign",
        "itq",
        "ssh",
    ] = "csb-vae"
    reference: bool = False
    hidden: list[int] = dataclasses.field(default_factory=lambda: [500, 500])
    input_dropout: float | None = None
    dropout: float | None = None
    vocabulary: Literal["batch", "all"] = "batch"
    temperature: float = 0.67
    kl_weight: float | None = None
    class_weight: float | None = None
    code_weight: float | None = None
    pair_weight: float | None = None
    margin: float | None = None
    neighbor_share: float | None = None
    answer_weight: float = 0.02
    graph_weight: float | None = None
    graph: Literal["features", "codes"] = "features"
    neighbors: int = 8
    quantization_weight: float | None = None
    consistency_weight: float | None = None
    ramp_steps: int = 500
    teacher_decay: float = 0.99
    likelihood: Literal["auto", "multinomial", "gaussian", "bernoulli"] = "auto"
    convolutions: list[int] = dataclasses.field(default_factory=lambda: [16, 32, 64])
    flip: bool = False
    shift: int = 0

    def __post_init__(self) -> None:
        if self.reference and self.name not in _REFERENCE:
            raise InputError(
                f"method.reference: the reference code has no {self.name}, only {', '.join(sorted(_REFERENCE))}"
            )
        own = self._own()
        for name, value in dataclasses.asdict(self.weights()).items():
            if value and name not in own:
                raise InputError(f"method.{name}: {self.name} has no such term; leave it out")
            if name.endswith("dropout"):
                if not 0 <= value < 1:
                    raise InputError(f"method.{name}: {value} must lie in [0, 1)")
                if value and self.reference:
                    raise InputError(
                        f"method.{name}: the reference code has none; leave it out with method.reference"
                    )
            elif value < 0:
                raise InputError(f"method.{name}: {value} must not be negative")
        if self.temperature <= 0:
            raise InputError(f"method.temperature: {self.temperature} must be positive")
        if not self.hidden or any(width <= 0 for width in self.hidden):
            raise InputError(f"method.hidden: {self.hidden} must be one or more positive widths")
        if not self.convolutions or any(channels <= 0 for channels in self.convolutions):
            raise InputError(
                f"method.convolutions: {self.convolutions} must be one or more positive numbers of channels"
            )
        if self.shift < 0:
            raise InputError(f"method.shift: {self.shift} must not be negative")
        if self.neighbors < 1:
            raise InputError(f"method.neighbors: {self.neighbors} must be positive")
        if self.answer_weight < 0:
            raise InputError(f"method.answer_weight: {self.answer_weight} must not be negative")
        if self.ramp_steps < 0:
            raise InputError(f"method.ramp_steps: {self.ramp_steps} must not be negative")
        if not 0 <= self.teacher_decay < 1:
            raise InputError(f"method.teacher_decay: {self.teacher_decay} must lie in [0, 1)")

    def weights(self, images: bool = False) -> Weights:
        """What is set, and the method's own values for the rest, some of which are others for images."""
        own = self._own() | (_OF_IMAGES if images else {})
        settings = {}
        for field in dataclasses.fields(Weights):
            value = getattr(self, field.name)
            settings[field.name] = own.get(field.name, 0.0) if value is None else value
        return Weights(**settings)

    def filled(self) -> MethodConfig:
        """The same settings with the method's own values written out, for the record of a run.

        What has another default for images stays as it is.
        """
        own = dataclasses.asdict(self.weights())
        return dataclasses.replace(self, **{**own, **{name: getattr(self, name) for name in _OF_IMAGES}})

    def _own(self) -> dict[str, float]:
        if self.name in CLOSED_FORM:
            return {}
        dropout = 0.0 if self.reference else 0.3
        own = (_REFERENCE if self.reference else _OWN)[self.name]
        return {"input_dropout": dropout, "dropout": dropout, **own}
