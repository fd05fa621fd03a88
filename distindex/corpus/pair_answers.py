"""What answers about pairs of rows say: labels that follow from them, and the similarities that remain.

Rows that answers join as the same make a component. Where the rows of a corpus have one label each, all rows of a
component have the label of those that have one:

    i ~ j                      when an answer says that i and j are the same, and whatever follows by i ~ j ~ k
    y_i = y_j                  for an unlabeled i, where i ~ j and j is labeled
    s_ij = [y_i = y_j]         for two labeled rows: their pair is settled, whatever was answered
    s_ij = the answer          for the pairs that remain

A component contradicts itself where two of its rows are answered to be different, or have different labels: then
nothing follows inside it. An answer contradicts the labels where it says otherwise of two labeled rows; the labels
count. Rows with several labels are alike where they share one, which is not transitive: nothing follows there.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse
from scipy.sparse.csgraph import connected_components

from distindex.corpus.labels import Labels

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


class RowPairs(NamedTuple):
    """Answers about pairs of rows.

    Attributes:
        row_Q2: int64, the two rows of each answer; -1 for one that is not there.
        similar_Q: what it says.
    """

    row_Q2: IntArray
    similar_Q: BoolArray


NO_PAIRS = RowPairs(np.zeros((0, 2), np.int64), np.zeros(0, bool))


@dataclasses.dataclass(frozen=True)
class PairAnswers:
    """What is known of pairs of rows besides the labels.

    Attributes:
        row_P2: int64, the two rows of each pair that remains.
        similar_P: whether they are alike.
        resolved: answers that the labels say too, by themselves or where a label followed from an answer.
        contradictory: answers that contradict the labels or each other; nothing is learned from them.
        unknown: answers about rows that are not there.
        unused: answers that would remain, for a method that learns nothing from them.
    """

    row_P2: IntArray
    similar_P: BoolArray
    resolved: int = 0
    contradictory: int = 0
    unknown: int = 0
    unused: int = 0

    def __len__(self) -> int:
        return len(self.similar_P)

    @property
    def given(self) -> int:
        """All answers that there were."""
        return sum(self.counts().values())

    def left_unused(self) -> PairAnswers:
        """The same without those that remain."""
        return dataclasses.replace(
            self, row_P2=NO_PAIRS.row_Q2, similar_P=NO_PAIRS.similar_Q, unused=self.unused + len(self)
        )

    def counts(self) -> dict[str, int]:
        """How many answers of each kind, for reports."""
        return {
            "used": len(self),
            "resolved": self.resolved,
            "contradictory": self.contradictory,
            "unknown": self.unknown,
            "unused": self.unused,
        }


NO_ANSWERS = PairAnswers(NO_PAIRS.row_Q2, NO_PAIRS.similar_Q)


def close(labels: Labels, pairs: RowPairs) -> tuple[Labels, PairAnswers]:
    """The labels with those that follow from answers, and what remains.

    Args:
        labels: of all rows; hidden ones are not known.
        pairs: the answers, each pair once.
    """
    there_Q = (pairs.row_Q2 >= 0).all(1)
    row_Q2, similar_Q = pairs.row_Q2[there_Q], pairs.similar_Q[there_Q]
    # Within the rows that answers name: R of them, few of all.
    row_R, at_Q2 = np.unique(row_Q2, return_inverse=True)
    at_Q2 = at_Q2.reshape(row_Q2.shape)
    component_R = _components(len(row_R), at_Q2[similar_Q])
    inside_Q = component_R[at_Q2[:, 0]] == component_R[at_Q2[:, 1]]
    torn_R = np.zeros(len(row_R), bool)
    if not labels.multi:
        torn_C = np.zeros(len(row_R), bool)
        torn_C[component_R[at_Q2[inside_Q & ~similar_Q, 0]]] = True
        source_R = _labeled_of_component(labels, row_R, component_R, torn_C)
        torn_R = torn_C[component_R]
        labels = _with_labels_of(labels, row_R, source_R)
    settled_Q = labels.labeled()[row_Q2].all(1)
    shared_Q = np.asarray(labels.take(row_Q2[:, 0]).matrix().multiply(labels.take(row_Q2[:, 1]).matrix()).sum(1))
    against_Q = settled_Q & ((shared_Q.ravel() > 0) != similar_Q)
    torn_Q = inside_Q & torn_R[at_Q2[:, 0]] & ~(settled_Q & ~against_Q)
    left_Q = ~settled_Q & ~torn_Q
    return labels, PairAnswers(
        row_P2=row_Q2[left_Q],
        similar_P=similar_Q[left_Q],
        resolved=int((settled_Q & ~against_Q).sum()),
        contradictory=int((against_Q | torn_Q).sum()),
        unknown=int((~there_Q).sum()),
    )


def _components(rows: int, edge_E2: IntArray) -> npt.NDArray[np.int32]:
    graph = scipy.sparse.coo_matrix((np.ones(len(edge_E2), bool), (edge_E2[:, 0], edge_E2[:, 1])), (rows, rows))
    return connected_components(graph, directed=False)[1]


def _labeled_of_component(
    labels: Labels, row_R: IntArray, component_R: npt.NDArray[np.int32], torn_C: BoolArray
) -> IntArray:
    """A labeled row of each row's component, or the row itself; components with several labels are marked as torn."""
    label_R = np.full(len(row_R), -1, np.int64)
    own = labels.take(row_R)
    label_R[own.labeled()] = own.index
    first_C = np.full(len(row_R), -1, np.int64)
    has_R = np.flatnonzero(label_R >= 0)
    # The last one written stays; the others must have its label.
    first_C[component_R[has_R]] = has_R
    torn_C[component_R[has_R[label_R[has_R] != label_R[first_C[component_R[has_R]]]]]] = True
    at_R = first_C[component_R]
    return np.where((at_R >= 0) & ~torn_C[component_R] & (label_R < 0), row_R[at_R], row_R)


def _with_labels_of(labels: Labels, row_R: IntArray, source_R: IntArray) -> Labels:
    if (source_R == row_R).all():
        return labels
    source_N = np.arange(len(labels))
    source_N[row_R] = source_R
    return labels.take(source_N)
