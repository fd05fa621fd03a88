"""The methods that training knows, by name: networks here, those in closed form in `classic`."""

from __future__ import annotations

from distindex.corpus.rows import FeatureKind
from distindex.errors import InputError
from distindex.hashing.base import Method, Problem
from distindex.hashing.convolution import ImageInput
from distindex.hashing.csbvae import CSBVAE
from distindex.hashing.phsgs import PHSGS, MaskedPHSGS
from distindex.hashing.pts3h import PTS3H
from distindex.hashing.ssbvae import SSBVAE
from distindex.hashing.ssdh import SSDH
from distindex.hashing.supervised import DPSH, DSH
from distindex.hashing.vdsh import VDSH
from distindex.method_config import CLOSED_FORM, MethodConfig

METHODS: dict[str, type[Method]] = {
    "csb-vae": CSBVAE,
    "ssb-vae": SSBVAE,
    "phs-gs": PHSGS,
    "phs-gs-masked": MaskedPHSGS,
    "vdsh-s": VDSH,
    "ssdh": SSDH,
    "pts3h": PTS3H,
    "dpsh": DPSH,
    "dsh": DSH,
}


def build_method(
    config: MethodConfig,
    width: int,
    bits: int,
    classes: int,
    multi: bool,
    sparse: bool,
    image: ImageInput | None = None,
    labeled: float = 1.0,
    target_width: int | None = None,
) -> Method:
    """The network and loss of `config.name`, with initial weights from torch's generator.

    Args:
        config: the method's name and settings.
        width: input features V.
        bits: code length K.
        classes: number of labels C; 0 without labels.
        multi: rows may have several labels.
        sparse: the input is term frequencies rather than vectors.
        image: shape and scale of the input where it is images.
        labeled: share of the rows of a batch that have labels.
        target_width: numbers that a decoder reconstructs; None for the input features.

    Raises:
        InputError: the method needs labels and there are none, or its settings do not fit the input.
    """
    check_labels(config, labels=classes > 0)
    check_input(config, "text" if sparse else "dense" if image is None else "image")
    return METHODS[config.name](
        Problem(width, bits, classes, multi, sparse, image, labeled, target_width or width), config
    )


def check_input(config: MethodConfig, kind: FeatureKind) -> None:
    """Refuse settings that do not fit the kind of features.

    Raises:
        InputError: a likelihood of other data, settings for images without images, the reference mode with them.
    """
    fitting = {"text": ("multinomial",), "dense": ("gaussian", "bernoulli"), "image": ("gaussian", "bernoulli")}[kind]
    if config.likelihood not in ("auto", *fitting):
        raise InputError(
            f"method.likelihood: {config.likelihood} does not fit {kind} features; use auto or {' or '.join(fitting)}"
        )
    if kind != "image" and (config.flip or config.shift):
        name = "flip" if config.flip else "shift"
        raise InputError(f"method.{name}: the features are not images but {kind}; leave it out")
    if kind == "image" and config.reference:
        raise InputError("method.reference: the reference code reads texts and vectors, not images; leave it out")


def check_labels(config: MethodConfig, labels: bool) -> None:
    """Refuse to train without labels what has nothing to train then.

    Raises:
        InputError: the method needs labels and there are none.
    """
    if needs_labels(config.name) and not labels:
        others = ", ".join(name for name in (*METHODS, *CLOSED_FORM) if not needs_labels(name))
        raise InputError(
            f"method.name: {config.name} needs labels, and there are none; without labels train {others}"
        )


def reads_pairs(name: str) -> bool:
    """Whether the loss reads answers about pairs of rows."""
    return name not in CLOSED_FORM and METHODS[name].reads_pairs


def needs_labels(name: str) -> bool:
    """Whether there is nothing to train without labels."""
    return name == "ssh" if name in CLOSED_FORM else METHODS[name].needs_labels
