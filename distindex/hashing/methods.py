"""The methods that training knows, by name: networks here, those in closed form in `classic`."""

from __future__ import annotations

from distindex.errors import InputError
from distindex.hashing.base import Method
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


def build_method(config: MethodConfig, width: int, bits: int, classes: int, multi: bool, sparse: bool) -> Method:
    """The network and loss of `config.name`, with initial weights from torch's generator.

    Args:
        config: the method's name and settings.
        width: input features V.
        bits: code length K.
        classes: number of labels C; 0 without labels.
        multi: rows may have several labels.
        sparse: the input is term frequencies rather than vectors.

    Raises:
        InputError: the method needs labels and there are none.
    """
    check_labels(config, labels=classes > 0)
    return METHODS[config.name](width, bits, classes, multi, sparse, config)


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


def needs_labels(name: str) -> bool:
    """Whether there is nothing to train without labels."""
    return name == "ssh" if name in CLOSED_FORM else METHODS[name].needs_labels
