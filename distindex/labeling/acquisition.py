"""What DH-APS minimises over sets Q of pairs to ask about: uncertainty, representativeness and diversity.

Source: Wang, Zheng, Lu, Zhou, Deep Hashing with Active Pairwise Supervision, ECCV 2020 (its poster; the details that
it leaves open are our reading). Of n pairs l are labeled and u are not; alpha says which q of these to ask about:

    uncertainty          s1 = 1/(l+q) sum_i alpha_i max_y J(i; y)
    representativeness   s2 = -(l+q)/n 1^T K_UU alpha
    diversity            s3 = 1/2 alpha^T K_UU alpha + (u-q)/n 1^T K_LU alpha

s2 + s3 is what depends on alpha in (l+q)^2/2 times the squared maximum mean discrepancy between L + Q and all pairs.
U holds all pairs but those of two labeled rows, not the candidates alone: `kernels` sums over all of them. Of the
pairs of two labeled rows nobody remembers which were asked about, as they all follow from the labels of their rows: L
holds all C of them with the weight l / C each, l half the number of labeled rows, the pairs that it takes to ask for
these. Their factor in s3 is then l/C - (l+q)/n, which is (u-q)/n where l is C. Counted as C pairs, a hundred labeled
rows would outweigh the few that are asked about by so much that these all make up for the same lack, and are alike.

The three have scales of their own: s1 is a mean, s2 and s3 grow with l. `objective` divides s1, and s2 + s3 together
where their weights are equal, by the standard deviation of what one pair adds to them, over the candidates.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from distindex.label_config import SelectionConfig
from distindex.labeling.kernels import Float64Array, PairKernel, Pairs
from distindex.labeling.pair_loss import FloatArray
from distindex.labeling.pool import Pool


@dataclasses.dataclass(frozen=True)
class Terms:
    """The terms of DH-APS for some candidate pairs, as the formulas have them.

    Attributes:
        uncertainty_P: what a pair adds to s1.
        representativeness_P: what it adds to s2.
        labeled_P: what it adds to the second part of s3.
        own_P: K of the pair and itself, half of which it adds to the first part of s3.
    """

    uncertainty_P: Float64Array
    representativeness_P: Float64Array
    labeled_P: Float64Array
    own_P: Float64Array


@dataclasses.dataclass(frozen=True)
class Objective:
    """`linear . alpha + curvature / 2 alpha^T K alpha`, to be minimised over the candidates.

    Attributes:
        linear_P: per candidate.
        curvature: of the kernel.
        own_P: the kernel's diagonal.
    """

    linear_P: Float64Array
    curvature: float
    own_P: Float64Array


def acquisition_terms(pool: Pool, pairs: Pairs, loss_P: FloatArray, kernel: PairKernel, queried: int) -> Terms:
    """The terms for these candidates.

    Args:
        pool: the rows.
        pairs: the candidates, none of two labeled rows.
        loss_P: what the loss says of each at worst.
        kernel: over the pool's rows.
        queried: q, the pairs that are to be chosen.
    """
    rows, labeled = len(pool), len(pool.labeled)
    all_pairs, following, known = rows * (rows - 1) / 2, labeled * (labeled - 1) / 2, labeled / 2
    weight = known / following if following else 0.0
    every = np.arange(rows)
    known_P = kernel.sums([(1.0, pool.labeled)], pairs)
    return Terms(
        uncertainty_P=loss_P.astype(np.float64) / (known + queried),
        representativeness_P=-(known + queried) / all_pairs * (kernel.sums([(1.0, every)], pairs) - known_P),
        labeled_P=(weight - (known + queried) / all_pairs) * known_P,
        own_P=kernel.diagonal(pairs),
    )


def objective(terms: Terms, config: SelectionConfig) -> Objective:
    """The weighted sum of the terms, each at its scale."""
    matching_P = config.representativeness * terms.representativeness_P + config.diversity * terms.labeled_P
    curvature = config.diversity
    scale = _deviation(matching_P + curvature / 2 * terms.own_P)
    uncertainty_P = config.uncertainty / _deviation(terms.uncertainty_P) * terms.uncertainty_P
    return Objective(uncertainty_P + matching_P / scale, curvature / scale, terms.own_P)


def _deviation(value_P: npt.NDArray[np.float64]) -> float:
    """The standard deviation, or 1 where all values are equal and none is worth more."""
    deviation = float(value_P.std()) if len(value_P) else 0.0
    return deviation if deviation > 1e-12 * float(np.abs(value_P).max(initial=0.0)) else 1.0
