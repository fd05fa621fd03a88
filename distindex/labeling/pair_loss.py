"""What a method's own loss says about a pair of rows whose similarity is not known, and its relaxed codes.

DH-APS calls the loss J(pair; similarity) and asks for the worse of both similarities, `max_y J(pair; y)`: it is low
where neither answer would surprise the model. With u the logits, and D the squared distance of what the loss reads:

    csb-vae, ssb-vae, phs-gs, phs-gs-masked   b = sigmoid(u)    max(D, relu(m - D)) / K          m = margin K
    ssdh                                      b = sigmoid(u)    max(D, relu(m - sqrt D)^2) / K   m as in `ssdh`
    dsh                                       u                 1/2 max(D, relu(m - D))          m = margin K
    dpsh                                      u                 log(1 + e^|t|)                   t = 1/2 u_a.u_b
    pts3h                                     h = tanh(u)       log(1 + e^|t|)                   t = 1/2 h_a.h_b

The autoencoders' pair term is so taken with the similarity that an annotator would give, in place of the predicted
one; ssdh's triplets say nothing of one pair, so its term over neighbours and others counts. Methods whose loss is of
single rows (vdsh-s, and ssh, which has none) are judged as pts3h.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from distindex.method_config import MethodConfig

FloatArray = npt.NDArray[np.floating]
_CONTRAST = ("csb-vae", "ssb-vae", "phs-gs", "phs-gs-masked")


@dataclasses.dataclass(frozen=True)
class PairLoss:
    """The pair loss of a method with K bits."""

    method: MethodConfig
    bits: int

    def relaxed(self, logit_NK: FloatArray) -> FloatArray:
        """Relaxed codes `code_NK` in (-1, 1); their signs are the bits."""
        halved = self.method.name in (*_CONTRAST, "ssdh")
        return np.tanh(logit_NK / 2 if halved else logit_NK)

    def outputs(self, logit_NK: FloatArray) -> FloatArray:
        """What the loss reads of each row, `output_NK`."""
        if self.method.name in ("dpsh", "dsh"):
            return logit_NK
        code_NK = self.relaxed(logit_NK)
        return (code_NK + 1) / 2 if self.method.name in (*_CONTRAST, "ssdh") else code_NK

    def worst_case(self, inner: FloatArray, square_a: FloatArray, square_b: FloatArray) -> FloatArray:
        """`max_y J`, element by element.

        Args:
            inner: inner products of the two rows' outputs, of any shape.
            square_a: squared lengths of the one rows' outputs, of a shape that fits.
            square_b: those of the other rows.
        """
        name = self.method.name
        if name not in (*_CONTRAST, "ssdh", "dsh"):
            return np.logaddexp(0, np.abs(inner) / 2)
        distance = np.maximum(square_a + square_b - 2 * inner, 0)
        if name == "ssdh":
            # As in `ssdh`: 2.5 at 12 bits and 3.0 at 48, linear between and beyond.
            margin = 2.5 + 0.5 * (self.bits - 12) / 36
            return np.maximum(distance, np.maximum(margin - np.sqrt(distance), 0) ** 2) / self.bits
        margin = self.method.weights().margin * self.bits
        worst = np.maximum(distance, np.maximum(margin - distance, 0))
        return worst / 2 if name == "dsh" else worst / self.bits
