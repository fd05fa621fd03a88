"""CSB-VAE: the code-supervised Bernoulli autoencoder, the method that distindex recommends.

SSB-VAE (see `ssbvae`) with three changes, each measured in docs/experiments.md:

1. A second classifier reads the sampled code itself, q = softmax(W (2 b - 1) + c), so that the few labels shape
   the bits and not only the hidden layer before them.
2. The decoder reconstructs a row and one of its nearest rows by cosine, drawn anew in each step: the target is
   (1 - neighbor_share) x_i + neighbor_share x_n(i). Rows that use other words for the same thing get near codes,
   with no label at all. Source of the idea: PairRec (Hansen et al., SIGIR 2020).
3. More of the input is hidden in training, and one set of weights serves every share of labels.

    total = mean_i[ Rec_i + kl_weight KL_i ] + class_weight mean_i[ CE(p_i) ] + code_weight mean_i[ CE(q_i) ]
          + pair_weight C/8 k min(1, f/.05) 1/K mean_ij[ s_ij D_ij + (1 - s_ij) relu(m - D_ij) ]

Means run over all rows of the batch, labeled or not. s_ij = p_i.p_j comes from the classifier on the hidden layer.
Of C classes one pair in C is alike, so pair_weight counts for each eight classes: what draws rows of a class together
is then as strong for twenty of them as for eight. Of vectors k = K/16, elsewhere 1: longer codes of embeddings hold
more of what tells rows of a class apart, and need a stronger pull; codes of words do not. Where a share f of less
than one row in twenty has labels, the classifier knows few rows apart, and what it predicts for pairs of the others
counts for less; without labels the term is gone.
With several labels a row the three label terms weigh a fifth instead: the losses of the classes add up, and all rows
are predicted to be alike at first, which at full weight draws them onto a few dozen codes. Of images they weigh ten
times as much, and neighbor_share is 0: what rebuilds an image's pixels best says little about what it shows.
"""

from __future__ import annotations

from torch import Tensor

from distindex.hashing.base import Problem
from distindex.hashing.batch import Batch
from distindex.hashing.networks import glorot_linear
from distindex.hashing.ssbvae import SSBVAE
from distindex.method_config import MethodConfig

_MULTI_SHARE = 0.2
_IMAGE_SHARE = 10.0
_PAIR_CLASSES = 8
_PAIR_LABELED = 0.05
_PAIR_BITS = 16


class CSBVAE(SSBVAE):
    """Network and loss of CSB-VAE; without labels the autoencoder's terms alone."""

    def __init__(self, problem: Problem, config: MethodConfig) -> None:
        super().__init__(problem, config)
        self.code_classifier = glorot_linear(problem.bits, problem.classes) if problem.classes else None
        classes = 1.0 if self.multi else problem.classes / _PAIR_CLASSES
        self.label_share = (_MULTI_SHARE if self.multi else 1.0) * (1.0 if problem.image is None else _IMAGE_SHARE)
        vectors = not problem.sparse and problem.image is None
        bits = problem.bits / _PAIR_BITS if vectors else 1.0
        self.pair_share = classes * bits * min(1.0, problem.labeled / _PAIR_LABELED)

    def label_terms(self, code_BK: Tensor, hidden_BU: Tensor, batch: Batch) -> dict[str, tuple[float, Tensor]]:
        """The terms of SSB-VAE, and `code`."""
        terms = super().label_terms(code_BK, hidden_BU, batch)
        if self.code_classifier is not None:
            code = self.class_loss(self.code_classifier(2 * code_BK - 1), batch)
            terms["code"] = (self.weights.code_weight, code)
        for name, (weight, term) in terms.items():
            share = self.pair_share if name == "pair" else 1.0
            terms[name] = (share * self.label_share * weight, term)
        return terms
