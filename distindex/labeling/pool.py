"""The rows to choose from, as a trained hasher sees them."""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np
import numpy.typing as npt

from distindex.corpus.labels import Labels
from distindex.errors import InputError
from distindex.labeling.pair_loss import FloatArray, PairLoss

FEWEST_LABELS = 2
"""Different ones, below which no classifier can be fitted."""


@dataclasses.dataclass(frozen=True)
class Pool:
    """N rows of a corpus.

    Attributes:
        logit_NK: their logits.
        labels: the labels given so far.
        loss: the pair loss of the method that the hasher was trained with.
        truth: the labels of all rows, for strategies that may look them up; None where they are not known.
        paired_N: the rows that stand in an answered pair, which count as labeled; None where items are asked about.
    """

    logit_NK: FloatArray
    labels: Labels
    loss: PairLoss
    truth: Labels | None = None
    paired_N: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.logit_NK)

    @cached_property
    def labeled_N(self) -> npt.NDArray[np.bool_]:
        own_N = self.labels.labeled()
        return own_N if self.paired_N is None else own_N | self.paired_N

    @cached_property
    def unlabeled(self) -> npt.NDArray[np.int64]:
        """The rows that may be chosen, ascending."""
        return np.flatnonzero(~self.labeled_N)

    @cached_property
    def labeled(self) -> npt.NDArray[np.int64]:
        """The rows with a label, ascending."""
        return np.flatnonzero(self.labeled_N)

    @cached_property
    def code_NK(self) -> FloatArray:
        """Relaxed codes in (-1, 1)."""
        return self.loss.relaxed(self.logit_NK)

    @cached_property
    def output_NK(self) -> FloatArray:
        """What the pair loss reads."""
        return self.loss.outputs(self.logit_NK)

    @cached_property
    def square_N(self) -> FloatArray:
        """Squared lengths of the outputs."""
        return np.einsum("nk,nk->n", self.output_NK, self.output_NK)

    @cached_property
    def probability_NL(self) -> FloatArray:
        """The labels' probabilities by a linear classifier on the relaxed codes, fitted to the labels given so far.

        A hasher keeps no classifier, and not every method has one; this one is there for all of them. With several
        labels a row each label has a classifier of its own. Labels that no row has yet are left out.

        Raises:
            InputError: there are not two labels to tell apart.
        """
        # Here, since importing scikit-learn takes as long as torch.
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier

        used = np.unique(self.labels.index)
        if len(used) < FEWEST_LABELS:
            raise InputError(
                f"labels: {len(used)} different ones are given so far, and this strategy needs {FEWEST_LABELS}; "
                "begin with random"
            )
        # Codes of 128 bits or of 16 have the same lengths then, and the penalty the same weight.
        unit_NK = self.code_NK / np.sqrt(self.loss.bits)
        classifier = LogisticRegression(C=100.0, max_iter=500)
        labeled = self.labels.labeled()
        if self.labels.multi:
            y_ML = self.labels.take(labeled).one_hot()[:, used]
            fitted = OneVsRestClassifier(classifier).fit(unit_NK[labeled], y_ML)
        else:
            fitted = classifier.fit(unit_NK[labeled], self.labels.index)
        return fitted.predict_proba(unit_NK).astype(np.float32)
